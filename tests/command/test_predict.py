"""script/predict as a command: in its own process with tiny, and with a toy predictor on a server that runs already."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import toy_predictor
from support.server import Server

from controlnet.command import predict, remote
from controlnet.command.output_files import FolderError
from controlnet.serving.api import ServerError
from controlnet.serving.server import ROOT

HEAVY = {"torch", "numpy", "PIL", "diffusers", "transformers", "cv2", "scipy", "pydantic", "cog", "coglet"}
TINY = {"CONTROLNET_BUNDLE": "tiny", "PYTHONPATH": str(ROOT), "COLUMNS": "80"}
DOODLE = ("-i", "prompt=a house", "-i", f"image=@{ROOT}/examples/doodle.png", "-i", "conditioner=scribble")
QUICK = (*DOODLE, "-i", "resolution=64", "-i", "num_inference_steps=2", "-i", "seed=7")


@pytest.fixture(autouse=True)
def working_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command changes it, and the next test would be left in a folder that is gone."""
    monkeypatch.chdir(ROOT)


def started(*arguments: str, cwd: Path = ROOT) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "controlnet.command.predict", "--folder", str(cwd), *arguments]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=dict(os.environ) | TINY
    )


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


# ---- in its own process


def test_a_picture_is_written_and_little_is_said(tmp_path: Path) -> None:
    poses = ("-i", "conditioner_2=openpose", "-i", "return_pose_json=true", "-i", "low_threshold=50")
    code, out, err = ended(started(*QUICK, *poses, "-o", "out", cwd=tmp_path))
    assert (code, out) == (0, "out/0001-poses.json\nout/0001.webp\n"), err
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["0001-poses.json", "0001.webp"]
    loaded, *lines, bar, last = err.splitlines()
    assert re.fullmatch(r"Loaded tiny in \d+\.\d s", loaded)
    assert lines[0] == "ignored: low_threshold (only for canny)" and not any("seed" in line for line in lines)
    assert bar.startswith("100%|") and bar.endswith("picture 1/1]")
    assert re.fullmatch(r"seed 7, bundle tiny on \w+, \d+\.\d s", last)


def test_a_wrong_request_is_one_sentence_after_the_whole_log(tmp_path: Path) -> None:
    code, out, err = ended(started("-v", *QUICK, "-i", "num_outputs=nine", cwd=tmp_path))
    assert (code, out) == (1, "")
    assert err.splitlines()[-1].startswith("num_outputs: expected an integer, at least 1 and at most 4; got 'nine'.")
    assert any(line.startswith("unet: ") for line in err.splitlines())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_it_paints_cancels(signum: int, tmp_path: Path) -> None:
    size = ("-i", "resolution=64")  # the log has a picture's bar when it is full, so the first must soon be
    many = ("-i", "num_inference_steps=100", "-i", "num_outputs=4")
    process = started(*DOODLE, *size, *many, "-v", cwd=tmp_path)
    assert process.stderr is not None
    while not re.match(r" *[1-9]\d*%\|", line := process.stderr.readline()):
        assert line, "it has ended"
    process.send_signal(signum)
    code, out, err = ended(process)
    assert (code, out, err.splitlines()[-1]) == (130, "", "Cancelled.")
    assert "Traceback" not in err and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("seconds", [1, 3])
def test_ctrl_c_while_it_loads_cancels(seconds: float, tmp_path: Path) -> None:
    process = started(*DOODLE, cwd=tmp_path)
    time.sleep(seconds)
    process.send_signal(signal.SIGINT)
    assert ended(process) == (130, "", "Cancelled.\n")


SWALLOWED = """
import os, signal, sys
from controlnet.api import opened
from controlnet.command import predict

def swallow(*arguments, **named):
    try:
        os.kill(os.getpid(), signal.SIGINT)
    except BaseException:
        print("swallowed", file=sys.__stderr__)
    return loaded(*arguments, **named)

loaded = getattr(opened.OpenModel, sys.argv[1])
setattr(opened.OpenModel, sys.argv[1], swallow)
sys.exit(predict.main(sys.argv[2:]))
"""


@pytest.mark.parametrize("where", ["__init__", "make"])
def test_an_interrupt_that_a_library_swallowed_cancels(where: str, tmp_path: Path) -> None:
    command = [sys.executable, "-c", SWALLOWED, where, "--folder", str(tmp_path), *QUICK]
    run = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=dict(os.environ) | TINY, timeout=300)
    lines = run.stderr.splitlines()
    assert (run.returncode, run.stdout, lines[-1]) == (130, "", "Cancelled.")
    assert "swallowed" in lines and list(tmp_path.iterdir()) == []
    assert any(line.startswith("Loaded") for line in lines) == (where == "make")


@pytest.fixture
def toy_made(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder for script/predict, whose predictions are made of nothing."""
    monkeypatch.setenv("CONTROLNET_BUNDLE", "tiny")
    monkeypatch.setattr(predict, "make", lambda inputs, display: ([(b"x", ".png")], {}))
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    return tmp_path


def test_a_folder_that_cannot_be_written_is_found_before_painting(
    toy_made: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(predict, "make", lambda *_: pytest.fail("it has painted"))
    (toy_made / "file").touch()
    for folder in ("file", "file/in/it"):
        assert predict.main(["--folder", str(toy_made), *DOODLE, "-o", folder]) == 1
        assert capfd.readouterr().err == f"Cannot write to {folder}: {toy_made}/file is not a folder.\n"
    monkeypatch.setattr(os, "access", lambda *_: False)  # tests may run as root, to whom nothing is closed
    assert predict.main(["--folder", str(toy_made), *DOODLE, "-o", "new/folder"]) == 1
    assert capfd.readouterr().err == f"Cannot write to new/folder: {toy_made} is closed to you.\n"
    assert [path.name for path in toy_made.iterdir()] == ["file"]


@pytest.mark.parametrize(
    ("error", "quiet", "verbose"),
    [
        (ServerError("a: one.\nb: two."), "a: one.\nb: two.", "a: one.\nb: two."),
        (
            FolderError("2 files are missing:\n  a/b\n  c/d\nRepair:"),
            "2 files are missing: Repair:",
            "2 files are missing:\n  a/b\n  c/d\nRepair:",
        ),
        (OSError("no such library"), "no such library", "Traceback (most recent call last):"),
    ],
)
def test_a_failure_is_one_sentence_unless_verbose(
    error: Exception, quiet: str, verbose: str, toy_made: Path, monkeypatch: pytest.MonkeyPatch, capfd
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(predict, "make", fail)
    assert predict.main(["--folder", str(toy_made), *DOODLE]) == 1
    assert capfd.readouterr().err == f"{quiet}\n"
    assert predict.main(["--folder", str(toy_made), "-v", *DOODLE]) == 1
    assert capfd.readouterr().err.startswith(f"{verbose}\n")


# ---- with a server that runs already


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(toy_predictor.ENVIRON, toy_predictor.write(tmp_path_factory.mktemp("toy"))) as server:
        yield server


@pytest.fixture
def asked(toy: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The options that ask the toy, to which an image is not required, from an empty folder."""
    monkeypatch.setattr(predict, "ROOT", toy.root)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.chdir(tmp_path)
    return ["--folder", str(tmp_path), "--url", toy.url]


def test_a_running_server_is_used(asked: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert predict.main([*asked, "-i", "prompt=hello", "-i", "mode=bar", "-i", "count=2"]) == 0
    printed = capfd.readouterr()
    assert printed.out == "output/0001-1.webp\noutput/0001-2.jpg\n"
    *log, last = printed.err.splitlines()
    assert log == ["ignored: loud (only for echo)", "100%|###| 2/2"]
    assert re.fullmatch(r"seed 4294967295, \d+\.\d s", last)
    assert (tmp_path / "output/0001-2.jpg").read_bytes() == b"hello"


def test_errors_of_a_running_server_are_printed(asked: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    assert predict.main([*asked, "-i", "prompt=x", "-i", "count=9", "-i", "mode=draw"]) == 1
    assert predict.main([*asked, "-i", "prompt=x", "-i", "mode=fail"]) == 1
    assert capfd.readouterr().err.splitlines() == [
        "count: 9 is greater than the maximum of 4",
        'mode: "draw" is not one of ["echo","fail","bar","type"]',
        "a 1x1 picture is too small; send one of at least 16 pixels.",
    ]


def test_the_log_of_a_running_server_is_shown_while_it_works(
    asked: list[str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    seen: dict[str, float] = {}
    show = predict.Display.show

    def recorded(self: predict.Display, text: str) -> None:
        seen.setdefault(text, time.monotonic())
        show(self, text)

    monkeypatch.setattr(predict.Display, "show", recorded)
    assert predict.main([*asked, "-i", "prompt=x", "-i", "mode=bar", "-i", "seconds=1.5"]) == 0
    assert time.monotonic() - seen["ignored: loud (only for echo)"] > 0.7
    assert capfd.readouterr().err.splitlines()[:-1] == ["ignored: loud (only for echo)", "100%|###| 2/2"]


def test_a_busy_server_is_waited_for_and_then_given_up(
    toy: Server, asked: list[str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(remote, "BUSY_SECONDS", 1.5)
    running = toy.start(prompt="x", seconds=60)
    time.sleep(0.2)
    assert predict.main([*asked, "-i", "prompt=y"]) == 1
    running.stop()
    assert capfd.readouterr().err.splitlines() == [
        "The server is busy. Trying again for up to 2 s.",
        f"The server at {toy.url} is busy. Try again later.",
    ]


AT_TOY = """
import pathlib, sys
from controlnet.command import predict
predict.ROOT = pathlib.Path(sys.argv[1])
code = predict.main(sys.argv[2:])
print(*sys.modules)
sys.exit(code)
"""


def at_toy(toy: Server, asked: list[str], *pairs: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", AT_TOY, str(toy.root), *asked, *(part for pair in pairs for part in ("-i", pair))]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=dict(os.environ) | TINY
    )


def test_ctrl_c_cancels_on_a_running_server(toy: Server, asked: list[str]) -> None:
    process = at_toy(toy, asked, "prompt=x", "seconds=60")
    while toy.health()["status"] != "BUSY":
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    code, _, err = ended(process)
    assert (code, err.splitlines()[-1]) == (130, "Cancelled.")
    assert toy.health()["status"] == "READY"
    assert toy.run(prompt="next").files == [b"next"]


def test_no_library_of_models_is_imported_to_ask_a_server(toy: Server, asked: list[str]) -> None:
    code, out, err = ended(at_toy(toy, asked, "prompt=hello"))
    assert code == 0, err
    file, modules = out.splitlines()
    assert file == "output/0001.webp"
    assert "controlnet.command.remote" in modules.split()
    assert not HEAVY & {name.split(".")[0] for name in modules.split()}


def test_inputs_are_checked_with_the_schema_of_the_server(
    asked: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert predict.main([*asked, "-i", "prompt=@@home", "-i", "conditioner=canny"]) == 2
    assert predict.main([*asked, "-i", "prompt=@@home"]) == 0
    assert (tmp_path / "output/0001.webp").read_bytes() == b"@home"
    assert capfd.readouterr().err.startswith("There is no input 'conditioner'")


def test_no_line_of_a_log_is_shown_twice(toy: Server, capfd: pytest.CaptureFixture[str]) -> None:
    log = remote._Log(toy, "none", predict.Display())
    for text in ("one\ntwo\nthr", "one\ntwo\nthree\r\nfour\n", "one\ntwo\nfo"):
        log.catch_up(text)
    log.stop()
    assert capfd.readouterr().err == "one\ntwo\nthree\nfour\n"


# ---- the command line


def test_help_shows_each_input_within_80_columns() -> None:
    code, out, err = ended(started("-h"))
    assert (code, err) == (0, "")
    assert "  conditioner: canny, hed, " in out
    assert max(map(len, out.splitlines())) <= 80


def test_wrong_options_are_one_line_and_a_status(tmp_path: Path) -> None:
    wrong = ended(started("-i", "prompt=x", "-i", "steps=3", cwd=tmp_path))
    assert wrong == (2, "", "There is no input 'steps'; script/predict -h lists the inputs.\n")
    nobody = ended(started("--url", "http://127.0.0.1:9", "-i", "prompt=x", cwd=tmp_path))
    assert nobody == (1, "", "Nothing listens at http://127.0.0.1:9. Start a server with script/serve.\n")
    assert list(tmp_path.iterdir()) == []
