"""script/bench/speed: whole requests, next to diffusers' own pipelines with the same models in the same process.

Both sides take turns. On a CPU the time is that of the processor, with one thread; on a GPU that of CUDA events, and
there is a column for diffusers with torch.compile. --write puts the result into docs/speed.md, with a chart.
"""

import argparse
import gc
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import diffusers
import torch
from speed_clock import Clock, CudaClock, ProcessorClock, Times, take_turns
from speed_floor import floor
from speed_ideas import IDEAS, only
from speed_page import markdown, write
from speed_sides import Case, Phases, Plain, Setting, latents_of, ours, phases_of, silent
from speed_start import first_picture, setup
from speed_swaps import ALONE, CHANGING, Swaps

from controlnet.bundle import open_bundle
from controlnet.model import Model
from controlnet.settings import Settings
from controlnet.weights.manifest import WEIGHTS

CASES = (
    Case("request, one net, map ready"),
    Case("the same, map drawn by canny", drawn=True),
    Case("control ends halfway", end=0.5),
    Case("two nets", nets=2),
    Case("three nets", nets=3),
    Case("four outputs", outputs=4),
)
FEW = Case("go_fast, diffusers with the same LoRA", fast=True)
USUAL_STEPS = 20
CONDITIONERS = ("canny", "hed", "depth")
PARTS = ("rows", "few-steps", "low-memory", "ideas", "start")
Say = Callable[[str], None]


class Bench:
    """All measurements with one loaded bundle."""

    def __init__(
        self, model: Model, setting: Setting, rounds: int, say: Say, compiled: bool = True, first: int = len(CASES)
    ) -> None:
        """`compiled`: whether a GPU's rows have diffusers with torch.compile. `first`: how many requests of CASES."""
        self.cases = CASES[:first]
        self.model, self.setting, self.rounds, self.say = model, setting, rounds, say
        self.cuda = model.bundle.device.type == "cuda"
        self.clock: Clock = CudaClock() if self.cuda else ProcessorClock()
        self.plain = Plain(model)
        self.compiled = Plain(model, compiled=True) if compiled and self.cuda else None

    def rows(self) -> list[dict[str, Any]]:
        """The table's rows of requests, each measured on every side."""
        return [self._row(case) for case in self.cases]

    def _row(self, case: Case) -> dict[str, Any]:
        runs: dict[str, Callable[[], Any]] = {
            "ours": lambda: ours(self.model, case, self.setting),
            "plain": lambda: self.plain(case, self.setting),
        }
        if (compiled := self.compiled) is not None and not case.fast:
            runs["compiled"] = lambda: compiled(case, self.setting)
        return self._compared(case.name, runs)

    def few_steps(self) -> list[dict[str, Any]]:
        """Rows next to diffusers with the same LoRA, and with the usual number of steps, which gives other pictures.

        None for a bundle without go_fast.
        """
        if self.model.bundle.fast is None:
            return []
        many = replace(self.setting, steps=USUAL_STEPS)
        runs = {"ours": lambda: ours(self.model, FEW, self.setting), "plain": lambda: self.plain(CASES[0], many)}
        return [self._row(FEW), self._compared(f"go_fast, diffusers with {USUAL_STEPS} steps", runs, equal=False)]

    def low_memory(self) -> list[dict[str, Any]]:
        """Rows of requests whose net is not ready, and of making it ready."""
        swaps = Swaps(self.model, self.setting)
        rows = [self._compared(CHANGING.name, swaps.requests())]
        return [*rows, self._compared(ALONE, swaps.alone(), equal=False)]

    def _compared(self, name: str, runs: dict[str, Callable[[], Any]], equal: bool = True) -> dict[str, Any]:
        """A row of the table. `equal`: all sides should decode the same latents. Otherwise all have run before."""
        made = {}
        if equal:
            # These runs are not counted, because a first run does more than later ones.
            made = {side: latents_of(self.model, run) for side, run in runs.items()}
        times = take_turns(runs, self.rounds, self.clock)
        row = as_row(name, times)
        if equal:
            row["latents"] = float((made["ours"] - made["plain"]).abs().max())
            row["largest"] = float(made["plain"].abs().max())
        if equal and self.cuda:
            row["floor"] = floor(runs["plain"], self.model.bundle.dtype) / times["ours"].median
        self.say(markdown([row]).splitlines()[-1])
        return row

    def phases(self) -> dict[str, dict[str, list[float]]]:
        """Seconds of each phase of a request with one net, run by run."""
        case = CASES[0]

        def without() -> None:
            self.model.generator.exact = False
            try:
                ours(self.model, case, self.setting)
            finally:
                self.model.generator.exact = True

        runs: dict[str, Callable[[], Any]] = {
            "plain": lambda: self.plain(case, self.setting),
            "without": without,
            "ours": lambda: ours(self.model, case, self.setting),
        }
        found: dict[str, list[Phases]] = {side: [] for side in runs}
        for _ in range(self.rounds):
            for side, run in runs.items():
                found[side].append(phases_of(self.model, run, self.clock))
        return {
            side: {field.name: [getattr(each, field.name) for each in runs] for field in fields(Phases)}
            for side, runs in found.items()
        }

    def ideas(self) -> list[dict[str, Any]]:
        """Whole requests with one net and each exact speedup alone."""

        def run(idea: Any) -> Callable[[], None]:
            def made() -> None:
                with only(self.model.generator, idea):
                    ours(self.model, CASES[0], self.setting)

            return made

        times = take_turns({idea.name: run(idea) for idea in IDEAS}, self.rounds, self.clock)
        return [{"name": name} | figures(each) for name, each in times.items()]


def figures(times: Times) -> dict[str, float]:
    least, most = times.spread
    return {"median": times.median, "min": least, "max": most}


def as_row(name: str, times: dict[str, Times]) -> dict[str, Any]:
    """A row of the table: every side's figures, and their ratio."""
    sides = {side: figures(each) for side, each in times.items()}
    return {"name": name} | sides | {"ratio": times["ours"].median / times["plain"].median}


def step_row(phases: dict[str, dict[str, list[float]]], steps: int) -> dict[str, Any]:
    """The row of one step, from the denoising of whole requests."""
    sides = {side: Times(tuple(each / steps for each in phases[side]["denoising"])) for side in ("ours", "plain")}
    return as_row("a step, one net", sides)


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
    bench = Bench(model, setting, options.rounds, say, not options.no_compiled, options.first)
    result: dict[str, Any] = about(model, bench.clock) | {"side": side, "steps": steps, "rounds": options.rounds}
    result["setup"] = round(loaded, 1)
    with silent():
        if "rows" in options.parts:
            result["phases"] = bench.phases()
            result["rows"] = [step_row(result["phases"], steps), *bench.rows()]
        for part, rows in (("few-steps", bench.few_steps), ("low-memory", bench.low_memory)):
            if part in options.parts:
                result["rows"] = [*result.get("rows", []), *rows()]
        if "ideas" in options.parts and not bench.cuda:  # script/bench/gpu compares what there is for a GPU
            result["ideas"] = bench.ideas()
        if "start" in options.parts:
            del model, bench  # two loaded full-size models would need over 20 GB
            gc.collect()
            starts = {"loading, in a new process": setup(options.bundle, options.weights, options.rounds)}
            if options.bundle == "tiny":
                starts["command to first picture"] = first_picture(setting, options.rounds)
            result["start"] = [as_row(name, times) for name, times in starts.items()]
    if bench.cuda:
        result["gpu_gb"] = round(torch.cuda.max_memory_allocated() / 1e9, 2)  # of both sides
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
    parser.add_argument("--parts", nargs="+", default=PARTS, choices=PARTS)
    parser.add_argument("--first", type=int, default=len(CASES), help="rows: only this many requests, from the first")
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
