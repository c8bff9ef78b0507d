"""The real server with a toy predictor."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from support import ROOT, toy_predictor
from support.server import Server

from controlnet.serving import server as serving
from controlnet.serving.api import ServerError


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(toy_predictor.ENVIRON, toy_predictor.write(tmp_path_factory.mktemp("toy"))) as server:
        yield server


def alive(pid: int) -> bool:
    """Whether the process runs. A zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def gone_within(seconds: float, *pids: int) -> bool:
    deadline = time.monotonic() + seconds
    while any(map(alive, pids)):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def test_the_server_validates_inputs_with_the_schema(toy: Server) -> None:
    answer = toy.run(prompt=1, mode="draw", count=9)
    assert answer.http_status == 422
    assert answer.error.splitlines() == [
        "count: 9 is greater than the maximum of 4",
        'mode: "draw" is not one of ["echo","fail","bar","type"]',
        'prompt: 1 is not of type "string"',
    ]
    assert toy.run().error == "prompt: Field required"


def test_output_files_have_their_types(toy: Server) -> None:
    answer = toy.run(prompt="hello", count=3)
    assert answer.status == "succeeded"
    assert answer.files == [b"hello"] * 3
    assert answer.endings == [".webp", ".jpg", ".png"]
    assert answer.metrics["seed"] == 4294967295


def test_an_upload_is_a_path_and_a_local_path_is_a_string(toy: Server) -> None:
    assert toy.run(prompt="x", image="data:image/png;base64,aGVsbG8=").files == [b"hello"]
    assert toy.run(prompt="x", image="data:image/png;base64,aGVsbG8=", mode="type").files[0].startswith(b"cog.types ")
    for local in ("/etc/hostname", "file:///etc/hostname"):
        answer = toy.run(prompt="x", image=local, mode="type")
        assert answer.files == [f"builtins {local}".encode()]  # predict() has to refuse it


def test_a_failed_prediction_has_the_message_of_the_exception(toy: Server) -> None:
    answer = toy.run(prompt="x", mode="fail")
    assert (answer.http_status, answer.status) == (200, "failed")
    assert answer.error == "a 1x1 picture is too small; send one of at least 16 pixels."
    assert toy.run(prompt="again").files == [b"again"]


def test_a_running_prediction_is_cancelled_at_once(toy: Server) -> None:
    running = toy.start(prompt="x", seconds=30)
    assert running.stop() < 1
    assert running.result().status == "canceled"
    deadline = time.monotonic() + 5  # the log may be read after the answer
    while "cleaning up after CancelationException" not in toy.logs:
        assert time.monotonic() < deadline, toy.logs
        time.sleep(0.02)
    assert toy.run(prompt="next").files == [b"next"]
    assert running.cancel() == 404


def test_a_failed_setup_has_the_message_of_the_exception(tmp_path: Path) -> None:
    environ = toy_predictor.ENVIRON | {"TOY_SETUP": "fail"}
    with pytest.raises(ServerError, match=r"^unet is missing; script/download-weights fetches it\.$"):
        Server(environ, toy_predictor.write(tmp_path)).__enter__()


def test_a_predictor_that_cog_cannot_read_is_not_served(tmp_path: Path) -> None:
    toy_predictor.write(tmp_path)
    source = (tmp_path / "predict.py").read_text()
    (tmp_path / "predict.py").write_text(source.replace("le=4", "le=MAX"))
    with pytest.raises(ServerError, match="input 'count': expected a literal, got MAX"):
        Server(toy_predictor.ENVIRON, tmp_path).__enter__()


def test_a_port_in_use_is_a_one_line_error() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        command = [sys.executable, "-m", "controlnet.serving.server", "--host=127.0.0.1", f"--port={port}"]
        result = subprocess.run(command, capture_output=True, text=True, cwd=serving.ROOT)
    assert result.returncode == 1
    assert result.stderr == f"Cannot listen on port {port}: address already in use. Try script/serve -p PORT.\n"


class Uploads(BaseHTTPRequestHandler):
    """Takes every PUT and keeps the bodies in the server's `bodies`."""

    def do_PUT(self) -> None:
        self.server.bodies.append(self.rfile.read(int(self.headers["Content-Length"])))  # type: ignore[attr-defined]
        self.send_response(200)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


def test_serve_prints_its_url_and_uploads_outputs(tmp_path: Path) -> None:
    toy_predictor.write(tmp_path)
    with ThreadingHTTPServer(("127.0.0.1", 0), Uploads) as sink:
        sink.bodies = []  # type: ignore[attr-defined]
        threading.Thread(target=sink.serve_forever, daemon=True).start()
        upload_url = f"http://127.0.0.1:{sink.server_port}/files/"
        port = serving.free_port()
        command = [sys.executable, "-m", "controlnet.serving.server", f"--port={port}", f"--upload-url={upload_url}"]
        environ = dict(os.environ) | toy_predictor.ENVIRON | {"PYTHONPATH": str(serving.ROOT)}
        server = subprocess.Popen(
            command, cwd=tmp_path, env=environ, text=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        try:
            assert server.stdout is not None
            url = server.stdout.readline()
            assert url == f"http://127.0.0.1:{port}\n"
            client = Server(toy_predictor.ENVIRON, tmp_path)
            client.port = port  # not entered: it only sends requests
            while client.health().get("status") in (None, "STARTING"):
                time.sleep(0.05)
            answer = client.predict({"prompt": "hello"})[1]
        finally:
            server.terminate()  # unlike a kill, it ends the worker too
            server.communicate()
            sink.shutdown()
    assert sink.bodies == [b"hello"]  # type: ignore[attr-defined]
    assert [one.startswith(upload_url) for one in answer["output"]] == [True]


def test_stopping_a_busy_server_ends_it_and_its_worker(tmp_path: Path) -> None:
    with Server(toy_predictor.ENVIRON, toy_predictor.write(tmp_path)) as server:
        worker = int(server.run(prompt="x").metrics["worker"])
        server.start(prompt="x", seconds=60)
        time.sleep(0.1)
        started = time.monotonic()
        server.stop(patience=0.2)
    assert time.monotonic() - started < 2
    assert gone_within(1, server.process.pid, worker)


def test_killing_the_client_ends_the_server_and_its_worker(tmp_path: Path) -> None:
    toy_predictor.write(tmp_path)
    program = (
        "import sys, pathlib; from support import ROOT, toy_predictor; from support.server import Server\n"
        "with Server(toy_predictor.ENVIRON, pathlib.Path(sys.argv[1])) as server:\n"
        "    print(server.process.pid, int(server.run(prompt='x').metrics['worker']), flush=True)\n"
        "    server.run(prompt='x', seconds=60)\n"
    )
    search = os.pathsep.join([str(serving.ROOT), str(serving.ROOT / "tests")])
    client = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
        env=dict(os.environ) | {"PYTHONPATH": search},
    )
    assert client.stdout is not None
    server, worker = (int(pid) for pid in client.stdout.readline().split())
    time.sleep(0.1)
    assert alive(server) and alive(worker)
    os.kill(client.pid, signal.SIGKILL)
    client.wait()
    client.stdout.close()
    assert gone_within(5, server, worker)


@pytest.mark.parametrize(
    ("command", "variable", "value"),
    [
        ("serve", "CONTROLNET_DTYPE", "half"),
        ("serve", "CONTROLNET_BUNDLE", "../tiny"),
        ("batch examples out", "CONTROLNET_DTYPE", "half"),
        ("batch examples out", "CONTROLNET_BUNDLE", "../tiny"),
        ("predict -i prompt=x -i image=@examples/doodle.png", "CONTROLNET_DTYPE", "half"),
        ("predict -i prompt=x -i image=@examples/doodle.png", "CONTROLNET_BUNDLE", "../tiny"),
        ("verify-weights tiny", "CONTROLNET_DTYPE", "half"),
    ],
)
def test_a_wrong_variable_is_one_sentence_of_every_command(command: str, variable: str, value: str) -> None:
    name, *options = command.split()
    environ = os.environ | {variable: value}
    done = subprocess.run(
        [ROOT / "script" / name, *options], cwd=ROOT, env=environ, capture_output=True, text=True, timeout=300
    )
    assert done.returncode in (1, 2) and "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith(f"{variable}: expected ")
