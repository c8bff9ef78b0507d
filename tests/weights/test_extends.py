"""Bundles that extend another: what they share with it, what they replace, and the files of both."""

import hashlib
from pathlib import Path

import pytest
from support.hub import Hub
from support.small_bundle import HED, MODEL

from controlnet.weights import cli
from controlnet.weights.files import check, verify
from controlnet.weights.lockfile import Lock, WeightsError
from controlnet.weights.manifest import Manifest, ManifestError

OWN = """
name = "own"
extends = "small"
title = "One of somebody's own"
summary = "For tests."
[defaults]
clip_skip = 2
guidance_scale = 9
[[parts]]
name = "unet"
files = ["config.json", "better.safetensors"]
licence = "its author's"
purpose = "Denoising network of better.safetensors"
[[parts]]
name = "vae"
repo = "someone/vae"
revision = "main"
files = ["vae.safetensors"]
licence = "MIT"
purpose = "Between pixels and latents"
"""
VAE = bytes(range(64)) * 99


def read(root: Path, text: str = OWN) -> Manifest:
    (root / "own.toml").write_text(text)
    return Manifest.read(root / "own.toml")


def imported(root: Path) -> None:
    """Put the files of the part that is not on the hub where they belong."""
    (root / "own/unet").mkdir(parents=True)
    (root / "own/unet/config.json").write_text("{}")
    (root / "own/unet/better.safetensors").write_bytes(MODEL[::-1])


def test_what_is_not_named_is_the_base_s(root: Path) -> None:
    own, base = read(root), Manifest.read(root / "small.toml")
    assert (own.name, own.title, own.base) == ("own", "One of somebody's own", base)
    assert (own.defaults.clip_skip, own.defaults.guidance_scale, own.defaults.resolution) == (2, 9.0, 64)
    assert base.defaults.clip_skip == 1
    assert (own.limits, own.needs, own.safety_note) == (base.limits, base.needs, base.safety_note)
    assert [(part.name, part.bundle) for part in own.parts] == [
        ("unet", "own"), ("annotator/hed", "small"), ("vae", "own"),
    ]  # fmt: skip
    assert own.part("annotator/hed") == base.part("annotator/hed") != own.part("vae")


def test_each_layer_needs_the_files_of_one_folder(root: Path) -> None:
    below, above = read(root).manifests
    assert (below.name, below.needed_paths) == ("small", ("annotator/hed/hed.pth",))
    assert below.paths == Manifest.read(root / "small.toml").paths, "the base's lock has all of its files"
    assert (above.name, above.needed_paths) == (
        "own",
        ("unet/config.json", "unet/better.safetensors", "vae/vae.safetensors"),
    )
    assert [layer.name for layer in Manifest.read(root / "small.toml").manifests] == ["small"]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"small"\ntitle', '"large"\ntitle', "There is no bundle named 'large'"),
        ('"small"\ntitle', '"../small"\ntitle', "own.toml: extends: expected a name like 'sd15'"),
        ('"small"\ntitle', '"own"\ntitle', "extends: own extends own: extend that one"),
        ("clip_skip = 2", "clip_skp = 2", "own.toml: defaults.clip_skp: unknown key"),
        ("clip_skip = 2", "clip_skip = 0", "defaults.clip_skip: expected a number of at least 1"),
        ("[defaults]\n", "defaults = 3\n[other]\n", "defaults: expected a table, got 3"),
        ('revision = "main"\n', "", "parts[2].revision: missing"),
        ('name = "unet"\n', 'name = "unet"\nrevision = "main"\n', "parts[1].revision: unknown key"),
        ('title = "One of somebody\'s own"\n', "", "title: missing"),
    ],
)
def test_a_wrong_extending_manifest_is_refused(root: Path, old: str, new: str, message: str) -> None:
    assert old in OWN
    with pytest.raises(ManifestError) as caught:
        read(root, OWN.replace(old, new))
    assert message in str(caught.value)


def test_scripts_lock_fetch_and_verify_both_bundles(hub: Hub, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hub.publish("someone/vae", {"vae.safetensors": VAE})
    own = read(root)
    assert cli.main(["lock", "own"], root) == 1
    assert "cannot be locked without its files; missing: unet/config.json" in capsys.readouterr().err
    imported(root)
    assert [cli.main([command, "own"], root) for command in ("lock", "download", "verify")] == [0, 0, 0]
    printed = capsys.readouterr().out
    assert "own: 3 files, 0.00 GB, locked in weights/own.lock." in printed
    assert "small had no lock, so it was locked first." in printed
    assert "own: 4 files in place and verified." in printed and "own: 4 files have the locked size" in printed
    assert (root / "own/vae/vae.safetensors").read_bytes() == VAE
    assert (root / "small/annotator/hed/hed.pth").read_bytes() == HED
    assert not (root / "small/unet").exists(), "a part that is replaced was fetched"
    rows = {row.path: row.sha256 for row in Lock.read(root / "own.lock").files}
    assert list(rows) == ["unet/config.json", "unet/better.safetensors", "vae/vae.safetensors"]
    assert rows["unet/better.safetensors"] == hashlib.sha256(MODEL[::-1]).hexdigest()
    check(own, root)


def test_faults_in_both_folders_are_named_at_once_with_their_repairs(hub: Hub, root: Path) -> None:
    hub.publish("someone/vae", {"vae.safetensors": VAE})
    imported(root)
    own = read(root)
    assert [cli.main([command, "own"], root) for command in ("lock", "download")] == [0, 0]
    (root / "small/annotator/hed/hed.pth").write_bytes(HED[:-1])
    (root / "own/unet/better.safetensors").unlink()
    (root / "own/vae/vae.safetensors").write_bytes(VAE[::-1])
    message = (
        r"(?s)own cannot be used: 2 files.*  weights/small/annotator/hed/hed.pth: too short.*"
        r"  weights/own/unet/better.safetensors: missing.*"
        r"Repair: script/download-weights small.*Repair: script/download-weights own$"
    )
    with pytest.raises(WeightsError, match=message):
        check(own, root)
    with pytest.raises(WeightsError, match=r"vae.safetensors: wrong content"):
        verify(own, root)
    # The hub has the other two, but not the imported one.
    assert cli.main(["download", "own"], root) == 1
    assert (root / "small/annotator/hed/hed.pth").read_bytes() == HED
    assert (root / "own/vae/vae.safetensors").read_bytes() == VAE
    with pytest.raises(WeightsError, match=r"1 file is missing or wrong.\n  weights/own/unet/better.safetensors"):
        check(own, root)


def test_files_that_were_imported_are_repaired_by_importing_again(root: Path) -> None:
    text = OWN[: OWN.rindex("[[parts]]")]
    with pytest.raises(WeightsError, match="Repair: put the files into weights/own again, which are not on the hub"):
        check(read(root, text), root)
    imported = text + '\n[made]\nsha256 = "0"\n'
    with pytest.raises(WeightsError, match="Repair: script/import-checkpoint FILE --name own --replace, with the file"):
        check(read(root, imported), root)
    net = imported.replace('name = "unet"', 'name = "controlnet/hed"')
    assert net != imported
    with pytest.raises(WeightsError, match="FILE --name own --replace --conditioner hed, with the file"):
        check(read(root, net), root)
