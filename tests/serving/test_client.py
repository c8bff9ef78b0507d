"""script/predict: its functions alone, and the whole command with a toy predictor."""

import base64
import itertools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from support import toy_predictor

from controlnet.serving import client
from controlnet.serving.client import ArgumentError, describe_faults, describe_inputs, parse_inputs, write_outputs
from controlnet.serving.schema import openapi_schema
from controlnet.serving.server import ROOT

SCHEMAS = openapi_schema(toy_predictor.SOURCE)["components"]["schemas"]


def data_url(content: bytes, mime: str) -> str:
    return f"data:{mime};base64,{base64.b64encode(content).decode()}"


# ---- inputs


@pytest.mark.parametrize(
    ("pair", "value"),
    [
        ("prompt=a=b, 1", "a=b, 1"),
        ("prompt=7", "7"),
        ("prompt=", ""),
        ("count=3", 3),
        ("count=three", "three"),
        ("seconds=1e-1", 0.1),
        ("loud=True", True),
        ("loud=false", False),
        ("loud=yes", "yes"),
        ("mode=fail", "fail"),
        ("image=https://example.com/a.png", "https://example.com/a.png"),
        ("image=data:image/png;base64,aGVsbG8=", "data:image/png;base64,aGVsbG8="),
    ],
)
def test_input_values_get_their_type_from_the_schema(pair: str, value: Any) -> None:
    name = pair.partition("=")[0]
    got = parse_inputs([pair] if name == "prompt" else ["prompt=x", pair], SCHEMAS)[name]
    assert (got, type(got)) == (value, type(value))


@pytest.mark.parametrize("name", ["a.png", "a.JPG", "a.webp", "a.gif", "a.tiff", "a.bmp", "noending"])
def test_an_input_file_becomes_a_data_url_with_its_mime_type(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    types = {"png": "png", "jpg": "jpeg", "webp": "webp", "gif": "gif", "tiff": "tiff", "bmp": "bmp"}
    image_type = types.get(name.lower().rpartition(".")[2])
    (tmp_path / name).write_bytes(b"\x00\xff")
    monkeypatch.chdir(tmp_path)
    url = parse_inputs(["prompt=x", f"image=@{name}"], SCHEMAS)["image"]
    assert url == data_url(b"\x00\xff", f"image/{image_type}" if image_type else "application/octet-stream")


def test_a_text_input_is_read_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "prompt.txt").write_text("ein Häuschen\n", encoding="utf-8")
    assert parse_inputs([f"prompt=@{tmp_path}/prompt.txt"], SCHEMAS) == {"prompt": "ein Häuschen\n"}


def test_a_text_file_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    (tmp_path / "prompt.txt").write_bytes(b"\xff")
    with pytest.raises(ArgumentError, match=r"'prompt': expected text in UTF-8\.$"):
        parse_inputs([f"prompt=@{tmp_path}/prompt.txt"], SCHEMAS)


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        (["prompt=x", "mod=echo"], "There is no input 'mod'; did you mean mode?"),
        (["prompt=x", "zzz=1"], "There is no input 'zzz'; the inputs are prompt, image, mode, count, seconds, loud."),
        (["prompt=x", "prompt=y"], "The input 'prompt' is given twice."),
        (["prompt"], "-i takes name=value, got 'prompt'."),
        (["prompt=@none.txt"], "Cannot read 'none.txt' for the input 'prompt': No such file or directory."),
        (["count=2"], "Missing: -i prompt=..."),
        (["prompt=x", "image=a.png"], "The input 'image' is a file: write -i image=@a.png or give a URL."),
        (["prompt=x", "image=@none.png"], "Cannot read 'none.png' for the input 'image': No such file or directory."),
    ],
)
def test_a_wrong_argument_is_a_one_line_message(pairs: list[str], message: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        parse_inputs(pairs, SCHEMAS)
    assert str(caught.value) == message


def test_help_lists_every_input() -> None:
    assert describe_inputs(SCHEMAS).splitlines() == [
        "  prompt (required): string",
        "  image: @file or URL",
        '  mode: echo|fail|bar|type, default "echo"',
        "  count: integer, default 1",
        "  seconds: number, default 0",
        "  loud: boolean, default false",
    ]


# ---- outputs


def test_output_files_are_numbered_and_never_overwritten(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "folder"
    png, webp = data_url(b"1", "image/png"), data_url(b"2", "image/webp")
    assert [path.name for path in write_outputs([png], folder)] == ["0001.png"]
    assert [path.name for path in write_outputs([png, webp], folder)] == ["0002-1.png", "0002-2.webp"]
    (folder / "0041.txt").write_text("mine")
    (folder / "notes.txt").write_text("mine")
    assert [path.name for path in write_outputs([data_url(b"3", "image/jpeg")], folder)] == ["0042.jpg"]
    assert (folder / "0001.png").read_bytes() == b"1"
    assert (folder / "0002-2.webp").read_bytes() == b"2"


def test_poses_are_written_as_poses_json(tmp_path: Path) -> None:
    """Only the pictures are counted, and a second request keeps the first one's poses."""
    png, poses = data_url(b"1", "image/png"), data_url(b"{}", "application/json")
    names = [[path.name for path in write_outputs(urls, tmp_path)] for urls in ([png, poses], [png, poses, png])]
    assert names == [["0001.png", "poses.json"], ["0002-1.png", "poses-0002.json", "0002-2.png"]]
    (tmp_path / "poses-0041.json").write_text("mine")
    assert [path.name for path in write_outputs([png, poses], tmp_path)] == ["0042.png", "poses-0042.json"]
    assert (tmp_path / "poses-0041.json").read_text() == "mine"


def test_each_fault_of_a_422_is_a_line() -> None:
    faults = [
        {"loc": ["body", "input", "count"], "msg": "9 is greater than the maximum of 4"},
        {"loc": ["body", "input", "prompt"], "msg": "Field required"},
    ]
    assert describe_faults({"detail": faults}) == [
        "count: 9 is greater than the maximum of 4",
        "prompt: Field required",
    ]


@pytest.mark.parametrize(
    ("terminal", "shown"),
    [
        (False, "a\n100%|###| 2/2\nb\n"),
        (True, "a\n\r\x1b[K 50%|## | 1/2\r\x1b[K100%|###| 2/2\nb\n"),
    ],
)
def test_a_progress_bar_stays_on_one_line(terminal: bool, shown: str, capsys: pytest.CaptureFixture[str]) -> None:
    display = client.Display()
    display.terminal = terminal
    for line in ("a", " 50%|## | 1/2", "100%|###| 2/2", "b"):
        display.show("prediction", line)
    display.show("coglet", "Starting prediction")
    assert capsys.readouterr().err == shown


# ---- the whole command


def run(root: Path, folder: Path, environ: dict[str, str] | None = None, **inputs: Any) -> int:
    for name, value in (toy_predictor.ENVIRON | (environ or {})).items():
        os.environ[name] = value
    return client.run(inputs, folder, os.environ, root)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("CONTROLNET_BUNDLE", "TOY_SETUP"):
        monkeypatch.setenv(name, "")  # restored after the test
    return toy_predictor.write(tmp_path)


def test_the_client_writes_files_and_prints_seed_and_bundle(root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(root, root / "out", prompt="hello", count=2, mode="bar") == 0
    printed = capfd.readouterr()
    assert printed.out == f"{root}/out/0001-1.webp\n{root}/out/0001-2.jpg\n"
    assert "loading part 1 of 2\nloading part 2 of 2\n100%|###| 2/2\n" in printed.err
    assert "http://" not in printed.err, "only script/serve prints its URL"
    assert printed.err.splitlines()[-1].startswith("seed 4294967295, bundle toy, ")
    assert (root / "out/0001-2.jpg").read_bytes() == b"hello"


def test_the_client_prints_a_422_and_writes_nothing(root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(root, root / "out", prompt="x", count=9, mode="draw") == 1
    assert capfd.readouterr().err.splitlines()[-2:] == [
        "count: 9 is greater than the maximum of 4",
        'mode: "draw" is not one of ["echo","fail","bar","type"]',
    ]
    assert not (root / "out").exists()


def test_the_client_prints_the_error_of_a_failed_prediction(root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(root, root / "out", prompt="x", mode="fail") == 1
    printed = capfd.readouterr()
    assert printed.err.splitlines()[-1] == "a 1x1 picture is too small; send one of at least 16 pixels."
    assert printed.out == ""


def test_the_client_prints_the_error_of_a_failed_setup(root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(root, root / "out", {"TOY_SETUP": "fail"}, prompt="x") == 1
    lines = capfd.readouterr().err.splitlines()
    assert lines == ["loading part 1 of 2", "unet is missing; script/download-weights fetches it."]


def test_ctrl_c_cancels_the_prediction_and_stops_the_server(root: Path) -> None:
    program = (
        "import sys, pathlib, os; from controlnet.serving import client\n"
        "inputs = {'prompt': 'x', 'seconds': 60}\n"
        "sys.exit(client.run(inputs, pathlib.Path('out'), os.environ, pathlib.Path(sys.argv[1])))\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(root)],
        stderr=subprocess.PIPE,
        text=True,
        cwd=root,
        env=dict(os.environ) | toy_predictor.ENVIRON | {"PYTHONPATH": str(ROOT)},
    )
    assert process.stderr is not None
    lines = iter(process.stderr.readline, "")
    before = list(itertools.takewhile(lambda line: line != "loading part 2 of 2\n", lines))
    assert process.poll() is None, before
    time.sleep(0.3)  # until the prediction has started
    process.send_signal(signal.SIGINT)
    after = process.stderr.read()
    process.stderr.close()
    assert process.wait(10) == 130
    assert after == "cleaning up after CancelationException\nCancelled.\n"


def test_the_command_line_has_help_and_refuses_unknown_inputs(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "controlnet.serving.client", "--folder", str(tmp_path)]
    help_text = subprocess.run([*command, "-h"], cwd=ROOT, capture_output=True, text=True)
    assert help_text.returncode == 0
    assert "conditioner: canny|" in help_text.stdout
    wrong = subprocess.run([*command, "-i", "prompt=x", "-i", "steps=3"], cwd=ROOT, capture_output=True, text=True)
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert wrong.stderr.startswith("There is no input 'steps'; ")
    assert list(tmp_path.iterdir()) == []
