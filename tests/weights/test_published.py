"""The list of what is known beforehand about a bundle's files, and the first lock, which is compared with it."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from support.hub import Hub
from support.small_bundle import CONFIG, CONTENT, MODEL, fetch, on_disk

from controlnet.weights import cli
from controlnet.weights.download import lock
from controlnet.weights.lockfile import WeightsError
from controlnet.weights.manifest import WEIGHTS, Manifest
from controlnet.weights.published import read_published


def known(hub: Hub, **changes: dict[str, Any]) -> str:
    """A list of the two files of the small bundle's base; `changes` by name, "config" or "model"."""
    commit = hub.revisions["someone/base", "main"]
    rows = []
    for name, file, content in (("config", "unet/config.json", CONFIG), ("model", "unet/model.safetensors", MODEL)):
        row = {"repo": "someone/base", "commit": commit, "file": file, "source": "a listing", "size": len(content)}
        row |= {"sha256": hashlib.sha256(content).hexdigest()} | changes.get(name, {})
        rows.append("{ " + ", ".join(f"{key} = {json.dumps(value)}" for key, value in row.items()) + " }")
    return f"files = [{', '.join(rows)}]\n"


def test_sd15_pins_every_commit_that_is_known_beforehand() -> None:
    manifest = Manifest.read(WEIGHTS / "sd15.toml")
    published = read_published(manifest, WEIGHTS)
    named = {(part.repo, path): part.revision for part in manifest.parts for path in part.repo_paths}
    assert len(published.files) == 42
    for row in published.files:
        assert named[row.repo, row.file] == row.commit, row.file
    pinned = {row.repo for row in published.files}
    assert {part.revision for part in manifest.parts if part.repo not in pinned} == {"main"}


def test_first_lock_names_the_files_not_known_beforehand(hub: Hub, root: Path, capsys) -> None:
    (root / "small.published").write_text(known(hub))
    assert cli.main(["download", "small"], root) == 0
    assert capsys.readouterr().out.splitlines() == [
        "small had no lock, so it was locked first. small: 3 files, 0.00 GB, locked in weights/small.lock.",
        "2 files have the hash that weights/small.published lists."
        " 1 was not known beforehand, and is locked as the hub has it now:",
        "  annotator/hed/hed.pth",
        "small: 3 files in place and verified.",
    ]
    assert on_disk(root) == CONTENT
    assert cli.main(["download", "small"], root) == 0
    assert capsys.readouterr().out.splitlines() == ["small: 3 files in place and verified."]


CHANGES = {
    "size": (
        {"model": {"size": 5}},
        f"unet/model.safetensors (someone/base): expected size 5 (a listing), got {len(MODEL)}",
    ),
    "sha256": (
        {"model": {"sha256": "0" * 64}},
        f"unet/model.safetensors (someone/base): expected sha256 {'0' * 64} (a listing), "
        f"got {hashlib.sha256(MODEL).hexdigest()}",
    ),
    "sha256 that the hub does not list": (
        {"config": {"sha256": "1" * 64}},
        f"unet/config.json (someone/base): expected sha256 {'1' * 64} (a listing), "
        f"got {hashlib.sha256(CONFIG).hexdigest()}",
    ),
    "commit": (
        {"config": {"commit": "2" * 40}},
        f"unet/config.json (someone/base): expected commit {'2' * 40} (a listing), got ",
    ),
}


@pytest.mark.parametrize("what", CHANGES)
def test_difference_from_what_is_known_is_refused_by_name(hub: Hub, manifest: Manifest, root: Path, what: str) -> None:
    changes, line = CHANGES[what]
    (root / "small.published").write_text(known(hub, **changes))
    for action in (lambda: lock(manifest, root, progress=False), lambda: fetch(manifest, root)):
        with pytest.raises(WeightsError) as caught:
            action()
        first, second, advice = str(caught.value).splitlines()
        assert first == "weights/small.published lists what the files of small are, and the hub has others:"
        assert second.startswith(f"  {line}")
        assert "HF_ENDPOINT" in advice and "weights/small.published" in advice
        assert not (root / "small.lock").exists() and not hub.downloads("model.safetensors")
        assert not (root / "small/unet").exists()


def test_size_alone_can_be_known(hub: Hub, manifest: Manifest, root: Path) -> None:
    text = known(hub).replace(f', sha256 = "{hashlib.sha256(MODEL).hexdigest()}"', "")
    (root / "small.published").write_text(text)
    fetch(manifest, root)
    published = read_published(manifest, root)
    assert published.unknown(manifest) == ["unet/model.safetensors", "annotator/hed/hed.pth"]


@pytest.mark.parametrize(("old", "new"), [("files", "rows"), ("size", "sizes"), ('commit = "', 'commit = "../')])
def test_damaged_list_is_refused(hub: Hub, manifest: Manifest, root: Path, old: str, new: str) -> None:
    (root / "small.published").write_text(known(hub).replace(old, new, 1))
    with pytest.raises(WeightsError, match=r"^weights/small\.published is not valid .* git checkout HEAD -- weights/"):
        fetch(manifest, root)
