"""Cog's HTTP interface as a client uses it, on a server with a toy predictor and on servers that are not ours."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from support import toy_predictor
from support.server import Server

from controlnet.serving.api import Api, ServerError, describe_faults, is_starting, plain_error, read_output
from controlnet.serving.server import free_port


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(toy_predictor.ENVIRON, toy_predictor.write(tmp_path_factory.mktemp("toy"))) as server:
        yield server


Answers = Callable[[str, str, bytes], tuple[int, Any]]
"""answers(method, path, body): the status and what is sent, as JSON unless it is a str."""


@contextmanager
def fake(answers: Answers) -> Iterator[str]:
    """The URL of a server that answers with `answers`."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            status, answer = answers(self.command, self.path, body)
            content = answer if isinstance(answer, str) else json.dumps(answer)
            self.send_response(status)
            self.send_header("Content-Type", "text/html" if isinstance(answer, str) else "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content.encode())

        do_PUT = do_POST = do_GET

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize(
    ("url", "secure", "host", "port", "prefix"),
    [
        ("http://localhost:5000", False, "localhost", 5000, ""),
        ("http://localhost/", False, "localhost", 80, ""),
        ("https://example.com/models/one/", True, "example.com", 443, "/models/one"),
        ("http://[::1]:5000", False, "::1", 5000, ""),
    ],
)
def test_a_url_may_be_https_and_have_a_prefix(url: str, secure: bool, host: str, port: int, prefix: str) -> None:
    api = Api(url)
    assert (api.secure, api.host, api.port, api.prefix) == (secure, host, port, prefix)


@pytest.mark.parametrize(
    "url", ["", "localhost:5000", "5000", "ftp://a", "http://", "http://a:b", "http://a/?b=c", "http://h\u00f4te:5000"]
)
def test_what_is_not_a_url_is_refused(url: str) -> None:
    with pytest.raises(ServerError, match=r"^Expected a server's URL such as http://localhost:5000, got "):
        Api(url)


def test_a_server_behind_a_prefix_is_used(toy: Server) -> None:
    def forward(method: str, path: str, body: bytes) -> tuple[int, Any]:
        assert path.startswith("/here/")
        return toy.request(method, path.removeprefix("/here"), body or None)

    with fake(forward) as url:
        api = Api(f"{url}/here")
        assert {"Input", "mode"} <= {*api.schemas(["prompt"])}
        assert api.predict({"prompt": "x"})[1]["status"] == "succeeded"


def refusal(url: str, required: tuple[str, ...] = ("prompt",)) -> str:
    with pytest.raises(ServerError) as caught:
        Api(url).schemas(required)
    return str(caught.value)


def test_nothing_listens() -> None:
    url = f"http://127.0.0.1:{free_port()}"
    assert refusal(url) == f"Nothing listens at {url}. Start a server with script/serve."


def test_a_name_that_does_not_resolve() -> None:
    assert refusal("http://nothing.invalid").startswith("Cannot reach http://nothing.invalid: ")


def test_https_to_a_server_without_tls(toy: Server) -> None:
    assert refusal(f"https://127.0.0.1:{toy.port}").startswith(f"Cannot reach https://127.0.0.1:{toy.port}: ")


@pytest.mark.parametrize(
    "answer",
    [
        (200, "<html>hello</html>"),
        (404, {"error": "not found"}),
        (200, {"status": "READY"}),  # for /openapi.json, too
        (200, {"status": "READY", "components": {"schemas": {"Input": {"required": ["text"]}}}}),
        (200, ["READY"]),
    ],
)
def test_a_server_of_another_project_is_not_used(answer: tuple[int, Any]) -> None:
    with fake(lambda method, path, body: answer) as url:
        assert refusal(url) == f"The server at {url} is not one of this project. Start one with script/serve."


def test_a_redirect_is_named() -> None:
    with fake(lambda method, path, body: (301, "")) as url:
        assert refusal(url) == f"{url} redirects to another address. Give that one."


def test_a_server_that_still_loads_is_waited_for() -> None:
    states = iter(["STARTING", "STARTING", "READY"])
    document = {"components": {"schemas": {"Input": {"required": ["prompt"]}}}}
    waits: list[int] = []
    with fake(lambda method, path, body: (200, {"status": next(states)} if "health" in path else document)) as url:
        assert Api(url).schemas(["prompt"], lambda: waits.append(1)) == document["components"]["schemas"]
    assert waits == [1]


@pytest.mark.parametrize(
    ("health", "message"),
    [
        (
            {"status": "SETUP_FAILED", "setup": {"logs": "worker setup failed: x: setup failed: WeightsError: gone"}},
            "gone",
        ),
        (
            {"status": "SETUP_FAILED", "setup": {"logs": "worker crashed"}},
            "The server's worker ended during setup. It may have run out of memory.",
        ),
        ({"status": "DEFUNCT"}, "The server is DEFUNCT. Restart it."),
    ],
)
def test_a_server_that_cannot_serve_says_why(health: dict[str, Any], message: str) -> None:
    with pytest.raises(ServerError) as caught:
        is_starting(health)
    assert str(caught.value) == message


def test_a_busy_server_is_tried_again_for_a_bounded_time(toy: Server) -> None:
    running = toy.start(prompt="x", seconds=60)
    time.sleep(0.2)
    said: list[int] = []
    started = time.monotonic()
    status, _ = toy.predict({"prompt": "y"}, patience=1.5, on_busy=lambda: said.append(1))
    assert (status, said) == (409, [1])
    assert 1.5 < time.monotonic() - started < 3
    running.stop()
    assert toy.predict({"prompt": "y"}, patience=1.5)[0] == 200


def test_the_log_of_a_running_prediction_can_be_read(toy: Server) -> None:
    assert toy.logs_of("none") is None
    running = toy.start(prompt="x", seconds=60)
    deadline = time.monotonic() + 5
    while toy.logs_of(running.prediction_id) is None:
        assert time.monotonic() < deadline
    assert toy.cancel_until_over(running.prediction_id, 10)
    assert running.result().status == "canceled"
    assert toy.logs_of(running.prediction_id) is None


def test_a_cancel_is_repeated_until_the_prediction_is_over() -> None:
    """A server loses the first two cancels, and takes in the prediction only after the first."""
    seen: list[str] = []

    def answers(method: str, path: str, body: bytes) -> tuple[int, Any]:
        seen.append(method)
        cancels = seen.count("POST")
        return (200, {}) if method == "POST" else (202 if cancels in (2, 3) else 422, {"logs": ""})

    with fake(answers) as url:
        assert Api(url).cancel_until_over("abc", 10)
    assert seen == ["POST", "PUT"] * 5


def test_a_cancel_that_is_never_obeyed_ends() -> None:
    with fake(lambda method, path, body: (202, {"logs": ""})) as url:
        assert not Api(url).cancel_until_over("abc", 0.3)


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
    ("text", "plain"),
    [
        ("Prediction failed: Prediction failed: ValueError: too small", "too small"),
        ("Prediction failed: Prediction failed: ImageError: too large", "too large"),
        ("Prediction failed: Prediction failed: ServerFault: ours", "ours"),
        ("worker setup failed: worker setup failed (slot 1-2): Setup failed: setup failed: ValueError: gone", "gone"),
        (
            "worker setup failed: worker setup failed (slot 1): Setup failed: failed to load predictor: ImportError: x",
            "x",
        ),
        ("Input validation error: no such host", "Input validation error: no such host"),
        ("a message: Prediction failed: inside", "a message: Prediction failed: inside"),
    ],
)
def test_plain_error_keeps_only_the_message(text: str, plain: str) -> None:
    assert plain_error(text) == plain


# ---- files


@pytest.fixture
def uploads(tmp_path: Path) -> Iterator[str]:
    """The URL of a server of the files in tmp_path."""
    handler = partial(SimpleHTTPRequestHandler, directory=tmp_path)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_uploaded_outputs_are_fetched(uploads: str, tmp_path: Path) -> None:
    (tmp_path / "out.0.webp").write_bytes(b"a picture")
    assert read_output(f"{uploads}/out.0.webp?signature=a.b") == (b"a picture", ".webp")


def test_an_upload_that_is_gone_is_an_error(uploads: str) -> None:
    with pytest.raises(ServerError, match=r"^Cannot fetch http://127.0.0.1:\d+/none.webp: HTTP Error 404"):
        read_output(f"{uploads}/none.webp")


def test_a_server_cannot_make_the_client_copy_local_files(tmp_path: Path) -> None:
    (tmp_path / "secret.txt").write_text("mine")
    with pytest.raises(ServerError, match="neither a file nor an http"):
        read_output(f"file://{tmp_path}/secret.txt")
