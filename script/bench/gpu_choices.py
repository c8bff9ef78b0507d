"""script/bench/gpu: rows of script/bench/speed with each choice for GPUs, side by side, in a table and a file.

script/bench/speed has run on a GPU, this script has not. Please send us the file, also if it says that a choice failed.
It is written after each choice, so a run that is ended early is not lost. Without --weights it first writes sd15 with
random numbers (5 GB), which take the same time. A first try in a few minutes: --rows one --choices default --rounds 2.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from speed_page import short, table
from speed_table import CONDITIONERS, ROWS

from controlnet.serving.server import ROOT
from controlnet.settings import Settings

CHOICES: Mapping[str, Mapping[str, str]] = {"default": {}} | {
    f"{Settings.variable(name)}={value}": {Settings.variable(name): value}
    for name, value in {"graphs": "0", "kernels": "0", "speedups": "0", "attention": "xformers"}.items()
}
"""What is measured, each in a process of its own: environment variables of the container."""
USUAL_ROWS = [row for row in ROWS if "fast" not in row]
Result = dict[str, Any]
Measure = Callable[[Mapping[str, str], Sequence[str]], Result]


def measure(choice: Mapping[str, str], options: Sequence[str]) -> Result:
    """The result of script/bench/speed with these environment variables, or {"failed": the error's last line}."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "result.json"
        command = [sys.executable, "script/bench/speed_table.py", *options, "--json", str(file)]
        unset = {name: "" for each in CHOICES.values() for name in each}
        environ = {**os.environ, **unset, **choice, "PYTHONPATH": f".{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
        done = subprocess.run(command, cwd=ROOT, env=environ, stderr=subprocess.PIPE, text=True)
        if done.returncode:
            return {"failed": (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]}
        return json.loads(file.read_text())


def compare(
    choices: Sequence[str], options: Sequence[str], keep: Callable[[Mapping[str, Result]], Any], run: Measure = measure
) -> dict[str, Result]:
    """Each choice's result; those so far are given to `keep`. Only the first has diffusers with torch.compile."""
    results: dict[str, Result] = {}
    for name in choices:
        print(f"\n{name}", flush=True)
        results[name] = run(CHOICES[name], [*options, *(["--no-compiled"] if results else [])])
        keep(results)
    return results


def markdown(results: Mapping[str, Result]) -> str:
    """A row for each request and a column for each choice: seconds, and the share of plain diffusers' in the first."""
    measured = {name: result for name, result in results.items() if "rows" in result}
    failed = [f"{name}: {result['failed']}" for name, result in results.items() if "failed" in result]
    if not measured:
        return "\n".join(failed)
    first = next(iter(measured.values()))
    rows = []
    for i, row in enumerate(first["rows"]):
        plain = row["plain"]["median"]
        ours = [result["rows"][i]["ours"]["median"] for result in measured.values()]
        compiled = row.get("compiled", {}).get("median")
        cells = [f"{short(each)} ({each / plain:.2f})" for each in (*ours, *([compiled] if compiled else []))]
        rows.append([row["name"], short(plain), *cells])
    head = ["", "plain diffusers, s", *(f"{name}, s (share)" for name in measured)]
    head += ["diffusers with torch.compile, s (share)"] if any("compiled" in row for row in first["rows"]) else []
    said_last = {
        "latents": [f"{_difference(result):.0e} apart" for result in measured.values()],
        "setup, without imports": [f"{result['setup']:.0f}" for result in measured.values()],
    }
    for name, cells in said_last.items():
        rows.append([name, "", *cells] + [""] * (len(head) - 2 - len(cells)))
    said = f"{first['bundle']}, {first['device']}, {first['dtype']}, torch {first['torch']}, {first['date']}"
    return "\n".join([said, "", table(head, rows), *(["", *failed] if failed else [])])


def _difference(result: Result) -> float:
    """The largest difference of a latent from plain diffusers in the same process."""
    return max(row.get("latents", 0.0) for row in result["rows"])


def arguments() -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(prog="script/bench/gpu", description=__doc__)
    parser.add_argument("--weights", metavar="DIR", type=Path, help="folder of sd15 and its manifest")
    parser.add_argument("--json", metavar="FILE", type=Path, default=Path("speed-gpu.json"), help="what to send us")
    parser.add_argument("--rows", nargs="+", default=USUAL_ROWS, choices=ROWS, help="default: all without go_fast")
    parser.add_argument("--choices", nargs="+", default=list(CHOICES), choices=CHOICES, help="default: all")
    parser.add_argument("--rounds", default="5", help="counted runs of each side (default: 5)")
    parser.add_argument("--any-device", action="store_true", help="also on a CPU, to try this script out")
    parser.add_argument("--called-from", type=Path, default=Path(), help=argparse.SUPPRESS)
    return parser.parse_known_args()


def main() -> None:
    """The command line. Options that it does not know are those of script/bench/speed."""
    options, others = arguments()
    if not (torch.cuda.is_available() or options.any_device):
        raise SystemExit("script/bench/gpu needs a CUDA card, and PyTorch finds none. On a CPU use script/bench/speed.")
    print("This script has never been run on a GPU. Please send us what it says, whether it works or not.", flush=True)
    file = options.called_from / options.json
    with tempfile.TemporaryDirectory() as folder:
        weights = options.called_from / options.weights if options.weights else Path(folder)
        if not options.weights:
            make = [sys.executable, "script/random_bundle.py", "sd15", folder, "--conditioners", *CONDITIONERS]
            subprocess.run(make, cwd=ROOT, check=True)
        # Absolute, because the measuring process starts in the project's folder.
        given = ["--bundle", "sd15", "--weights", str(weights.resolve()), "--rounds", options.rounds]
        given += ["--rows", *options.rows, *others]
        results = compare(options.choices, given, lambda so_far: file.write_text(json.dumps(so_far, indent=1) + "\n"))
    print(f"\n{markdown(results)}\n\nPlease send us {options.json}.")


if __name__ == "__main__":
    main()
