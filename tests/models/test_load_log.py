"""What setup() says: a line per part with its file, the sum, and nothing else."""

import re
from pathlib import Path

import pytest
from random_bundle import write_bundle

import predict
from controlnet.bundle import open_bundle
from controlnet.models.load_log import LoadLog, peak_memory


def write(path: Path, size: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes(size))
    return path


def test_a_line_says_what_from_where_how_much_and_how_long(tmp_path: Path, capsys) -> None:
    log = LoadLog(tmp_path)
    small, large = write(tmp_path / "b/unet/config.json", 1_000_000), write(tmp_path / "b/unet/unet.bin", 2_500_000)
    with log("unet", [small, large]):
        pass
    other = write(tmp_path / "b/vit/vit.bin", 500_000)
    with log("annotator openpose", [large, small, other], mapped=True):
        pass
    assert re.sub(r"\d+\.\d\d s", "N s", capsys.readouterr().out).splitlines() == [
        "unet: b/unet/unet.bin, 3.5 MB, N s",
        "annotator openpose: b/unet/unet.bin and b/vit/vit.bin, 4.0 MB left there, N s",
    ]
    assert (log.parts, log.bytes, log.mapped) == (2, 3_500_000, 4_000_000)


def test_what_could_not_be_loaded_is_not_said_to_be(tmp_path: Path, capsys) -> None:
    log = LoadLog(tmp_path)
    with pytest.raises(RuntimeError), log("unet", [write(tmp_path / "unet.bin", 1)]):
        raise RuntimeError
    assert capsys.readouterr().out == "" and log.parts == 0


def test_the_sum_says_parts_size_speed_and_memory(tmp_path: Path, capsys, monkeypatch) -> None:
    log = LoadLog(tmp_path)
    log.parts, log.bytes, log.mapped, log.started = 7, 3_000_000_000, 5_800_000_000, 100.0
    monkeypatch.setattr("controlnet.models.load_log.time.perf_counter", lambda: 106.0)
    log.summarise()
    monkeypatch.setattr("controlnet.models.load_log.time.perf_counter", lambda: 107.25)
    log.ready()
    said = capsys.readouterr().out.splitlines()
    left = "5.80 GB left in their files until used"
    assert said[0].startswith(f"loaded: 7 parts, 3.00 GB in 6.0 s (0.50 GB/s), {left}; peak memory ")
    assert said[1:] == ["warm-up: 1.2 s"]


def test_peak_memory_is_at_least_what_was_held() -> None:
    held = bytearray(300_000_000)
    held[::4096] = b"x" * len(held[::4096])
    assert 0.3 < float(peak_memory().split(" GB")[0]) < 64


def test_setup_names_every_part_of_the_bundle_once_and_ends_with_the_sum(tmp_path: Path, capsys, monkeypatch) -> None:
    write_bundle("tiny", tmp_path, small=True)
    monkeypatch.setattr(predict, "open_bundle", lambda: open_bundle({"CONTROLNET_BUNDLE": "tiny"}, tmp_path))
    capsys.readouterr()
    predictor = predict.Predictor()
    predictor.setup()
    out, errors = capsys.readouterr()
    said = [line for line in out.splitlines() if " GB free, " not in line]  # the mode, on a GPU
    parts = [part.name for part in predictor.bundle.manifest.parts if not part.name.startswith("annotator/")]
    assert said[0].startswith("bundle: tiny on ") and said[-1].startswith("warm-up: ")
    assert said[-2].startswith(f"loaded: {len(said) - 3} parts, ")
    assert sorted(line.split(":")[0] for line in said[1:-2] if not line.startswith("annotator ")) == sorted(parts)
    form = r"[a-z_/ ]+: tiny/\S+( and tiny/\S+)*, \d+\.\d MB( left there)?, \d+\.\d\d s"
    assert all(re.fullmatch(form, line) for line in said[1:-2])
    assert errors == "" and not re.search("warn|ignored|deprecat|expected", out, re.IGNORECASE)
