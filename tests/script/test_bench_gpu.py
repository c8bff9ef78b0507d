"""script/bench/gpu: each choice is measured in a process with its environment, and a choice that fails is named."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gpu_choices
import pytest
from gpu_choices import CHOICES, compare, markdown, measure
from support import ROOT


def result(ours: float, latents: float, **row: Any) -> dict[str, Any]:
    said = dict.fromkeys(("bundle", "device", "dtype", "torch", "date"), "x") | {"setup": 60.4}
    return said | {
        "rows": [{"name": "a", "plain": {"median": 2.0}, "ours": {"median": ours}, "latents": latents} | row]
    }


def test_the_choices_are_measured_in_turn_and_only_the_first_with_compiled_diffusers() -> None:
    asked: list[tuple[Mapping[str, str], Sequence[str]]] = []
    kept: list[int] = []
    names = ["CONTROLNET_CUDA_KERNELS=0", "default"]

    def run(*given: Any) -> dict[str, Any]:
        asked.append(given)
        return {"failed": str(len(asked))}

    results = compare(names, ["--side", "64"], lambda so_far: kept.append(len(so_far)), run)
    assert [choice for choice, _ in asked] == [CHOICES[name] for name in names] and kept == [1, 2]
    assert [options for _, options in asked] == [["--side", "64"], ["--side", "64", "--no-compiled"]]
    assert markdown(results).splitlines() == [f"{name}: {i + 1}" for i, name in enumerate(names)]


def test_the_table_has_a_column_for_each_choice_and_names_failures() -> None:
    shown = markdown(
        {
            "default": result(1.0, 1e-5, compiled={"median": 0.5}),
            "b": result(0.25, 3e-4),
            "c": {"failed": "SomeError: no"},
        }
    )
    assert shown.splitlines() == [
        "x, x, x, torch x, x",
        "",
        "|  | plain diffusers, s | default, s (share) | b, s (share) | diffusers with torch.compile, s (share) |",
        "| --- | --- | --- | --- | --- |",
        "| a | 2.00 | 1.00 (0.50) | 0.250 (0.12) | 0.500 (0.25) |",
        "| latents |  | 1e-05 apart | 3e-04 apart |  |",
        "| setup, without imports |  | 60 | 60 |  |",
        "",
        "c: SomeError: no",
    ]


def test_a_choice_has_its_own_environment_and_no_other(monkeypatch) -> None:
    names = {name for choice in CHOICES.values() for name in choice}
    for name in names:
        monkeypatch.setenv(name, "from outside")
    seen: list[Mapping[str, str]] = []

    def run(command: Sequence[str], env: Mapping[str, str], **_: Any) -> Any:
        seen.append({name: env[name] for name in names})
        Path(command[-1]).write_text(json.dumps({"rows": command[2:-2]}))
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(gpu_choices.subprocess, "run", run)
    for choice in CHOICES.values():
        assert measure(choice, ["--rounds", "1"]) == {"rows": ["--rounds", "1"]}
        assert seen[-1] == dict.fromkeys(names, "") | choice


def test_speed_reads_the_choice_and_its_error_is_kept(sd15_root: Path) -> None:
    """A real process. xformers is refused on a CPU before anything is loaded."""
    options = ["--bundle", "sd15", "--weights", str(sd15_root), "--rows", "step"]
    failed = measure(CHOICES["CONTROLNET_ATTENTION=xformers"], options)["failed"]
    assert failed.endswith("CONTROLNET_ATTENTION=xformers needs a GPU, and this is a CPU. Use sdpa.")


def test_without_a_card_it_says_so(monkeypatch) -> None:
    monkeypatch.setattr(gpu_choices.torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu"])
    with pytest.raises(SystemExit, match="needs a CUDA card"):
        gpu_choices.main()


def test_the_command_runs_without_installing_anything(tmp_path: Path) -> None:
    """As on a machine without a network: a copy of the scripts, whose bootstrap fails."""
    for name in ("script", "controlnet", "predict.py", "weights"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "script").unlink()
    shutil.copytree(ROOT / "script", tmp_path / "script", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "script/bootstrap").write_text("#!/bin/bash\nexit 7\n")
    command = [tmp_path / "script/bench/gpu", "--rows", "one", "step"]
    named = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {
        "BENCH_PYTHON": sys.executable
    }
    done = subprocess.run([*command, "--choices", "wrong"], env=named, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2 and "argument --choices: invalid choice: 'wrong'" in done.stderr
    del named["BENCH_PYTHON"]
    assert subprocess.run(command, env=named, cwd=tmp_path).returncode == 7
