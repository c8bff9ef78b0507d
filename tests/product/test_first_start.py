"""A rehearsal of the first start with sd15, from a fresh clone: one command fetches the weights, then every conditioner
makes a picture. A stand-in hub serves small random files under the published names, layouts and commits.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path

import cog
import numpy as np
import pytest
import torch
from PIL import Image
from random_bundle import write_bundle
from safetensors.torch import load, save
from support import ROOT
from support.hub import Hub
from support.small_bundle import point_at

import predict
from controlnet.bundle import open_bundle
from controlnet.models.loading import WeightsMismatch
from controlnet.settings import Settings
from controlnet.weights import cli
from controlnet.weights.lockfile import COMMIT, Lock
from controlnet.weights.manifest import WEIGHTS, Manifest
from controlnet.weights.published import read_published

SD15 = Manifest.read(WEIGHTS / "sd15.toml", {})
PHOTO = ROOT / "examples/cat.jpg"
SMALL = {"prompt": "a red ball", "resolution": 64, "num_inference_steps": 2, "seed": 0, "output_format": "png"}
SLOW = ("hed", "scribble", "normal", "lineart")
"""Their annotators take seconds on a CPU unless they see a small picture."""
MLSD = "lllyasviel/control_v11p_sd15_mlsd"


class Files(Mapping[str, bytes]):
    """The files of a repo by their paths in it, read when they are served. They have 430 MB together."""

    def __init__(self, paths: Mapping[str, Path]) -> None:
        self.paths = paths

    def __getitem__(self, name: str) -> bytes:
        path = self.paths[name]
        return path.read_bytes() if path.exists() else b"a file of an option that is off"

    def __iter__(self) -> Iterator[str]:
        return iter(self.paths)

    def __len__(self) -> int:
        return len(self.paths)


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    """Every repo of sd15's manifest, at its pinned commit or at its branch."""
    folder = tmp_path_factory.mktemp("hub")
    write_bundle("sd15", folder, small=True)
    repos: dict[tuple[str, str], dict[str, Path]] = {}
    for part in SD15.parts:
        files = repos.setdefault((part.repo, part.revision), {"README.md": folder / "README.md"})
        files |= {name: folder / "sd15" / path for path, name in zip(part.paths, part.repo_paths, strict=True)}
    with Hub() as hub:
        for (repo, revision), files in repos.items():
            hub.publish(repo, Files(files), revision, commit=revision if COMMIT.fullmatch(revision) else "")
        yield hub


@pytest.fixture(scope="module")
def clone(published: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What git has, without tiny's files."""
    clone = tmp_path_factory.mktemp("clone")
    for name in ("controlnet", "script"):
        shutil.copytree(ROOT / name, clone / name, ignore=shutil.ignore_patterns("__pycache__"))
    (clone / "script/bootstrap").write_text("#!/bin/bash\n")  # installs nothing: the environment is this one
    (clone / ".venv").symlink_to(sys.prefix)
    shutil.copy(ROOT / "predict.py", clone)
    weights_folder(clone, published)
    return clone


@pytest.fixture(scope="module")
def published(hub: Hub) -> str:
    """weights/sd15.published with the sizes and hashes of the small files."""
    rows = []
    for known in read_published(SD15, WEIGHTS).files:
        content = hub.commits[known.repo, known.commit][known.file]
        small = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        row = {name: small.get(name, value) for name, value in asdict(known).items() if value is not None}
        rows.append("{ " + ", ".join(f"{name} = {json.dumps(value)}" for name, value in row.items()) + " }")
    return f"files = [{', '.join(rows)}]\n"


def weights_folder(parent: Path, published: str) -> Path:
    """A folder of weights as in git, without tiny's."""
    root = parent / "weights"
    root.mkdir()
    shutil.copy(WEIGHTS / "sd15.toml", root)
    (root / "sd15.published").write_text(published)
    return root


def run(clone: Path, *command: str, **environ: str) -> subprocess.CompletedProcess[str]:
    environ = dict(os.environ) | {"OMP_NUM_THREADS": "1"} | environ
    return subprocess.run([clone / command[0], *command[1:]], cwd=clone, env=environ, capture_output=True, text=True)


@pytest.fixture(scope="module")
def started(hub: Hub, clone: Path) -> subprocess.CompletedProcess[str]:
    return run(clone, "script/download-weights", "sd15", HF_ENDPOINT=hub.url)


def test_one_command_locks_and_downloads(started: subprocess.CompletedProcess[str], clone: Path) -> None:
    assert started.returncode == 0, started.stderr
    first, second, *named, last = started.stdout.splitlines()
    unknown = read_published(SD15, WEIGHTS).unknown(SD15)
    assert first.startswith(f"sd15 had no lock, so it was locked first. sd15: {len(SD15.paths)} files, ")
    assert second == (
        f"{len(SD15.paths) - len(unknown)} files have the hash that weights/sd15.published lists."
        f" {len(unknown)} were not known beforehand, and are locked as the hub has them now:"
    )
    assert named == [f"  {path}" for path in unknown] and "  controlnet/mlsd/config.json" in named
    assert last == f"sd15: {len(SD15.needed_paths)} files in place and verified."
    lock = Lock.read(clone / "weights/sd15.lock")
    assert lock.mismatches(SD15) == []
    assert sorted(path.name for path in (clone / "weights").iterdir()) == [
        "sd15",
        "sd15.lock",
        "sd15.published",
        "sd15.toml",
    ]


def test_script_predict_makes_a_picture_after_it(started: subprocess.CompletedProcess[str], clone: Path) -> None:
    inputs = [part for name, value in SMALL.items() for part in ("-i", f"{name}={value}")]
    made = run(clone, "script/predict", "-i", f"image=@{PHOTO}", *inputs, CONTROLNET_BUNDLE="sd15")
    assert made.returncode == 0, made.stderr
    assert Image.open(clone / made.stdout.strip()).height == 64
    assert made.stderr.startswith("Loaded sd15 in ") and "bundle sd15 on " in made.stderr


@pytest.fixture(scope="module")
def predictor(started: subprocess.CompletedProcess[str], clone: Path) -> predict.Predictor:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(predict, "open_bundle", lambda: open_bundle(Settings(bundle="sd15"), clone / "weights"))
        predictor = predict.Predictor()
        predictor.setup()
    return predictor


@pytest.mark.parametrize("conditioner", predict.CONDITIONERS)
def test_every_conditioner_makes_a_picture_after_it(predictor: predict.Predictor, conditioner: str) -> None:
    inputs = SMALL | {"image": cog.Path(PHOTO), "conditioner": conditioner}
    inputs |= {"detect_resolution": 128} if conditioner in SLOW else {}
    inputs |= {"outpaint_right": 16} if conditioner == "inpaint" else {}
    (picture,) = predictor.predict(**inputs)
    assert np.asarray(Image.open(picture)).std() > 0


# ---- what can go wrong: each is one message that says what to do


def failure(root: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """The message of script/download-weights, which must fail and leave nothing."""
    point_at(hub, monkeypatch)
    return_code = cli.main(["download", "sd15"], root)
    printed = capsys.readouterr()
    assert return_code == 1 and not printed.out
    assert not (root / "sd15.lock").exists() and not list((root / "sd15").glob("[!.]*"))
    lines = printed.err.rpartition("\r")[2].splitlines()
    return lines[next(i for i, line in enumerate(lines) if line.startswith("weights/")) :]  # after what it does


def test_missing_name_is_one_message(hub: Hub, published: str, tmp_path: Path, monkeypatch, capsys) -> None:
    commit = hub.revisions[MLSD, "main"]
    names = {"diffusion_pytorch_model.fp16.safetensors": "diffusion_pytorch_model.bin"}
    renamed = {names.get(name, name): content for name, content in hub.commits[MLSD, commit].items()}
    monkeypatch.setitem(hub.commits, (MLSD, commit), renamed)
    assert failure(weights_folder(tmp_path, published), hub, monkeypatch, capsys) == [
        "weights/sd15.toml names files that are not on the hub:",
        f"  {MLSD} at main: no file diffusion_pytorch_model.fp16.safetensors",
        f"  {MLSD} at main has these weight files: diffusion_pytorch_model.bin",
        "Name files that are there in weights/sd15.toml, and run the same command again.",
    ]


@pytest.mark.parametrize("file", ["unet/diffusion_pytorch_model.fp16.safetensors", "tokenizer/merges.txt"])
def test_different_hash_is_one_message(hub, published: str, tmp_path, monkeypatch, capsys, file: str) -> None:
    (unet,) = (part for part in SD15.parts if part.name == "unet")
    files = hub.commits[unet.repo, unet.revision]
    content = files[file]
    root = weights_folder(tmp_path, published)
    monkeypatch.setitem(hub.commits, (unet.repo, unet.revision), dict(files) | {file: content[:-1] + b"?"})
    heading, line, advice = failure(root, hub, monkeypatch, capsys)
    assert heading == "weights/sd15.published lists what the files of sd15 are, and the hub has others:"
    expected, got = (hashlib.sha256(tail).hexdigest() for tail in (content, content[:-1] + b"?"))
    assert line == f"  {file} ({unet.repo}): expected sha256 {expected} (three public listings), got {got}"
    assert advice.startswith("Nothing was locked. If HF_ENDPOINT or a proxy is set, unset it and try again. ")


def test_extra_tensor_is_one_message(hub: Hub, started, clone: Path, tmp_path: Path, monkeypatch) -> None:
    """In a file whose hash is not known beforehand, so that it is downloaded."""
    commit = hub.revisions[MLSD, "main"]
    files = dict(hub.commits[MLSD, commit])
    name = "diffusion_pytorch_model.fp16.safetensors"
    files[name] = save(load(files[name]) | {"stray.weight": torch.zeros(2)}, metadata={"format": "pt"})
    monkeypatch.setitem(hub.commits, (MLSD, commit), files)
    root = Path(shutil.copytree(clone / "weights", tmp_path / "weights", copy_function=os.link))
    (root / "sd15.lock").unlink()
    point_at(hub, monkeypatch)
    assert cli.main(["download", "sd15"], root) == 0
    with pytest.raises(WeightsMismatch) as caught:
        open_bundle(Settings(bundle="sd15"), root).controlnets()
    assert str(caught.value) == (
        "mlsd does not fit its network (unexpected: stray.weight). Run script/verify-weights. If it finds no fault,"
        " install the versions in requirements.txt. If they are installed, the file is one that this project does not"
        " know: name an older commit as its part's revision in the manifest."
    )
