"""Checking and verifying weights: every fault is named with the expected and the actual value, and the repair."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.hub import Hub
from support.small_bundle import (
    CONFIG,
    CONTENT,
    HED,
    MANIFEST,
    MODEL,
    fetch,
)

from controlnet.weights.download import lock
from controlnet.weights.files import check, verify
from controlnet.weights.lockfile import Lock, WeightsError
from controlnet.weights.manifest import WEIGHTS, Manifest


def test_check_names_every_fault_and_the_repair(hub: Hub, manifest: Manifest, root: Path) -> None:
    fetch(manifest, root)
    (root / "small/unet/config.json").unlink()
    (root / "small/unet/model.safetensors").write_bytes(MODEL[:1000])
    (root / "small/annotator/hed/hed.pth").write_bytes(HED + b"x")
    with pytest.raises(WeightsError) as error:
        check(manifest, root)
    assert str(error.value).splitlines() == [
        "The weights of small cannot be used: 3 files are missing or wrong.",
        f"  weights/small/unet/config.json: missing, expected {len(CONFIG)} bytes",
        f"  weights/small/unet/model.safetensors: too short, expected {len(MODEL)} bytes, got 1000",
        f"  weights/small/annotator/hed/hed.pth: too long, expected {len(HED)} bytes, got {len(HED) + 1}",
        "Repair: script/download-weights small",
    ]
    fetch(manifest, root)
    check(manifest, root)


def test_check_without_a_lock_finds_missing_and_empty_files(manifest: Manifest, root: Path) -> None:
    (root / "small/unet").mkdir(parents=True)
    (root / "small/unet/config.json").touch()
    (root / "small/unet/model.safetensors").mkdir()
    with pytest.raises(WeightsError) as error:
        check(manifest, root)
    assert [line.rpartition(": ")[2] for line in str(error.value).splitlines()[1:-1]] == [
        "empty",
        "not a file",
        "missing",
    ]
    with pytest.raises(WeightsError, match="no lock to verify its files against"):
        verify(manifest, root)


def test_verify_finds_changed_bytes_that_check_cannot(hub: Hub, manifest: Manifest, root: Path) -> None:
    fetch(manifest, root)
    for path in ("unet/model.safetensors", "annotator/hed/hed.pth"):
        content = bytearray(CONTENT[path])
        content[-1] ^= 1
        (root / "small" / path).write_bytes(content)
    (root / "small/unet/config.json").unlink()
    with pytest.raises(WeightsError, match="1 file is missing or wrong"):
        check(manifest, root)
    with pytest.raises(WeightsError) as error:
        verify(manifest, root)
    lines = str(error.value).splitlines()
    for path, line in zip(("unet/model.safetensors", "annotator/hed/hed.pth"), lines[2:4], strict=True):
        assert line.startswith(f"  weights/small/{path}: wrong content, expected sha256 ")
        assert Lock.read(root / "small.lock").file(path).sha256 in line
    assert "config.json: missing" in lines[1]
    assert lines[-1] == "Repair: script/download-weights small"
    fetch(manifest, root)
    verify(manifest, root)


def test_embedded_bundle_is_repaired_with_git(root: Path) -> None:
    dropped = ("repo", "revision", "folder")
    lines = [line for line in MANIFEST.splitlines() if not line.startswith(dropped)]
    (root / "small.toml").write_text("\n".join(lines).replace("safety_checker =", "embedded = true\nsafety_checker ="))
    manifest = Manifest.read(root / "small.toml")
    with pytest.raises(WeightsError, match="cannot be locked without its files"):
        lock(manifest, root)
    for path, content in CONTENT.items():
        (root / "small" / path).parent.mkdir(parents=True, exist_ok=True)
        (root / "small" / path).write_bytes(content)
    lock(manifest, root)
    verify(manifest, root)
    fetch(manifest, root)  # nothing to download, and no error
    (root / "small/unet/config.json").unlink()
    for action in (check, verify, fetch):
        with pytest.raises(WeightsError, match="Repair: git checkout HEAD -- weights/small"):
            action(manifest, root)


def test_checking_imports_neither_torch_nor_huggingface_hub() -> None:
    code = "import sys, controlnet.weights.files; sys.exit(bool({'torch', 'huggingface_hub'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
    code = "import sys, controlnet.weights.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


def test_embedded_bundle_fits_its_lock() -> None:
    tiny = Manifest.read(WEIGHTS / "tiny.toml")
    verify(tiny)
    assert {"seed", "hardware", "steps"} <= set(tiny.made)
    present = {str(file.relative_to(WEIGHTS / "tiny")) for file in (WEIGHTS / "tiny").rglob("*") if file.is_file()}
    assert present == set(tiny.paths), "a file is missing, or is not in the manifest"


def test_truncated_embedded_file_names_the_git_command(tmp_path: Path) -> None:
    for name in ("tiny.toml", "tiny.lock"):
        shutil.copy(WEIGHTS / name, tmp_path)
    shutil.copytree(WEIGHTS / "tiny", tmp_path / "tiny")
    file = tmp_path / "tiny/unet/diffusion_pytorch_model.fp16.safetensors"
    size = file.stat().st_size
    os.truncate(file, size - 10)
    with pytest.raises(WeightsError, match=f"(?s)too short, expected {size} bytes, got {size - 10}.*git checkout"):
        check(Manifest.read(tmp_path / "tiny.toml"), tmp_path)


def with_option(root: Path, hub: Hub, on: bool) -> Manifest:
    """The small bundle, but annotator/hed belongs to an annotator that is chosen or not."""
    entry = 'scribble.annotator = { rough = "xdog", fine = "fine_hed" }'
    text = MANIFEST.replace("[conditioners]", f"[conditioners]\n{entry}")
    text = text.replace('name = "annotator/hed"', 'name = "annotator/hed"\noption = "fine_hed"')
    net = (
        '\n[[parts]]\nname = "controlnet/scribble"\nrepo = "someone/net"\nrevision = "main"\nfiles = ["config.json"]\n'
    )
    (root / "small.toml").write_text(text + net + 'licence = "MIT"\npurpose = "Scribbles"\n')
    if ("someone/net", "main") not in hub.revisions:
        hub.publish("someone/net", {"config.json": CONFIG})
    return Manifest.read(root / "small.toml", {"scribble": "fine" if on else ""})


def test_a_lock_from_before_there_was_an_option_fits_until_it_is_on(hub: Hub, root: Path) -> None:
    off, on = with_option(root, hub, False), with_option(root, hub, True)
    lock(off, root, progress=False)
    path = root / "small.lock"
    rows = path.read_text().splitlines(keepends=True)
    path.write_text("".join(row for row in rows if "annotator/hed" not in row and "someone/annotators" not in row))
    fetch(off, root)
    check(off, root)
    verify(off, root)
    for action in (check, verify, fetch):
        with pytest.raises(WeightsError, match=r"no line for annotator/hed/hed\.pth.*script/lock-weights small"):
            action(on, root)


@pytest.mark.parametrize("locked", [False, True], ids=["without a lock", "locked"])
def test_files_of_an_option_are_needed_only_if_it_is_on(hub: Hub, root: Path, locked: bool) -> None:
    file = root / "small/annotator/hed/hed.pth"
    off, on = with_option(root, hub, False), with_option(root, hub, True)
    if locked:
        lock(off, root, progress=False)
    fetch(off, root)
    check(off, root)
    verify(off, root)
    assert not file.exists()
    assert Lock.read(root / "small.lock").file("annotator/hed/hed.pth").size == len(HED), (
        "the lock includes all annotators"
    )
    for action in (check, verify):
        with pytest.raises(WeightsError, match=r"hed\.pth: missing[^$]*CONTROLNET_SCRIBBLE=fine script/download"):
            action(on, root)
    fetch(on, root)
    check(on, root)
    verify(on, root)
    assert file.read_bytes() == HED
    file.write_bytes(b"wrong")
    check(off, root)
    with pytest.raises(WeightsError, match="too short"):
        check(on, root)
