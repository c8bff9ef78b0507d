"""Contact sheets for the eye: what a user asks for, with ten seeds each and none of them chosen.

Doodles are drawn as a user sends them, black on white, and every request goes through open_model().
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from controlnet import open_model
from tinyworld.cases import Case, held_out
from tinyworld.dataset import PICTURE, SEEN, Sample, sample_of
from tinyworld.doodles import doodle
from tinyworld.scene import Scene
from tinyworld.sheets import Row, sheet

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
DRAWN = ("cat", "owl", "boat", "cup", "house", "tree")
"""Things of which a doodle is drawn: that of the first held-out scene that shows one alone, whole and not too small."""
SMALLEST = 40
"""Pixels of SEEN: the height of such a thing."""
REPLACEMENT = "a red ball"
ROW = 6
"""Pictures in a row."""


@dataclass(frozen=True)
class Subject:
    """What is asked for."""

    name: str
    inputs: dict[str, Any]
    """Those of open_model(), without the seed."""
    shown: Image.Image
    """What is sent."""


def shows_whole(sample: Sample, place: int) -> bool:
    """True if all of the thing at this place is in the picture, and large enough to be known again."""
    left, top, right, bottom = sample.boxes[place]
    return min(left, top) > 2 and max(right, bottom) < SEEN - 2 and bottom - top >= SMALLEST


def first_alone(word: str) -> Case:
    def fits(scene: Scene, sample: Sample) -> bool:
        named = len(scene.things) == 1 and word in scene.things[0].words.split()
        return named and shows_whole(sample, 0)

    return next(held_out(PICTURE, fits))


def drawn(word: str) -> Subject:
    case = first_alone(word)
    strokes = doodle(sample_of(case.scene, PICTURE).outlines, np.random.default_rng(0))
    paper = Image.fromarray(255 - strokes).convert("RGB")
    return Subject(word, {"prompt": case.scene.caption, "image": paper, "conditioner": "scribble"}, paper)


def replaced() -> Subject:
    """One of two things, behind a mask that is a little larger than it."""
    case = next(held_out(PICTURE, lambda scene, sample: len(scene.things) == 2 and shows_whole(sample, 0)))
    left, top, right, bottom = (int(v) for v in case.sample.boxes[0] * (PICTURE // SEEN))
    mask, grown = Image.new("L", case.picture.size), (left - 12, top - 12, right + 12, bottom + 12)
    mask.paste(255, grown)
    shown = case.picture.copy()
    shown.paste("white", grown)
    inputs = {"prompt": REPLACEMENT, "image": case.picture, "mask": mask, "conditioner": "inpaint"}
    return Subject("replaced", inputs, shown)


def example(name: str, file: str, prompt: str, conditioner: str) -> Subject:
    """A picture of examples/."""
    picture = Image.open(EXAMPLES / file).convert("RGB")
    return Subject(name, {"prompt": prompt, "image": picture, "conditioner": conditioner}, picture)


HOUSE = "a red house with a blue roof next to a green tree on grass under a blue sky"
PERSON = "a person in a red shirt and blue trousers on grass under a blue sky"
SUBJECTS: dict[str, Callable[[], Subject]] = {
    "hero": lambda: example("hero", "doodle.png", HOUSE, "scribble"),
    "person": lambda: example("person", "person.png", PERSON, "openpose"),
    **{word: partial(drawn, word) for word in DRAWN},
    "replaced": replaced,
}
"""The README's first command, a pose, doodles, and a thing that is replaced."""


def sheet_of(subject: Subject, model: Any, seeds: int, more: dict[str, Any]) -> Image.Image:
    """What is sent, and the pictures of the first seeds."""
    made = [(subject.shown, subject.inputs["prompt"])]
    made += [(model(**subject.inputs, **more, seed=seed)[0], f"seed {seed}") for seed in range(1, seeds + 1)]
    rows: list[Row] = [made[start : start + ROW] for start in range(0, len(made), ROW)]
    return sheet(rows)


def main() -> None:
    parser = argparse.ArgumentParser(prog="script/make-sheets", description=__doc__.partition("\n")[0])
    parser.add_argument("name", nargs="*", metavar="NAME", help=f"only these of {', '.join(SUBJECTS)}")
    parser.add_argument("--bundle", default="tiny", help="the bundle that paints")
    parser.add_argument("--seeds", type=int, default=10, help="how many")
    parser.add_argument("--go-fast", action="store_true", help="in few steps")
    parser.add_argument("--output", type=Path, default=Path("output/sheets"), help="folder for the sheets")
    arguments = parser.parse_args()
    if unknown := {*arguments.name} - {*SUBJECTS}:
        parser.error(f"expected names of {', '.join(SUBJECTS)}, got {', '.join(sorted(unknown))}")
    arguments.output.mkdir(parents=True, exist_ok=True)
    more = {"go_fast": True} if arguments.go_fast else {}
    with open_model(arguments.bundle) as model:
        for name in arguments.name or SUBJECTS:
            file = arguments.output / f"{name}.png"
            sheet_of(SUBJECTS[name](), model, arguments.seeds, more).save(file)
            print(file, flush=True)


if __name__ == "__main__":
    main()
