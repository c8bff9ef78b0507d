"""deploy/envoy.yaml on this machine: the same gateway in front of servers on ports of their own, and its clients."""

import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

from controlnet.serving.api import FAILURES, Api
from controlnet.serving.server import LOCALHOST, ROOT, free_port
from support.server import Server

CONFIG = ROOT / "deploy/envoy.yaml"
SAMPLE = re.compile(r'^(\w+)\{(?:envoy_response_code="(\d+)",)?envoy_cluster_name="(\w+)"\} (\d+)$', re.MULTILINE)


def envoy() -> str | None:
    """The command, if it is installed."""
    return shutil.which("envoy")


def on_this_machine(config: dict[str, Any], ports: Sequence[int], gateway: int, waiting: int, admin: int) -> None:
    """Change only the addresses: of the gateway, of its inner listener, and of the servers."""
    config["admin"]["address"] = _address(admin)
    for listener, port in zip(config["static_resources"]["listeners"], (gateway, waiting), strict=True):
        listener["address"] = _address(port)
    for cluster, targets in zip(config["static_resources"]["clusters"], ([waiting], ports), strict=True):
        endpoints = [{"endpoint": {"address": _address(port)}} for port in targets]
        cluster["load_assignment"]["endpoints"] = [{"lb_endpoints": endpoints}]


def manager(config: dict[str, Any]) -> dict[str, Any]:
    """The settings of the listener that clients reach."""
    return config["static_resources"]["listeners"][0]["filter_chains"][0]["filters"][0]["typed_config"]


def _address(port: int) -> dict[str, Any]:
    return {"socket_address": {"address": LOCALHOST, "port_value": port}}


class Gateway(Api):
    """Envoy with deploy/envoy.yaml in front of the servers on these ports. Leaving the block stops it.

    `change` may change the configuration first: a test does not wait as long as clients are waited for.
    """

    def __init__(self, ports: Sequence[int], change: Callable[[dict[str, Any]], None] = lambda config: None) -> None:
        super().__init__(f"http://{LOCALHOST}:{free_port()}")
        self.admin = Api(f"http://{LOCALHOST}:{free_port()}")
        self.folder = tempfile.TemporaryDirectory()
        config = yaml.safe_load(CONFIG.read_text())
        on_this_machine(config, ports, self.port, free_port(), self.admin.port)
        change(config)
        self.config = Path(self.folder.name) / "envoy.json"
        self.config.write_text(json.dumps(config))

    def __enter__(self) -> "Gateway":
        command = [envoy() or "envoy", "-c", str(self.config), "--concurrency", "1"]
        command += ["--disable-hot-restart", "--log-level", "error"]
        self.process = subprocess.Popen(command)
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.process.kill()
        self.process.wait()
        self.folder.cleanup()

    def wait_for(self, servers: int, seconds: float = 60) -> None:
        """Wait until so many servers get requests. Raises TimeoutError."""
        deadline = time.monotonic() + seconds
        while self.figures().get(("envoy_cluster_membership_healthy", "controlnet", "")) != servers:
            if time.monotonic() > deadline or self.process.poll() is not None:
                raise TimeoutError(f"the gateway does not see {servers} healthy servers")
            time.sleep(0.1)

    def figures(self) -> dict[tuple[str, str, str], int]:
        """Envoy's figures as Prometheus reads them, by name, cluster and HTTP status. Empty until it listens."""
        try:
            _, text = self.admin.request("GET", "/stats/prometheus", timeout=10)
        except FAILURES:
            return {}
        return {(name, cluster, code): int(value) for name, code, cluster, value in SAMPLE.findall(text)}


def kill(server: Server, what: str) -> None:
    """End a "server" with all its processes, or only its worker, without a chance to say so."""
    if what == "server":
        os.killpg(server.process.pid, signal.SIGKILL)
        return
    listed = subprocess.run(["ps", "-A", "-o", "pid=,ppid=,args="], capture_output=True, text=True, check=True).stdout
    for pid, parent, command in (line.split(None, 2) for line in listed.splitlines()):
        if int(parent) == server.process.pid and "_run_worker" in command:
            os.kill(int(pid), signal.SIGKILL)


def ask(gateway: Gateway, method: str = "POST", path: str = "/predictions", **inputs: Any) -> tuple[int, Any]:
    return gateway.request(method, path, {"input": {"prompt": "hello"} | inputs}, timeout=60)


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def is_busy(server: Server) -> bool:
    return server.health()["status"] == "BUSY"
