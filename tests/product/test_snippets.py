"""The commands and programs of README.md and docs/ do what the text around them says."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support import ROOT
from support.requests_to_tiny import FAST, PHOTO
from support.server import Server

FIRST_PICTURE = ROOT / "examples/first-picture.png"


def snippet(file: str, language: str, word: str) -> str:
    """The only code block in `file` that is in `language` and contains `word`."""
    blocks = re.findall(rf"```{language}\n(.*?)```", (ROOT / file).read_text(encoding="utf-8"), re.DOTALL)
    (found,) = (block for block in blocks if word in block)
    return found


def test_the_first_command_makes_the_picture_shown(tmp_path: Path) -> None:
    """Up to rounding, which differs between processors."""
    command = snippet("README.md", "bash", "git clone").splitlines()[-1]
    assert command.startswith("script/predict ")
    made = subprocess.run(
        f"{command} -o {tmp_path}", shell=True, cwd=ROOT, capture_output=True, text=True, timeout=90, check=True
    )
    (picture,) = tmp_path.iterdir()
    assert picture.name == "0001.webp" and str(picture) in made.stdout
    assert "seed" in made.stderr and "tiny" in made.stderr
    shown, got = (np.asarray(Image.open(file).convert("RGB"), dtype=float) for file in (FIRST_PICTURE, picture))
    assert np.abs(shown - got).mean() < 2
    assert FIRST_PICTURE.relative_to(ROOT).as_posix() in (ROOT / "README.md").read_text(encoding="utf-8")


def start_in(folder: Path, command: list[str]) -> subprocess.Popen[str]:
    """Start a command in an empty folder that has the examples."""
    (folder / "examples").symlink_to(ROOT / "examples")
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def run_in(folder: Path, command: list[str]) -> str:
    """What a command writes to its standard error in such a folder."""
    return start_in(folder, command).communicate(timeout=90)[1]


def test_the_python_client_waits_and_writes_a_picture(server: Server, tmp_path: Path) -> None:
    program = snippet("docs/usage.md", "python", "/predictions").replace("5000", str(server.port))
    running = server.start(**(FAST | {"image": PHOTO, "num_inference_steps": 100, "num_outputs": 4, "resolution": 256}))
    deadline = time.monotonic() + 20
    while not isinstance(health := server.request("GET", "/health-check")[1], dict) or health["status"] != "BUSY":
        assert time.monotonic() < deadline, health
    client = start_in(tmp_path, [sys.executable, "-c", program])
    with pytest.raises(subprocess.TimeoutExpired):
        client.wait(timeout=1)
    running.stop()
    assert client.communicate(timeout=90)[1] == ""
    assert Image.open(tmp_path / "picture-0.webp").size == (192, 128)


def test_the_python_client_says_what_is_wrong(server: Server, tmp_path: Path) -> None:
    program = snippet("docs/usage.md", "python", "/predictions").replace("5000", str(server.port))
    said = run_in(tmp_path, [sys.executable, "-c", program.replace("scribble", "stroke")])
    (fault,) = json.loads(said)["detail"]
    assert fault["loc"][-1] == "conditioner" and "scribble" in fault["msg"]


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_the_shell_client_writes_a_picture(server: Server, tmp_path: Path) -> None:
    script = snippet("docs/usage.md", "bash", "/predictions").replace("script/serve &\n", "")
    assert run_in(tmp_path, ["bash", "-euc", script.replace("localhost:5000", f"127.0.0.1:{server.port}")]) == ""
    assert Image.open(tmp_path / "picture.webp").size == (192, 128)


def test_the_program_that_opens_a_model_makes_its_files(tmp_path: Path) -> None:
    program = snippet("docs/python.md", "python", "open_model")
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stderr == ""
    first, second = done.stdout.splitlines()
    assert first.startswith("2 (128, 128) {'preprocess': ")
    assert second.startswith("image: expected a PIL picture") and "'photo-that-is-not-there.jpg' is not there" in second
    assert Image.open(tmp_path / "house.png").size == Image.open(tmp_path / "strokes.png").size == (128, 128)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"control_map.webp", "picture_0.webp"}
