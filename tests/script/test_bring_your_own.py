"""docs/bring-your-own.md: its manifests and commands, run in their order with random files of the published layout."""

import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path

import import_checkpoint
import pytest
from random_bundle import SIZES, write_bundle, write_part
from support import ROOT
from support.documents import blocks
from support.hub import Hub
from support.ldm_names import controlnet_file, single_file
from support.own_bundles import folder_with, opened, picture
from support.small_bundle import point_at

from controlnet.weights import cli
from controlnet.weights.files import sha256
from controlnet.weights.lockfile import Lock, LockedFile, LockedRepo
from controlnet.weights.manifest import Manifest, Part

pytestmark = pytest.mark.filterwarnings("ignore:The configuration file of the unet:FutureWarning")
BLOCKS = blocks("docs/bring-your-own.md")
BASES = ("sd15", "sdxl")


def test_the_page_does_what_it_says(sd15_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = folder_with(sd15_root, tmp_path)
    write_bundle("sdxl", root, small=True, conditioners=("canny",))
    for base in BASES:
        lock_as_it_is(Manifest.read(root / f"{base}.toml"), root)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    prepare_downloads(tmp_path / "Downloads", tmp_path)
    shown = ("canny", "scribble", "ip2p", "lineart")
    of_bases = {"sd15": {name: picture(opened(root, "sd15"), name) for name in shown}}
    of_bases["sdxl"] = {"canny": picture(opened(root, "sdxl"))}
    pictures: dict[str, dict[str, bytes]] = {}
    with Hub() as hub:
        point_at(hub, monkeypatch)
        for block in BLOCKS:
            text = block.text
            if block.language == "toml":
                (root / f"{tomllib.loads(text)['name']}.toml").write_text(text)
                prepare(Manifest.read(root / f"{tomllib.loads(text)['name']}.toml"), root, hub)
                continue
            for command, arguments, environ in commands(text):
                if command == "predict":
                    name, conditioner = environ["CONTROLNET_BUNDLE"], arguments[-1]
                    pictures[name] = {conditioner: picture(opened(root, name), conditioner)}
                elif command == "import-checkpoint":
                    arguments[0] = str(Path(arguments[0]).expanduser())
                    assert import_checkpoint.main(arguments, root) == 0
                else:
                    assert cli.main([command.removesuffix("-weights"), *arguments], root) == 0
    assert list(pictures) == ["realistic", "juggernaut", "sd15-mse", "lines", "qrcode", "xl-canny", "mine"]
    for name, made in pictures.items():
        base = Manifest.read(root / f"{name}.toml").base
        assert base and base.name == ("sdxl" if name in ("juggernaut", "xl-canny") else "sd15")
        for conditioner, pixels in made.items():
            assert pixels != of_bases[base.name][conditioner], name
        assert cli.main(["verify", name], root) == 0


def commands(text: str) -> Iterator[tuple[str, list[str], dict[str, str]]]:
    """The scripts that a block of shell commands calls: name, arguments and environment.

    Of script/predict the arguments are its conditioner, last.
    """
    for line in text.splitlines():
        words = shlex.split(line)
        environ = dict(word.split("=") for word in words if re.match(r"[A-Z_]+=", word))
        script, *arguments = words[len(environ) :]
        assert (ROOT / script).exists(), line
        if script == "script/predict":
            assert all(Path(name).name == "code.png" or (ROOT / name).exists() for name in re.findall(r"=@(\S+)", line))
            arguments = [word.partition("=")[2] for word in arguments if word.startswith("conditioner=")]
        yield script.removeprefix("script/"), arguments, environ


def lock_as_it_is(manifest: Manifest, root: Path) -> None:
    """Lock the files on disk, which no hub has, so that nothing is fetched for them."""
    repos = sorted({(part.repo, part.revision) for part in manifest.parts})
    files = [(path, root / manifest.name / path) for path in manifest.paths]
    rows = [LockedFile(path, *(f.stat().st_size, sha256(f)) if f.exists() else (1, "0" * 64)) for path, f in files]
    commits = tuple(LockedRepo(repo, revision, "0" * 40) for repo, revision in repos)
    Lock(manifest.name, commits, tuple(rows)).write(root / f"{manifest.name}.lock")


def prepare_downloads(downloads: Path, folder: Path) -> None:
    """Write checkpoints and a ControlNet, each in one file, as if they had been downloaded."""
    downloads.mkdir()
    for base, file, last in (
        ("sd15", "realistic_v5", "controlnet/lineart"),
        ("sdxl", "juggernaut_xl", "text_encoder_2"),
    ):
        for name in ("unet", "vae", "text_encoder", last):
            weights = "model" if name.startswith("text_encoder") else "diffusion_pytorch_model"
            part = Part(name, "any", ("config.json", f"{weights}.fp16.safetensors"), "", "")
            write_part(part, folder / base, SIZES[base][True], seed=len(name))
        single_file(folder / base, downloads / f"{file}.safetensors")
    controlnet_file(folder / "sd15/controlnet/lineart", downloads / "control_lines.safetensors")


def prepare(manifest: Manifest, root: Path, hub: Hub) -> None:
    """Put the random files of a manifest's own part on the hub, or where somebody's own files belong."""
    (part,), sizes = manifest.manifests[-1].parts, SIZES[manifest.family][True]
    if not part.repo:
        return write_part(part, root / part.bundle, sizes, seed=7)
    write_part(part, root.parent / "hub" / part.bundle, sizes, seed=8)
    folder = root.parent / "hub" / part.bundle / part.name
    hub.publish(part.repo, {file: (folder / file).read_bytes() for file in part.files})
    return None
