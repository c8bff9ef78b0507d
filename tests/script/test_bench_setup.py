"""script/bench/setup: both ways load the same, and a row has the measurements or the reason that there are none."""

import argparse
import importlib.util
import re
import subprocess
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from diffusers import ControlNetModel
from random_bundle import write_bundle

from controlnet.bundle import Bundle, open_bundle
from controlnet.models.loading import load_pretrained
from controlnet.serving.server import ROOT
from controlnet.settings import Settings, SettingsError


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


def test_setup_and_from_pretrained_load_the_same_parts(bench: ModuleType, weights: Path, capsys) -> None:
    loaded = {}
    for way in bench.WAYS:
        figures = bench.measure(way, "tiny", weights)
        out, errors = capsys.readouterr()
        loaded[way] = sorted(line.split(":")[0] for line in errors.splitlines() if " MB" in line)
        assert out == "" and figures["seconds"] > 0 and re.fullmatch(r"\d+\.\d\d GB", figures["memory"])
        cuda = torch.cuda.is_available()
        assert figures["precision"] == ("float16" if cuda else "float32")
        assert figures["nets"] == ("cuda" if cuda else "files" if way == "setup()" else "cpu")
    ours, plain = loaded.values()
    assert ours == plain and "controlnet/canny" in ours


def test_plain_from_pretrained_loads_equal_weights(bench: ModuleType, weights: Path) -> None:
    bundle = open_bundle(Settings(bundle="tiny"), weights)
    plain = bench.PlainBundle(bundle.manifest, bundle.root, bundle.device, bundle.dtype)
    net = plain.model(ControlNetModel, "controlnet/canny", mapped=True)
    assert net.dtype == bundle.dtype
    ours = load_pretrained(type(net), bundle.folder("controlnet/canny"), bundle.device, bundle.dtype)
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), ours.parameters(), strict=True))


def options(weights: Path) -> argparse.Namespace:
    return argparse.Namespace(bundle="tiny", weights=weights)


def test_a_row_is_measured_in_a_separate_process(bench: ModuleType, weights: Path, monkeypatch) -> None:
    commands = []

    def run(command: list[str], **_):
        commands.append(command)
        figures = '{"seconds": 2.0, "memory": "1.50 GB", "precision": "float16", "nets": "cuda"}'
        return SimpleNamespace(returncode=0, stdout=f"noise\n{figures}\n", stderr="")

    monkeypatch.setattr(subprocess, "run", run)
    file = weights / "four"
    file.write_bytes(bytes(4_000_000))
    row = bench.row("setup()", True, options(weights), [file])
    assert row == "| setup() | cold | 2.0 | 0.00 | 1.50 GB | float16 | cuda |"
    assert commands[0][-2:] == ["--way", "setup()"] and str(weights) in commands[0]


def test_a_failed_measurement_is_a_row_with_its_status(bench: ModuleType, weights: Path, monkeypatch, capsys) -> None:
    failed = SimpleNamespace(returncode=-9, stdout="", stderr="what went wrong")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: failed)
    assert bench.row("setup()", False, options(weights), []) == "| setup() | warm | failed with status -9 | | | | |"
    assert "what went wrong" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")
def test_a_measurement_without_enough_memory_is_not_run(bench: ModuleType, weights: Path, monkeypatch) -> None:
    """Without memory the system might end another program."""
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("was started"))
    monkeypatch.setattr(bench, "ROOM", 1e15)
    row = bench.row("plain from_pretrained", False, options(weights), [])
    assert row == "| plain from_pretrained | warm | not run: needs 1000000 GB | | | | |"


def test_low_memory_mode_keeps_controlnets_in_main_memory(bench: ModuleType, weights: Path) -> None:
    bundle = open_bundle(Settings(bundle="tiny"), weights)
    low = Bundle(bundle.manifest, bundle.root, bundle.device, bundle.dtype, low_memory=True)
    assert bench.where_nets_are(low) == "main memory (low-memory mode)"


def test_environment_variables_reach_the_measurement(bench: ModuleType, weights: Path, monkeypatch) -> None:
    monkeypatch.setenv("CONTROLNET_DTYPE", "nonsense")
    with pytest.raises(SettingsError):
        bench.measure("setup()", "tiny", weights)
