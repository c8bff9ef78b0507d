"""script/bench/setup: both ways load the same, and a row says what was measured or why nothing was."""

import argparse
import importlib.util
import subprocess
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from diffusers import ControlNetModel
from random_bundle import write_bundle

from controlnet.bundle import open_bundle
from controlnet.loading import load_pretrained
from controlnet.serving import ROOT


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    spec = importlib.util.spec_from_file_location("setup_times", ROOT / "script/bench/setup_times.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("weights")
    write_bundle("tiny", root, small=True)
    return root


def test_both_ways_load_every_part_and_only_ours_warms_up(bench: ModuleType, weights: Path, capsys) -> None:
    loaded = {}
    for way in bench.WAYS:
        figures = bench.measure(way, "tiny", weights)
        out, errors = capsys.readouterr()
        loaded[way] = sorted(line.split(":")[0] for line in errors.splitlines() if " MB" in line)
        assert out == "" and figures["seconds"] > 0 and figures["memory"].startswith(("0.", "1.", "2."))
    ours, plain = loaded.values()
    assert ours == plain and "controlnet/canny" in ours


def test_the_plain_way_is_the_libraries_own_in_the_devices_precision(bench: ModuleType, weights: Path) -> None:
    bundle = open_bundle({"CONTROLNET_BUNDLE": "tiny"}, weights)
    plain = bench.PlainBundle(bundle.manifest, bundle.root, bundle.device, bundle.dtype)
    net = plain.model(ControlNetModel, "controlnet/canny", mapped=True)
    assert net.dtype == bundle.dtype
    ours = load_pretrained(type(net), bundle.folder("controlnet/canny"), bundle.device, bundle.dtype)
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), ours.parameters(), strict=True))


def options(weights: Path) -> argparse.Namespace:
    return argparse.Namespace(bundle="tiny", weights=weights)


def test_a_row_is_measured_in_a_process_of_its_own(bench: ModuleType, weights: Path, monkeypatch) -> None:
    commands = []

    def run(command: list[str], **_):
        commands.append(command)
        return SimpleNamespace(returncode=0, stdout='noise\n{"seconds": 2.0, "memory": "1.50 GB"}\n', stderr="")

    monkeypatch.setattr(subprocess, "run", run)
    file = weights / "four"
    file.write_bytes(bytes(4_000_000))
    assert bench.row("setup()", True, options(weights), [file]) == "| setup() | cold | 2.0 | 0.00 | 1.50 GB |"
    assert commands[0][-2:] == ["--way", "setup()"] and str(weights) in commands[0]


def test_a_way_that_fails_is_a_row_that_says_so(bench: ModuleType, weights: Path, monkeypatch, capsys) -> None:
    failed = SimpleNamespace(returncode=-9, stdout="", stderr="what went wrong")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: failed)
    assert bench.row("setup()", False, options(weights), []) == "| setup() | warm | failed with status -9 | | |"
    assert "what went wrong" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU loads half precision as it is")
def test_what_would_not_fit_is_not_tried(bench: ModuleType, weights: Path, monkeypatch) -> None:
    """The system might end another program than the one that took too much."""
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("was started"))
    monkeypatch.setattr(bench, "ROOM", 1e15)
    row = bench.row("plain from_pretrained", False, options(weights), [])
    assert row == "| plain from_pretrained | warm | not run: needs 1000000 GB | | |"
