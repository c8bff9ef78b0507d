"""The log of setup(): a line per part with its file, a summary, and nothing else."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support import ROOT, memory

import predict
from controlnet.bundle import open_bundle
from controlnet.models.load_log import LoadLog
from controlnet.settings import Settings


def write(path: Path, size: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes(size))
    return path


def test_load_log_line_has_part_file_size_and_seconds(tmp_path: Path, capsys) -> None:
    log = LoadLog(tmp_path)
    small, large = write(tmp_path / "b/unet/config.json", 1_000_000), write(tmp_path / "b/unet/unet.bin", 2_500_000)
    with log("unet", [small, large]):
        pass
    other = write(tmp_path / "b/vit/vit.bin", 500_000)
    with log("annotator openpose", [large, small, other], mapped=True):
        pass
    assert re.sub(r"\d+\.\d\d s", "N s", capsys.readouterr().out).splitlines() == [
        "unet: b/unet/unet.bin, 3.5 MB, N s",
        "annotator openpose: b/unet/unet.bin and b/vit/vit.bin, 4.0 MB left in the file, N s",
    ]
    assert (log.parts, log.bytes, log.mapped) == (2, 3_500_000, 4_000_000)


def test_load_log_has_no_line_for_a_failed_load(tmp_path: Path, capsys) -> None:
    log = LoadLog(tmp_path)
    with pytest.raises(RuntimeError), log("unet", [write(tmp_path / "unet.bin", 1)]):
        raise RuntimeError
    assert capsys.readouterr().out == "" and log.parts == 0


def test_load_log_summary_has_parts_size_speed_and_memory(tmp_path: Path, capsys, monkeypatch) -> None:
    log = LoadLog(tmp_path)
    log.parts, log.bytes, log.mapped, log.started = 7, 3_000_000_000, 5_800_000_000, 100.0
    monkeypatch.setattr("controlnet.models.load_log.time.perf_counter", lambda: 106.0)
    log.summarise()
    monkeypatch.setattr("controlnet.models.load_log.time.perf_counter", lambda: 107.25)
    log.ready()
    summary, warm_up = capsys.readouterr().out.splitlines()
    left = "5.80 GB left in their files until used"
    assert summary.startswith(f"loaded: 7 parts, 3.00 GB in 6.0 s (0.50 GB/s), {left}; peak memory ")
    assert warm_up == "warm-up: 1.2 s"


@memory.needs_linux
def test_peak_memory_grows_by_what_is_allocated_and_stays() -> None:
    """In a process of its own: here, earlier tests may have had a high peak. A child begins with its parent's memory as
    its peak, so it allocates what is missing to that, and 0.6 GB."""
    code = """
from controlnet.models.load_log import peak_memory
from support import memory
def gigabytes():
    return float(peak_memory().split(" GB")[0])
before = gigabytes()
allocated = bytearray(int(before * 1e9) - memory.resident() + 600_000_000)
allocated[::4096] = b"x" * len(allocated[::4096])  # the system counts a page when it is used
during = gigabytes()
del allocated
print(during - before, gigabytes() - during)
"""
    environ = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environ)
    grown, shrunk = map(float, done.stdout.split())
    assert 0.55 < grown < 0.65 and shrunk == 0


def test_setup_logs_every_part_once_and_then_the_summary(tiny_root: Path, capsys, monkeypatch) -> None:
    monkeypatch.setattr(predict, "open_bundle", lambda: open_bundle(Settings(bundle="tiny"), tiny_root))
    capsys.readouterr()
    predictor = predict.Predictor()
    predictor.setup()
    out, errors = capsys.readouterr()
    lines = [line for line in out.splitlines() if " GB free, " not in line]  # the memory mode, on a GPU
    parts = [part.name for part in predictor.model.bundle.manifest.parts if not part.name.startswith("annotator/")]
    assert lines[0].startswith("bundle: tiny on ") and lines[-1].startswith("warm-up: ")
    assert lines[-2].startswith(f"loaded: {len(lines) - 3} parts, ")
    assert sorted(line.split(":")[0] for line in lines[1:-2] if not line.startswith("annotator ")) == sorted(parts)
    form = r"[a-z_/ ]+: tiny/\S+( and tiny/\S+)*, \d+\.\d MB( left in the file)?, \d+\.\d\d s"
    assert all(re.fullmatch(form, line) for line in lines[1:-2])
    assert errors == "" and not re.search("warn|ignored|deprecat|expected", out, re.IGNORECASE)
