"""Measures how well pictures obey two controls at once, and a control that acts in one region.

A pair is two control maps of the same held-out scene, without a prompt that describes it. A region is the left half of
the picture.
"""

from dataclasses import dataclass
from itertools import islice

import numpy as np
from PIL import Image

from controlnet.generation.job import Control
from tinyworld.cases import held_out
from tinyworld.dataset import SEEN
from tinyworld.evaluate import OTHERS, arguments_of, open_all
from tinyworld.judge import READINGS, Judge, wanted
from tinyworld.painter import Painter

PAIRS = (("canny", "depth"), ("scribble", "seg"), ("hed", "normal"))
SCALE = 0.7
"""Conditioning scale of each control of a pair."""
REGION_CONDITIONERS = ("canny", "scribble", "hed", "depth")
"""Conditioners whose readings can be cut in halves."""
PROMPT = ""


@dataclass(frozen=True)
class Obedience:
    """Means over the scenes, scores from 0 to 1."""

    score: float
    floor: float
    """The score of the same pictures against maps of other scenes."""


def measure_pair(names: tuple[str, str], painter: Painter, judge: Judge, count: int) -> dict[str, Obedience]:
    """Obedience to each of two controls at once; picture i has seed i."""
    cases = list(islice(held_out(painter.size[0]), count))
    asked: dict[str, list] = {name: [] for name in names}
    found: dict[str, list] = {name: [] for name in names}
    for i, case in enumerate(cases):
        maps = {name: painter.control_map(name, case) for name in names}
        controls = tuple(Control(name, control_map, SCALE) for name, control_map in maps.items())
        picture = painter.paint_with(controls, PROMPT, i)
        for name, control_map in maps.items():
            asked[name].append(wanted(name, control_map, case.sample.people))
            found[name].append(judge.found(name, picture))
    return {name: _obedience(name, found[name], asked[name]) for name in names}


def measure_region(name: str, painter: Painter, judge: Judge, count: int) -> dict[str, Obedience]:
    """Obedience to one control inside and outside its region, the left half of the picture."""
    width, height = painter.size
    region = Image.new("L", painter.size)
    region.paste(255, (0, 0, width // 2, height))
    asked, found = [], []
    for i, case in enumerate(islice(held_out(width), count)):
        control_map = painter.control_map(name, case)
        picture = painter.paint_with((Control(name, control_map, region=region),), PROMPT, i)
        asked.append(wanted(name, control_map, case.sample.people))
        found.append(judge.found(name, picture))
    halves = {"inside": slice(None, SEEN // 2), "outside": slice(SEEN // 2, None)}
    return {
        side: _obedience(name, [one[:, half] for one in found], [one[:, half] for one in asked])
        for side, half in halves.items()
    }


def _obedience(name: str, found: list, asked: list) -> Obedience:
    compare, count = READINGS[name].compare, len(found)
    own = [compare(one, other)[1] for one, other in zip(found, asked, strict=True)]
    others = range(1, min(OTHERS, count - 1) + 1)
    floor = [compare(found[i], asked[(i + step) % count])[1] for i in range(count) for step in others]
    return Obedience(float(np.mean(own)), float(np.mean(floor)))


def measure_together(painter: Painter, judge: Judge, count: int) -> dict[str, dict[str, Obedience]]:
    """All pairs and regions for which the bundle has the conditioners, by the name of their table."""
    has = painter.annotators
    pairs = {f"{a}_and_{b}": measure_pair((a, b), painter, judge, count) for a, b in PAIRS if a in has and b in has}
    regions = {
        f"{name}_left": measure_region(name, painter, judge, count) for name in REGION_CONDITIONERS if name in has
    }
    return pairs | regions


def as_toml(measured: dict[str, dict[str, Obedience]], count: int) -> str:
    """The figures as TOML for the manifest, from which the table in docs/quality.md is made."""
    lines = ["[made.together]", f"scenes = {count}", ""]
    for table, parts in measured.items():
        lines += [f"[made.together.{table}]"]
        lines += [f"{name} = {{ score = {one.score:.3f}, floor = {one.floor:.3f} }}" for name, one in parts.items()]
        lines += [""]
    return "\n".join(lines)


def main() -> None:
    parser = arguments_of("script/evaluate-together", __doc__.partition("\n")[0])
    arguments = parser.parse_args()
    painter, judge, folder = open_all(parser, arguments)
    figures = as_toml(measure_together(painter, judge, arguments.scenes), arguments.scenes)
    (folder / "together.toml").write_text(figures, encoding="utf-8")
    print(f"{figures}\nIn {folder}/: together.toml")


if __name__ == "__main__":
    main()
