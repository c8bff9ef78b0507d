"""script/bench/speed: whole requests, next to diffusers' own pipelines with the same models in the same process.

The sides take turns. On a CPU the time is that of the processor, with one thread; on a GPU that of CUDA events, and the
row "one" has diffusers with torch.compile too. --write puts the result into docs/speed.md, with a chart.
"""

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import torch
from speed_clock import Clock, CudaClock, ProcessorClock, Times, take_turns
from speed_page import markdown, write
from speed_sides import Case, Plain, Setting, denoising_of, latents_of, ours, silent

from controlnet.bundle import open_bundle
from controlnet.model import Model
from controlnet.settings import Settings
from controlnet.weights.manifest import WEIGHTS

CASES = {
    "one": Case("request, one net, map ready"),
    "drawn": Case("the same, map drawn by canny", drawn=True),
    "half": Case("control ends halfway", end=0.5),
    "two": Case("two nets", nets=2),
    "three": Case("three nets", nets=3),
    "four": Case("four outputs", outputs=4),
    "fast": Case("go_fast, diffusers with the same LoRA", fast=True),
    "reference": Case("one net, a reference picture", reference=True),
}
STEP, FAST_NEXT_TO_MANY = "step", "fast-many"
ROWS = (STEP, *CASES, FAST_NEXT_TO_MANY)
"""What may be measured: the rows of the table."""
USUAL_STEPS = 20
CONDITIONERS = ("canny", "hed", "depth")
Say = Callable[[str], None]


class Bench:
    """All measurements with one loaded bundle."""

    def __init__(self, model: Model, setting: Setting, rounds: int, say: Say, best: bool = True) -> None:
        """`best`: whether a GPU's row "one" has diffusers with torch.compile."""
        self.model, self.setting, self.rounds, self.say = model, setting, rounds, say
        self.cuda = model.bundle.device.type == "cuda"
        self.clock: Clock = CudaClock() if self.cuda else ProcessorClock()
        self.plain = Plain(model)
        self.best = Plain(model, compiled=True) if best and self.cuda else None

    def row(self, name: str) -> dict[str, Any]:
        """One of ROWS, measured on every side in turn."""
        if name == STEP:
            return self._step()
        if name == FAST_NEXT_TO_MANY:
            return self._fast_next_to_many()
        case = CASES[name]
        runs: dict[str, Callable[[], Any]] = {
            "ours": lambda: ours(self.model, case, self.setting),
            "plain": lambda: self.plain(case, self.setting),
        }
        if (best := self.best) is not None and name == "one":  # compiling takes a minute and a half
            runs["compiled"] = lambda: best(case, self.setting)
        # These runs are not counted, because a first run does more than later ones.
        made = {side: latents_of(self.model, run) for side, run in runs.items()}
        row = as_row(case.name, take_turns(runs, self.rounds, self.clock))
        row["latents"] = float((made["ours"] - made["plain"]).abs().max())
        row["largest"] = float(made["plain"].abs().max())
        return self._said(row)

    def _fast_next_to_many(self) -> dict[str, Any]:
        """go_fast next to the usual number of steps, which gives another picture."""
        many = replace(self.setting, steps=USUAL_STEPS)
        runs = {
            "ours": lambda: ours(self.model, CASES["fast"], self.setting),
            "plain": lambda: self.plain(CASES["one"], many),
        }
        for run in runs.values():
            run()
        name = f"go_fast, diffusers with {USUAL_STEPS} steps"
        return self._said(as_row(name, take_turns(runs, self.rounds, self.clock)))

    def _step(self) -> dict[str, Any]:
        """The denoising of whole requests with one net, by its steps."""
        sides: dict[str, Callable[[], Any]] = {
            "ours": lambda: ours(self.model, CASES["one"], self.setting),
            "plain": lambda: self.plain(CASES["one"], self.setting),
        }
        found: dict[str, list[float]] = {side: [] for side in sides}
        for number in range(self.rounds + 1):
            for side, run in sides.items():
                seconds = denoising_of(self.model, run, self.clock)
                if number > 0:
                    found[side].append(seconds / self.setting.steps)
        return self._said(as_row("a step, one net", {side: Times(tuple(each)) for side, each in found.items()}))

    def _said(self, row: dict[str, Any]) -> dict[str, Any]:
        self.say(markdown([row]).splitlines()[-1])
        return row


def figures(times: Times) -> dict[str, float]:
    least, most = times.spread
    return {"median": times.median, "min": least, "max": most}


def as_row(name: str, times: dict[str, Times]) -> dict[str, Any]:
    """A row of the table: every side's figures, and their ratio."""
    sides = {side: figures(each) for side, each in times.items()}
    return {"name": name} | sides | {"ratio": times["ours"].median / times["plain"].median}


def measure(options: argparse.Namespace, folder: Path, say: Say) -> dict[str, Any]:
    """Everything that is asked for, as plain values."""
    started = time.perf_counter()
    with silent():
        model = Model(open_bundle(Settings.read(bundle=options.bundle), options.weights))
    loaded = time.perf_counter() - started
    # On a full-size model without a GPU a step takes seconds.
    slow = options.bundle != "tiny" and model.bundle.device.type == "cpu"
    side = options.side or (256 if slow else model.bundle.defaults.resolution)
    steps = options.steps or (4 if slow and not options.full else USUAL_STEPS)
    setting = Setting.prepare(side, steps, CONDITIONERS, folder)
    bench = Bench(model, setting, options.rounds, say, not options.no_compiled)
    result: dict[str, Any] = about(model, bench.clock) | {"side": side, "steps": steps, "rounds": options.rounds}
    result["setup"] = round(loaded, 1)
    left_out = [("fast", model.bundle.fast), ("reference", model.bundle.reference)]
    rows = [row for row in options.rows if not any(word in row and has is None for word, has in left_out)]
    with silent():
        result["rows"] = [bench.row(name) for name in rows]
    if bench.cuda:
        result["gpu_gb"] = round(torch.cuda.max_memory_allocated() / 1e9, 2)  # of all sides
    return result | {"minutes": round((time.perf_counter() - started) / 60, 1)}


def about(model: Model, clock: Clock) -> dict[str, Any]:
    """What the figures were measured on."""
    cuda = model.bundle.device.type == "cuda"
    return {
        "bundle": model.bundle.manifest.name,
        "device": torch.cuda.get_device_name() if cuda else f"CPU, {torch.get_num_threads()} thread",
        "key": f"{model.bundle.manifest.name}-{model.bundle.device.type}",
        "machine": platform.machine(),
        "dtype": str(model.bundle.dtype).removeprefix("torch."),
        "clock": clock.name,
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "date": time.strftime("%Y-%m-%d"),
        "load": round(os.getloadavg()[0], 1),
    }


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="script/bench/speed", description=__doc__)
    parser.add_argument("--bundle", default="tiny")
    parser.add_argument("--weights", metavar="DIR", type=Path, default=WEIGHTS, help="folder of bundle and manifest")
    parser.add_argument("--called-from", type=Path, default=Path(), help=argparse.SUPPRESS)
    parser.add_argument("--rounds", type=int, default=3, help="counted runs of each side (default: 3)")
    parser.add_argument("--side", type=int, help="of the pictures (default: the bundle's; sd15 on a CPU: 256)")
    parser.add_argument("--steps", type=int, help="of a request (default: 20; sd15 on a CPU: 4)")
    parser.add_argument("--full", action="store_true", help="20 steps on a CPU too")
    parser.add_argument("--rows", nargs="+", default=ROWS, choices=ROWS, help="what to measure (default: all)")
    parser.add_argument("--no-compiled", action="store_true", help="on a GPU, without diffusers with torch.compile")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write all figures to this file")
    parser.add_argument("--write", action="store_true", help="put the tables and the chart into docs/")
    options = parser.parse_args()
    options.weights = options.called_from / options.weights
    return options


def main() -> None:
    """The command line."""
    options = arguments()
    out = os.fdopen(os.dup(1), "w")  # the measurements are silent
    with tempfile.TemporaryDirectory() as folder:
        result = measure(options, Path(folder), lambda line: print(line, file=out, flush=True))
    print(f"{markdown(result)}\n\n{statistics.fmean(os.getloadavg()):.1f} load, {result['minutes']} minutes")
    if options.json:
        (options.called_from / options.json).write_text(json.dumps(result, indent=1) + "\n")
    if options.write:
        write(result)


if __name__ == "__main__":
    main()
