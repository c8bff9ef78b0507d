"""Requests from elsewhere are refused on every path, and on the websocket."""

import http.client
import json
import socket
from urllib.parse import urlsplit

import pytest

from playground.guard import Guard

SOCKET = "/_nicegui_ws/socket.io/?EIO=4&transport=websocket"
UPGRADE = {
    "Upgrade": "websocket",
    "Connection": "Upgrade",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "x" * 22 + "==",
}
PATHS = ["/", "/v1/predictions", "/v1/files", "/tab/x/program/curl", "/delivery/x/y", SOCKET, "/nothing"]
FOREIGN = {
    "host": {"Host": "evil.example"},
    "host with our port": {"Host": "evil.example:{port}"},
    "origin": {"Origin": "http://evil.example"},
    "another port": {"Origin": "http://127.0.0.1:{other}"},
    "a file or sandbox": {"Origin": "null"},
    "an image on another page": {
        "Sec-Fetch-Site": "cross-site",
        "Sec-Fetch-Mode": "no-cors",
        "Sec-Fetch-Dest": "image",
    },
    "a frame on another page": {
        "Sec-Fetch-Site": "cross-site",
        "Sec-Fetch-Mode": "navigate",
        "Sec-Fetch-Dest": "iframe",
    },
}


def status(url: str, method: str, path: str, **headers: str) -> int:
    port = urlsplit(url).port
    assert port
    headers = {name: value.format(port=port, other=port + 1) for name, value in headers.items()}
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request(method, path, headers=headers)
        response = connection.getresponse()
        assert not response.getheader("Access-Control-Allow-Origin")
        return response.status
    finally:
        connection.close()


@pytest.mark.parametrize("headers", FOREIGN.values(), ids=FOREIGN)
@pytest.mark.parametrize("path", PATHS)
def test_requests_from_elsewhere_are_refused(playground: str, path: str, headers: dict[str, str]) -> None:
    extra = UPGRADE if path == SOCKET else {}
    assert status(playground, "GET", path, **extra, **headers) == 403
    if path != SOCKET:
        assert status(playground, "POST", path, **headers) == 403


def test_our_own_are_answered(playground: str) -> None:
    port = urlsplit(playground).port
    assert status(playground, "GET", "/") == 200
    assert status(playground, "GET", "/", Host=f"localhost:{port}") == 200
    assert status(playground, "GET", SOCKET, **UPGRADE, Origin=playground) == 101
    assert status(playground, "GET", "/v1/predictions", Origin=playground) == 200
    link = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
    assert status(playground, "GET", "/", **link) == 200, "a link on another page may be followed"
    assert status(playground, "POST", "/v1/predictions", **link) == 403


def test_only_what_is_needed_is_passed_on(playground: str) -> None:
    """Cog's own paths stay behind it: with /shutdown any page could end the server."""
    for path in ("/shutdown", "/predictions", "/health-check"):
        assert status(playground, "POST", path) == 404
    connection = http.client.HTTPConnection("127.0.0.1", urlsplit(playground).port or 0, timeout=30)
    connection.request("POST", "/predictions")
    assert "/v1" in json.load(connection.getresponse())["detail"]


@pytest.mark.parametrize(
    ("listens", "host", "refused"),
    [
        ("127.0.0.1", "[::1]:5001", False),
        ("127.0.0.1", "192.168.1.5:5001", True),
        ("0.0.0.0", "192.168.1.5:5001", False),
        ("0.0.0.0", f"{socket.gethostname()}:5001", False),
        ("0.0.0.0", "evil.example:5001", True),
        ("0.0.0.0", "", True),
        ("192.168.1.5", "192.168.1.5:5001", False),
    ],
)
def test_which_names_are_ours(listens: str, host: str, refused: bool) -> None:
    scope = {"type": "http", "method": "GET", "headers": [(b"host", host.encode())]}
    assert bool(Guard(None, listens).refusal(scope)) == refused  # type: ignore[arg-type]
