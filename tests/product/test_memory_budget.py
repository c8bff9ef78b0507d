"""No request takes the process more than 1.5 GB above idle: the worst pictures, in a process of their own."""

import json
import os
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
from support import ROOT
from support.memory import needs_linux
from support.picture_files import chunk, png, tiff

from controlnet.pictures.costs import MOST_METADATA

BUDGET = 1_500_000_000
HANGS = 3600
"""Seconds after which the process is taken to hang: a loaded machine takes many times the usual minute."""
SIDE = 8000
"""Pixels: 64 megapixels, the most that is accepted."""

CHILD = """
import inspect, json, sys
import cog, predict
from support import memory

predictor = predict.Predictor()
predictor.setup()
declared = inspect.signature(predict.Predictor.predict).parameters
usual = {name: value.default.default for name, value in declared.items() if hasattr(value.default, "default")}

def answer(sent):
    values = {name: cog.Path(value) if str(value).startswith("/") else value for name, value in sent.items()}
    try:
        return len(predictor.predict(**usual | {"prompt": "a house", "num_inference_steps": 1} | values))
    except ValueError as error:
        return str(error)

small, *requests = json.loads(sys.argv[1])
answer(small)
idle = memory.resident()
for request in requests:
    memory.reset_peak()
    said = answer(request)
    print("measured:" + json.dumps([memory.peak() - idle, said]), flush=True)
"""


def sparse(path: Path, header: bytes, size: int) -> str:
    """A file of `size` bytes: the header, then zeros that take no space on disk."""
    with path.open("wb") as file:
        file.write(header)
        file.truncate(len(header) + size)
    return str(path)


@pytest.fixture(scope="module")
def requests(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    folder = tmp_path_factory.mktemp("pictures")
    small, large, wide = folder / "small.png", folder / "large.png", folder / "wide.png"
    small.write_bytes(png(64, 64, bytes(64 * 193)))
    whole = png(SIDE, SIDE, bytes(SIDE * (1 + 4 * SIDE)), colour=6)
    large.write_bytes(whole)
    crammed = folder / "crammed.png"
    texts = b"".join(chunk(b"zTXt", b"%d\0\0" % i + zlib.compress(bytes(15 * 2**20), 1)) for i in range(4))
    crammed.write_bytes(whole[:33] + chunk(b"eXIf", bytes(MOST_METADATA - 2**20)) + texts + whole[33:])
    wide.write_bytes(png(SIDE, 2000, bytes(2000 * (1 + 3 * SIDE))))
    pixels = SIDE * SIDE
    floats = sparse(folder / "float.tif", tiff(SIDE, SIDE, bits=32, sample_format=3), 4 * pixels)
    white = sparse(folder / "white.tif", tiff(SIDE, SIDE, white_is_zero=True), pixels)
    tiled = folder / "tiled.tif"
    tiled.write_bytes(tiff(64, 64, tile=40_000).ljust(4096, b"\0"))
    masks = dict.fromkeys(("mask", "control_mask", "control_mask_2", "control_mask_3"), white)
    pictures = {"image": str(large), "image_2": floats, "image_3": str(large), "init_image": str(large)}
    references = {"reference_image": str(large), "reference_mask": white}
    return {
        "small": {"image": str(small)},
        "all ten": pictures | masks | references | {
            "conditioner": "hed", "conditioner_2": "canny", "conditioner_3": "tile", "detect_resolution": 2048,
            "resolution": 512,
        },
        "three networks": pictures | masks | {
            "conditioner": "hed", "conditioner_2": "depth", "conditioner_3": "normal", "detect_resolution": 2048,
            "resolution": 1024,
        },
        "crammed": pictures | masks | {"image": str(crammed), "init_image": str(crammed), "resolution": 512},
        "filled": {"image": str(wide), "width": 64, "height": 2048, "resize_mode": "fill", "map_only": True},
        "tiled": {"image": str(tiled)},
    }  # fmt: skip


@needs_linux
def test_the_worst_pictures_stay_within_the_budget(requests: dict[str, dict]) -> None:
    environ = os.environ | {"CONTROLNET_BUNDLE": "tiny", "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    command = [sys.executable, "-c", CHILD, json.dumps(list(requests.values()))]
    done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=HANGS)
    lines = [line.removeprefix("measured:") for line in done.stdout.splitlines() if line.startswith("measured:")]
    measured = dict(zip(list(requests)[1:], map(json.loads, lines), strict=True))
    assert [measured[name][1] for name in measured if name != "tiled"] == [1, 1, 1, 1], measured
    assert "in a TIFF's tile, got 40000×40000" in measured["tiled"][1]
    assert max(peak for peak, _ in measured.values()) < BUDGET, measured
    print(measured)
