"""The content of a lock, and refusal of a lock that does not fit."""

from pathlib import Path

import pytest
from support.hub import Hub
from support.small_bundle import CONTENT, MANIFEST, fetch

from controlnet.weights.download import lock
from controlnet.weights.files import check, verify
from controlnet.weights.lockfile import Lock, WeightsError
from controlnet.weights.manifest import Manifest


def test_lock_has_size_and_commit_of_each_file(hub: Hub, manifest: Manifest, root: Path) -> None:
    fetch(manifest, root)
    text = (root / "small.lock").read_text()
    again = Lock.read(root / "small.lock")
    assert again.text() == text
    assert [file.path for file in again.files] == list(manifest.paths)
    assert [file.size for file in again.files] == [len(CONTENT[path]) for path in manifest.paths]
    assert {row.repo: row.commit for row in again.repos} == {
        repo: commit for (repo, _), commit in hub.revisions.items()
    }


def test_lock_of_another_manifest_is_refused(hub: Hub, manifest: Manifest, root: Path) -> None:
    fetch(manifest, root)
    (root / "small.toml").write_text(
        MANIFEST.replace('"hed.pth"', '"hed2.pth"').replace("someone/base", "someone/other")
    )
    changed = Manifest.read(root / "small.toml")
    for action in (check, verify, fetch):
        with pytest.raises(WeightsError) as error:
            action(changed, root)
        for words in ("no line for annotator/hed/hed2.pth", "no commit for someone/other", "script/lock-weights small"):
            assert words in str(error.value)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("sha256", "sha265"),
        ("size = 307200", "size = -1"),
        ("size = 307200", 'size = "307200"'),
        ('sha256 = "', 'sha256 = "0'),
        ('bundle = "small"', 'bundle = "large"'),
        ("files = [", "files = 3 # ["),
        ('path = "unet/config.json"', 'path = "unet/model.safetensors"'),
    ],
)
def test_damaged_lock_is_refused(hub: Hub, manifest: Manifest, root: Path, old: str, new: str) -> None:
    lock(manifest, root, progress=False)
    text = (root / "small.lock").read_text()
    assert old in text
    (root / "small.lock").write_text(text.replace(old, new, 1))
    with pytest.raises(WeightsError, match=r"weights/small.lock .*Write it again: script/lock-weights small"):
        check(manifest, root)
