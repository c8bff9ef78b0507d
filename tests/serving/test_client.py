"""script/predict as a command, with a toy predictor: on a server of its own, and on one that runs already."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support import toy_predictor
from support.server import Server

from controlnet.serving import client
from controlnet.serving.api import Api
from controlnet.serving.server import ROOT

HEAVY = {"torch", "numpy", "PIL", "diffusers", "transformers", "cv2", "scipy", "pydantic", "cog", "coglet"}
ENVIRON = dict(os.environ) | toy_predictor.ENVIRON | {"PYTHONPATH": str(ROOT)}


# ---- with a server of its own


def run(root: Path, folder: Path, environ: dict[str, str] | None = None, verbose: bool = False, **inputs: Any) -> int:
    for name, value in (toy_predictor.ENVIRON | (environ or {})).items():
        os.environ[name] = value
    return client.run(inputs, folder, os.environ, root, verbose)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("CONTROLNET_BUNDLE", "TOY_SETUP"):
        monkeypatch.setenv(name, "")  # restored after the test
    return toy_predictor.write(tmp_path)


def test_the_client_writes_files_and_is_quiet(root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(root, root / "out", prompt="hello", count=2, mode="bar") == 0
    printed = capfd.readouterr()
    assert printed.out == f"{root}/out/0001-1.webp\n{root}/out/0001-2.jpg\n"
    loaded, *others, last = printed.err.splitlines()
    assert re.fullmatch(r"Loaded toy in \d+\.\d s", loaded)
    assert others == ["ignored: loud (only for echo)", "100%|###| 2/2"]
    assert re.fullmatch(r"seed 4294967295, \d+\.\d s", last)
    assert (root / "out/0001-2.jpg").read_bytes() == b"hello"


def test_verbose_shows_the_log_of_setup_and_server(root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(root, root / "out", verbose=True, prompt="hello", mode="bar") == 0
    printed = capfd.readouterr().err
    for line in ("loading part 1 of 2", "seed: 4294967295", "ignored: loud (only for echo)", "100%|###| 2/2"):
        assert line in printed.splitlines()
    assert "[coglet] Worker starting setup" in printed.splitlines()
    assert "http://" not in printed, "only script/serve prints its URL"


def test_the_client_prints_a_422_and_writes_nothing(root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(root, root / "out", prompt="x", count=9, mode="draw") == 1
    assert capfd.readouterr().err.splitlines()[1:] == [
        "count: 9 is greater than the maximum of 4",
        'mode: "draw" is not one of ["echo","fail","bar","type"]',
    ]
    assert not (root / "out").exists()


def test_the_client_prints_the_error_of_a_failed_prediction(root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(root, root / "out", prompt="x", mode="fail") == 1
    printed = capfd.readouterr()
    assert printed.err.splitlines()[1:] == ["a 1x1 picture is too small; send one of at least 16 pixels."]
    assert printed.out == ""


def test_the_client_prints_the_error_of_a_failed_setup(root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(root, root / "out", {"TOY_SETUP": "fail"}, prompt="x") == 1
    assert capfd.readouterr().err == "unet is missing; script/download-weights fetches it.\n"
    assert run(root, root / "out", {"TOY_SETUP": "fail"}, verbose=True, prompt="x") == 1
    assert "loading part 1 of 2\n" in capfd.readouterr().err


def test_quiet_failures_are_one_sentence(root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    source = toy_predictor.SOURCE.replace('"unet is missing;', '"2 files are missing:\\n  a/b\\n  c/d\\nRepair:')
    (root / "predict.py").write_text(source)
    assert run(root, root / "out", {"TOY_SETUP": "fail"}, prompt="x") == 1
    assert capfd.readouterr().err == "2 files are missing: Repair: script/download-weights fetches it.\n"
    assert run(root, root / "out", {"TOY_SETUP": "fail"}, verbose=True, prompt="x") == 1
    assert "2 files are missing:\n  a/b\n  c/d\nRepair: " in capfd.readouterr().err


def test_files_are_written_before_the_server_is_stopped(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []
    stop = client.Server.stop
    monkeypatch.setattr(
        client.Server, "stop", lambda self: (seen.append((root / "out/0001.webp").exists()), stop(self))
    )
    assert run(root, root / "out", prompt="hello") == 0
    assert seen == [True]


def started(code: str, *arguments: str, cwd: Path) -> subprocess.Popen[str]:
    imports = "import os, sys, pathlib; from controlnet.serving import client; from controlnet.serving.api import Api"
    command = [sys.executable, "-c", f"{imports}\n{code}", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=cwd, env=ENVIRON)


def test_ctrl_c_cancels_the_prediction_and_stops_the_server(root: Path) -> None:
    inputs = {"prompt": "x", "seconds": 60}
    process = started(
        f"sys.exit(client.run({inputs}, pathlib.Path('out'), os.environ, pathlib.Path(sys.argv[1])))",
        str(root),
        cwd=root,
    )
    assert process.stderr is not None
    assert process.stderr.readline().startswith("Loaded toy in "), "it has stopped"
    time.sleep(0.3)  # until the prediction has started
    process.send_signal(signal.SIGINT)
    _, after = process.communicate(timeout=10)
    assert process.returncode == 130
    assert after == "cleaning up after CancelationException\nCancelled.\n"


# ---- with a server that runs already


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(toy_predictor.ENVIRON, toy_predictor.write(tmp_path_factory.mktemp("toy"))) as server:
        yield server


def test_a_running_server_is_used(toy: Server, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert client.run_at(Api(toy.url), {"prompt": "hello", "mode": "bar"}, tmp_path) == 0
    printed = capfd.readouterr()
    assert printed.out == f"{tmp_path}/0001.webp\n"
    *log, last = printed.err.splitlines()
    assert log == ["ignored: loud (only for echo)", "100%|###| 2/2"]
    assert last.startswith("seed 4294967295, ")
    assert (tmp_path / "0001.webp").read_bytes() == b"hello"


def test_errors_of_a_running_server_are_printed(toy: Server, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert client.run_at(Api(toy.url), {"prompt": "x", "count": 9}, tmp_path) == 1
    assert client.run_at(Api(toy.url), {"prompt": "x", "mode": "fail"}, tmp_path) == 1
    assert capfd.readouterr().err.splitlines() == [
        "count: 9 is greater than the maximum of 4",
        "a 1x1 picture is too small; send one of at least 16 pixels.",
    ]


def test_the_log_of_a_running_server_is_shown_while_it_works(
    toy: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    seen: dict[str, float] = {}
    show = client.Display.show

    def recorded(self: client.Display, source: str, text: str) -> None:
        seen.setdefault(text, time.monotonic())
        show(self, source, text)

    monkeypatch.setattr(client.Display, "show", recorded)
    assert client.run_at(Api(toy.url), {"prompt": "x", "mode": "bar", "seconds": 1.5}, tmp_path) == 0
    assert time.monotonic() - seen["ignored: loud (only for echo)"] > 0.7
    assert capfd.readouterr().err.splitlines()[:-1] == ["ignored: loud (only for echo)", "100%|###| 2/2"]


def test_a_busy_server_is_waited_for_and_then_given_up(
    toy: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(client, "BUSY_SECONDS", 1.5)
    running = toy.start(prompt="x", seconds=60)
    time.sleep(0.2)
    assert client.run_at(Api(toy.url), {"prompt": "y"}, tmp_path) == 1
    running.stop()
    assert capfd.readouterr().err.splitlines() == [
        "The server is busy. Trying again for up to 2 s.",
        f"The server at {toy.url} is busy. Try again later.",
    ]


def test_ctrl_c_cancels_on_a_running_server(toy: Server, tmp_path: Path) -> None:
    process = started(
        "sys.exit(client.run_at(Api(sys.argv[1]), {'prompt': 'x', 'seconds': 60}, pathlib.Path('out')))",
        toy.url,
        cwd=tmp_path,
    )
    while toy.health()["status"] != "BUSY":
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=10)
    assert (process.returncode, out, err.splitlines()[-1]) == (130, "", "Cancelled.")
    assert toy.health()["status"] == "READY"
    assert toy.run(prompt="next").files == [b"next"]


# ---- the command line


def command(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "controlnet.serving.client", *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        env=ENVIRON | {"COLUMNS": "80"},
    )


def test_help_shows_each_input_within_80_columns() -> None:
    shown = command("-h")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert "  conditioner: canny, hed, " in shown.stdout
    assert max(map(len, shown.stdout.splitlines())) <= 80


def test_wrong_options_are_one_line_and_a_status(tmp_path: Path) -> None:
    wrong = command("--folder", str(tmp_path), "-i", "prompt=x", "-i", "steps=3")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert wrong.stderr == "There is no input 'steps'; script/predict -h lists the inputs.\n"
    nobody = command("--folder", str(tmp_path), "--url", "http://127.0.0.1:9", "-i", "prompt=x")
    assert (nobody.returncode, nobody.stdout) == (1, "")
    assert nobody.stderr == "Nothing listens at http://127.0.0.1:9. Start a server with script/serve.\n"
    assert list(tmp_path.iterdir()) == []


def test_inputs_are_checked_with_the_schema_of_the_server(
    toy: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(client, "ROOT", toy.root)  # the toy does not require an image
    monkeypatch.chdir(tmp_path)
    options = ["--folder", str(tmp_path), "--url", toy.url, "-i", "prompt=@@home"]
    assert client.main([*options, "-i", "conditioner=canny"]) == 2
    assert client.main([*options, "-i", "count=2"]) == 0
    assert (tmp_path / "output/0001-2.jpg").read_bytes() == b"@home"
    assert capfd.readouterr().err.startswith("There is no input 'conditioner'")


def test_the_client_imports_no_library_of_models(toy: Server, tmp_path: Path) -> None:
    code = (
        "client.ROOT = pathlib.Path(sys.argv[2])\n"
        "status = client.main(['--url', sys.argv[1], '-i', 'prompt=hello'])\n"
        "print(*sys.modules)\n"
        "sys.exit(status)"
    )
    process = started(code, toy.url, str(toy.root), cwd=tmp_path)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 0, err
    file, modules = out.splitlines()
    assert file == "output/0001.webp"
    assert "controlnet.serving.server" in modules.split()
    assert not HEAVY & {name.split(".")[0] for name in modules.split()}
