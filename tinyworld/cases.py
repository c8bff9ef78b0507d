"""Held-out scenes for evaluation and contact sheets, and the choice of those that can measure a conditioner."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image

from tinyworld.dataset import HELD_OUT, SEEN, Sample, sample_of
from tinyworld.render import FIRST_SOLID, render
from tinyworld.scene import Scene, make_scene

JOINTS_IN_VIEW = 9
"""A scene measures poses if at least this many joints of one person are in view."""
PIXELS_OF_LINES = 40
"""A scene measures straight lines if at least this many pixels of them are in view."""
MAIN_SOLIDS = {
    *("ball", "box", "cone", "cylinder", "pyramid", "table", "chair", "tree", "house", "shirt"),
    *("cat", "owl", "cup", "boat"),
}
"""In things of several colours, the solids that have the colour in the caption."""

Fits = Callable[[Scene, Sample], bool]


@dataclass(frozen=True)
class Case:
    """A held-out scene, its picture in the bundle's size, and its truth as the scoring network sees it."""

    scene: Scene
    picture: Image.Image
    sample: Sample


def shows_people(_: Scene, sample: Sample) -> bool:
    return bool(((sample.people[..., 2] > 0).sum(1) >= JOINTS_IN_VIEW).any())


def shows_lines(_: Scene, sample: Sample) -> bool:
    return int((sample.straight > 0).sum()) >= PIXELS_OF_LINES


def shows_anything(*_: object) -> bool:
    return True


SUBJECTS: dict[str, Fits] = {"openpose": shows_people, "mlsd": shows_lines}
"""The scenes that can measure a conditioner, if not all can."""


def shows_one_thing(scene: Scene, _: Sample) -> bool:
    return len(scene.things) == 1 and main_pixels(scene).sum() >= 100


def main_pixels(scene: Scene) -> np.ndarray:
    """(SEEN, SEEN) bool: where the first thing shows its named colour."""
    solids = scene.things[0].solids
    numbers = [FIRST_SOLID + i for i, solid in enumerate(solids) if solid.label in MAIN_SOLIDS]
    return np.isin(render(scene, SEEN).ids, numbers)


def held_out(size: int, fits: Fits = shows_anything) -> Iterator[Case]:
    """Scenes that training never sees and that pass `fits`, by ascending seed, with pictures of `size` pixels."""
    seed = HELD_OUT
    while True:
        scene = make_scene(seed)
        sample = sample_of(scene)
        if fits(scene, sample):
            picture = sample.picture if size == SEEN else render(scene, size).picture
            yield Case(scene, Image.fromarray(picture), sample)
        seed += 1
