"""How many threads PyTorch computes with: as the bundle says, unless the user says otherwise."""

import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch
from support import ROOT

from controlnet.bundle import use_threads
from controlnet.weights.manifest import Manifest

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(autouse=True)
def four_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("threads", "device", "used"),
    [
        (1, CPU, 1),
        (8, CPU, 4),  # no more than PyTorch would use
        (None, CPU, 4),
        (1, CUDA, 4),
    ],
)
def test_threads_are_those_of_the_bundle(threads: int | None, device: torch.device, used: int) -> None:
    use_threads(threads, device)
    assert torch.get_num_threads() == used


def test_tiny_computes_with_one_thread() -> None:
    assert Manifest.read(ROOT / "weights/tiny.toml").cpu_threads == 1
    code = "from controlnet.bundle import open_bundle; import torch; open_bundle(); print(torch.get_num_threads())"
    environ = {"CONTROLNET_BUNDLE": "tiny", "PYTHONPATH": str(ROOT)}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environ, check=True)
    assert result.stdout.splitlines()[-1] == "1"


def test_scripts_let_idle_threads_sleep() -> None:
    """OpenMP reads it when Python starts, so no code of ours could set it in time."""
    code = 'export PATH="$PWD/.venv/bin:$PATH"; source script/env; echo "$OMP_WAIT_POLICY"'
    for environ, policy in (({}, "PASSIVE"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE")):
        command = ["bash", "-c", code, "script/test"]
        result = subprocess.run(
            command, capture_output=True, text=True, env={"PATH": "/usr/bin:/bin"} | environ, cwd=ROOT, check=True
        )
        assert result.stdout.splitlines()[-1] == policy
