"""script/bench/command: the time from a command to its picture with the tiny bundle (20 steps, 128 pixels).

Three commands take turns: importing torch and the two pipelines of diffusers in a new process, script/predict, and
script/predict --url with a running server. The table has medians. An import counts until it is done, a command until
the picture's name is printed; "to the end" is until the process has ended. A first round is not counted: it compiles
the modules, into a folder of its own.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from controlnet.serving.server import ROOT, Server
from controlnet.weights.manifest import BUNDLE

IMPORTS = """
import torch
from diffusers import StableDiffusionControlNetImg2ImgPipeline, StableDiffusionControlNetPipeline
print("done", flush=True)
"""
INPUTS = {"prompt": "a red house", "image": f"@{ROOT}/examples/doodle.png", "conditioner": "scribble", "seed": "7"}


@dataclass(frozen=True)
class Times:
    """Seconds of one run."""

    done: float
    """Until the import was done or the picture was on disk."""
    ended: float
    """Until the process had ended."""
    processor: float
    """Of user and system, of the process and of those that it waited for."""


def timed(command: Sequence[str | Path], environ: Mapping[str, str]) -> Times:
    """Run a command until its first line on stdout, and then to its end. Raises RuntimeError if it fails."""
    started = time.perf_counter()
    process = subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdout is not None
    process.stdout.readline()
    done = time.perf_counter() - started
    _, status, usage = os.wait4(process.pid, 0)
    ended = time.perf_counter() - started
    process.stdout.close()
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))} failed with status {process.returncode}")
    return Times(done, ended, usage.ru_utime + usage.ru_stime)


def medians(runs: Sequence[Times]) -> Times:
    """The median of each figure."""
    return Times(*(statistics.median(getattr(run, name) for run in runs) for name in ("done", "ended", "processor")))


def table(measured: Mapping[str, Times]) -> str:
    """A Markdown table. The first entry is what the others are compared with."""
    base = next(iter(measured.values()))
    rows = ["| command | seconds | to the end | processor | above the import |", f"|{' --- |' * 5}"]
    for name, times in measured.items():
        above = "" if times is base else f"{times.done - base.done:+.2f}"
        rows.append(f"| {name} | {times.done:.2f} | {times.ended:.2f} | {times.processor:.2f} | {above} |")
    return "\n".join(rows)


def main() -> None:
    """The command line: measures and prints the table."""
    parser = argparse.ArgumentParser(prog="script/bench/command", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="how often each command is timed (default: 3)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        environ = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        environ |= {BUNDLE: "tiny", "PYTHONPYCACHEPREFIX": f"{folder}/compiled"}
        pairs = [f"-i{name}={value}" for name, value in INPUTS.items()]
        predict = [ROOT / "script/predict", *pairs, "-o", f"{folder}/output"]
        with Server(environ) as server:
            server.wait_ready()
            commands = {
                "import torch and two pipelines": [sys.executable, "-c", IMPORTS],
                "script/predict": predict,
                "script/predict --url": [*predict, "--url", server.url],
            }
            runs: dict[str, list[Times]] = {name: [] for name in commands}
            for number in range(options.rounds + 1):
                for name, command in commands.items():
                    times = timed(command, environ)
                    if number > 0:
                        runs[name].append(times)
    print(f"{options.rounds} rounds, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}\n")
    print(table({name: medians(times) for name, times in runs.items()}))


if __name__ == "__main__":
    main()
