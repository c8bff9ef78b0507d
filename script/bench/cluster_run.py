"""script/bench/cluster: requests through the gateway of deploy/ to tiny servers, one of which is killed in the middle.

Each request has a seed of its own. When two fifths have been answered, a server (all of its processes) or only its
worker is killed with SIGKILL. Every answer is compared with the picture that a request of the same seed gives without
a gateway. The exit status is 1 if a request got a 409, a 5xx, no answer or another picture.
"""

import argparse
import base64
import os
import signal
import statistics
import subprocess
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from cluster_gateway import Gateway, envoy

from controlnet.serving.api import FAILURES, Api
from controlnet.serving.server import ROOT, Server
from controlnet.weights.manifest import BUNDLE

PICTURE = base64.b64encode((ROOT / "examples/doodle.png").read_bytes()).decode()
INPUTS = {"prompt": "a red house", "image": f"data:image/png;base64,{PICTURE}", "conditioner": "scribble"}


@dataclass(frozen=True)
class Outcome:
    """The one answer to a request."""

    seed: int
    http_status: int
    """0 if the connection broke off."""
    status: str
    """succeeded or failed; "" if it is not an answer of a prediction."""
    output: Any
    seconds: float

    @property
    def final(self) -> bool:
        return self.http_status == 200 and self.status in ("succeeded", "failed")


def inputs(seed: int, steps: int) -> dict[str, Any]:
    return INPUTS | {"seed": seed, "num_inference_steps": steps}


def ask(api: Api, seed: int, steps: int) -> Outcome:
    """Send one request, once. Odd seeds are POSTs, whose ids the gateway makes, the others PUTs."""
    body = {"input": inputs(seed, steps)}
    method, path = ("POST", "/predictions") if seed % 2 else ("PUT", f"/predictions/{uuid.uuid4().hex}")
    started = time.monotonic()
    try:
        http_status, answer = api.request(method, path, body)
    except FAILURES:
        return Outcome(seed, 0, "", None, time.monotonic() - started)
    answer = answer if isinstance(answer, dict) else {}
    return Outcome(seed, http_status, answer.get("status", ""), answer.get("output"), time.monotonic() - started)


def made_again(server: Server, seed: int, steps: int) -> Any:
    """The output of the same request without the gateway."""
    _, answer = server.predict(inputs(seed, steps), patience=30)
    return answer.get("output")


def kill(server: Server, what: str) -> None:
    """End a server with all its processes, or only its worker, without a chance to say so."""
    if what == "server":
        os.killpg(server.process.pid, signal.SIGKILL)
        return
    listed = subprocess.run(["ps", "-A", "-o", "pid=,ppid=,args="], capture_output=True, text=True, check=True).stdout
    for pid, parent, command in (line.split(None, 2) for line in listed.splitlines()):
        if int(parent) == server.process.pid and "_run_worker" in command:
            os.kill(int(pid), signal.SIGKILL)


class Killer:
    """Kills the first server when so many requests have been answered."""

    def __init__(self, server: Server, what: str, after: int) -> None:
        self.server, self.what, self.left = server, what, after
        self.lock = threading.Lock()

    def answered(self, outcome: Outcome) -> Outcome:
        with self.lock:
            self.left -= 1
            if self.left == 0 and self.what != "nothing":
                kill(self.server, self.what)
        return outcome


def report(outcomes: list[Outcome], seconds: float, figures: Mapping[tuple[str, str, str], int], started: int) -> None:
    """Print what the clients got and what the gateway did."""
    times = sorted(outcome.seconds for outcome in outcomes)
    answers = Counter(f"{outcome.http_status} {outcome.status}".strip() for outcome in outcomes)
    print("answers:", ", ".join(f"{count} × {answer}" for answer, count in sorted(answers.items())))
    print(f"{seconds:.1f} s in all, median {statistics.median(times):.2f} s, longest {times[-1]:.2f} s")
    busy = figures.get(("envoy_cluster_retry_upstream_rq", "controlnet", "409"), 0)
    again = figures.get(("envoy_cluster_upstream_rq_retry", "requests", ""), 0)
    print(f"gateway: {busy} × 409 repeated, {again} requests moved to another server; {started} predictions begun")


def run(requests: int, clients: int, servers: int, what: str, steps: int) -> bool:
    """Run it once and print the figures. Returns whether all was well."""
    with ExitStack() as stack:
        environ = os.environ | {BUNDLE: "tiny"}
        children = [stack.enter_context(Server(environ)) for _ in range(servers)]
        for child in children:
            child.wait_ready()
        gateway = stack.enter_context(Gateway([child.port for child in children]))
        gateway.wait_for(servers)
        killer = Killer(children[0], what, requests * 2 // 5)
        started = time.monotonic()
        with ThreadPoolExecutor(clients) as pool:
            outcomes = list(pool.map(lambda seed: killer.answered(ask(gateway, seed, steps)), range(requests)))
        seconds = time.monotonic() - started
        begun = sum(line == ("coglet", "Starting prediction") for child in children for line in child.lines)
        report(outcomes, seconds, gateway.figures(), begun)
        checked = [outcome for outcome in outcomes if outcome.status == "succeeded"][:: max(1, requests // 10)]
        same = all(made_again(children[-1], one.seed, steps) == one.output for one in checked)
        print(f"{len(checked)} pictures made again without the gateway: {'the same' if same else 'OTHER'} bytes")
    return same and all(outcome.final for outcome in outcomes)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="script/bench/cluster", description=__doc__)
    parser.add_argument("--requests", type=int, default=100, help="default: 100")
    parser.add_argument("--clients", type=int, default=4, help="how many at a time (default: 4)")
    parser.add_argument("--servers", type=int, default=2, help="default: 2")
    parser.add_argument("--kill", choices=("server", "worker", "nothing"), default="server", help="default: server")
    parser.add_argument("--steps", type=int, default=20, help="steps of each request (default: 20)")
    options = parser.parse_args()
    if envoy() is None:
        sys.exit("Envoy is not installed: its package is for Linux only.")
    sys.exit(not run(options.requests, options.clients, options.servers, options.kill, options.steps))


if __name__ == "__main__":
    main()
