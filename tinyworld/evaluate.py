"""Measures how well a bundle's pictures obey control map and prompt, on scenes that no training has seen.

A control map is drawn from the rendered scene, and a picture is generated from the map and the scene's caption. The
evaluation network (judge.py) scores how well the picture obeys the map. The floor is the score of the same picture
against maps of other scenes. The ceiling is the score of the rendered scene against its own map.
"""

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from controlnet.maps.annotators.tiny_network import TinyVisionModel
from controlnet.models.loading import load_pretrained
from controlnet.weights.manifest import WEIGHTS
from tinyworld import sheets
from tinyworld.cases import SUBJECTS, Case, held_out, main_pixels, shows_anything, shows_one_thing
from tinyworld.export import EVALUATOR
from tinyworld.judge import MEASURED, Judge, Reading, colour_of, readings_of, reduced, wanted
from tinyworld.painter import Painter
from tinyworld.scene import recoloured
from tinyworld.things import COLOURS

OTHERS = 4
"""The floor of a picture is the mean over the maps of this many other scenes."""


@dataclass(frozen=True)
class Quality:
    """The figures of one reading of a conditioner: means over the scenes."""

    metric: str
    value: float
    """In the unit of the metric."""
    score: float
    floor: float
    ceiling: float
    share: float
    """(score − floor) / (ceiling − floor): 0 for chance, 1 for a picture as good as the rendered scene."""
    scenes: int


def measure(conditioner: str, painter: Painter, judge: Judge, count: int) -> dict[str, Quality]:
    """Score `count` pictures of one conditioner by each of its readings; picture i has seed i."""
    readings = readings_of(conditioner)
    asked, painted, source = ({name: [] for name in readings} for _ in range(3))
    for i, case in enumerate(islice(cases_of(conditioner, painter), count)):
        control_map = painter.control_map(conditioner, case)
        made = judge.look(painter.paint(conditioner, control_map, case.scene.caption, i))
        scene = judge.look(case.picture)
        for name, reading in readings.items():
            asked[name].append(wanted(name, control_map, case.sample.people))
            painted[name].append(reading.found(made))
            source[name].append(reading.found(scene))
    return {name: _quality(readings[name], painted[name], asked[name], source[name]) for name in readings}


def _quality(reading: Reading, painted: list, asked: list, source: list) -> Quality:
    count = len(asked)
    marks = np.array([reading.compare(found, asked[i]) for i, found in enumerate(painted)])
    ceiling = np.mean([reading.compare(found, asked[i])[1] for i, found in enumerate(source)])
    others = range(1, min(OTHERS, count - 1) + 1)
    floor = np.mean(
        [reading.compare(painted[i], asked[(i + step) % count])[1] for i in range(count) for step in others]
    )
    value, score = marks.mean(0)
    share = (score - floor) / (ceiling - floor)
    return Quality(reading.metric, *(float(v) for v in (value, score, floor, ceiling, share)), count)


def cases_of(conditioner: str, painter: Painter) -> Iterator[Case]:
    """The scenes with which a conditioner is measured."""
    return held_out(painter.size[0], SUBJECTS.get(conditioner, shows_anything))


def measure_colours(painter: Painter, count: int) -> dict[str, float]:
    """How often the only thing in a scene gets the colour in the prompt, which is not the one it was rendered in.

    A canny map keeps the thing in its place. `ceiling` is how often the colour of the rendered thing is read correctly,
    `chance` how often a random colour is right.
    """
    cases = list(islice(held_out(painter.size[0], shows_one_thing), count))
    right = read = 0
    for i, case in enumerate(cases):
        rng, old = np.random.default_rng(i), case.scene.things[0].colour
        new = str(rng.choice([name for name in COLOURS if name != old]))
        prompt = recoloured(case.scene.caption, rng, new, only_first=True)
        picture = painter.paint("canny", painter.control_map("canny", case), prompt, i)
        where = main_pixels(case.scene)
        right += colour_of(np.asarray(reduced(picture))[where]) == new
        read += colour_of(case.sample.picture[where]) == old
    return {"right": right / count, "chance": 1 / len(COLOURS), "ceiling": read / count, "scenes": count}


def as_toml(qualities: dict[str, Quality], colours: dict[str, float] | None, table: str = "quality") -> str:
    """The figures as TOML for the manifest, from which the table in docs/quality.md is made.

    `table` is their place in [made]: "quality", or "go_fast" for pictures made with it.
    """
    tables: dict[str, dict[str, Any]] = {name: asdict(quality) for name, quality in qualities.items()}
    if colours:
        tables["prompt_colour"] = colours
    lines = []
    for name, figures in tables.items():
        lines += [f"[made.{table}.{json.dumps(name) if ',' in name else name}]"]
        lines += [
            f"{key} = {json.dumps(round(value, 3) if isinstance(value, float) else value, ensure_ascii=False)}"
            for key, value in figures.items()
        ]
        lines += [""]
    return "\n".join(lines)


def arguments_of(program: str, about: str) -> argparse.ArgumentParser:
    """The arguments of both evaluations."""
    parser = argparse.ArgumentParser(prog=program, description=about)
    parser.add_argument("--bundle", default="tiny", help="the bundle to measure")
    parser.add_argument("--weights", type=Path, default=WEIGHTS, help="folder of the bundle's manifest and files")
    parser.add_argument("--evaluator", type=Path, default=EVALUATOR, help="folder of the network that scores")
    parser.add_argument("--scenes", type=int, default=64, help="held-out scenes per measurement, at least 2")
    parser.add_argument("--maps", choices=["drawn", "truth"], default="drawn", help="drawn by the bundle's annotators")
    parser.add_argument("--go-fast", action="store_true", help="in few steps, as a request with go_fast")
    parser.add_argument("--output", type=Path, default=Path("output/evaluation"), help="folder for figures and sheets")
    return parser


def open_all(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> tuple[Painter, Judge, Path]:
    """The bundle under test, the network that scores, and the folder for the results."""
    if arguments.scenes < 2:
        parser.error(f"--scenes: expected at least 2, since the floor needs another scene, got {arguments.scenes}")
    painter = Painter(arguments.bundle, arguments.maps, arguments.weights, arguments.go_fast)
    judge = Judge(load_pretrained(TinyVisionModel, arguments.evaluator, torch.device("cpu")))
    folder = arguments.output / arguments.bundle
    folder.mkdir(parents=True, exist_ok=True)
    return painter, judge, folder


def main() -> None:
    parser = arguments_of("script/evaluate", __doc__.partition("\n")[0])
    parser.add_argument("--conditioner", action="append", default=[], choices=MEASURED, help="only this one")
    arguments = parser.parse_args()
    painter, judge, folder = open_all(parser, arguments)
    names = [name for name in arguments.conditioner or MEASURED if name in painter.annotators]
    qualities: dict[str, Quality] = {}
    for name in names:
        started = time.monotonic()
        measured = measure(name, painter, judge, arguments.scenes)
        for reading, quality in measured.items():
            print(f"{reading}: {quality}")
        print(f"{name} took {time.monotonic() - started:.0f} s", flush=True)
        qualities |= measured
    colours = measure_colours(painter, arguments.scenes) if "canny" in names else None
    figures = as_toml(qualities, colours, "go_fast" if arguments.go_fast else "quality")
    (folder / "quality.toml").write_text(figures, encoding="utf-8")
    sheets.scenes(painter, names).save(folder / "scenes.png")
    print(figures + f"\nIn {folder}/: quality.toml, scenes.png")


if __name__ == "__main__":
    main()
