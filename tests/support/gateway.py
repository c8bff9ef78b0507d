"""Clients of deploy/envoy.yaml's gateway."""

import time
from collections.abc import Callable
from typing import Any

from cluster_gateway import Gateway

from support.server import Server


def ask(gateway: Gateway, method: str = "POST", path: str = "/predictions", **inputs: Any) -> tuple[int, Any]:
    return gateway.request(method, path, {"input": {"prompt": "hello"} | inputs}, timeout=60)


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def is_busy(server: Server) -> bool:
    return server.health()["status"] == "BUSY"
