"""A few scenes of the procedural world, rendered when they are first used and kept."""

from collections.abc import Iterator
from functools import cache
from itertools import count

import numpy as np

from tinyworld.cases import Case, Fits, held_out, shows_anything, shows_people
from tinyworld.dataset import SEEN, Dataset, render_seed, shapes
from tinyworld.scene import make_scene


@cache
def small_dataset(size: int = SEEN) -> Dataset:
    """Two training scenes with people."""
    seeds = [seed for seed in range(200) if "person" in make_scene(seed).caption][:2]
    rendered = [render_seed(seed) for seed in seeds]
    arrays = {name: np.stack([rows[size][name] for rows, _ in rendered]) for name in shapes(size)}
    return Dataset(**arrays, words=[words for _, words in rendered])


def kept_held_out(size: int, fits: Fits = shows_anything) -> Iterator[Case]:
    """The scenes of tinyworld.cases.held_out, each rendered once in this process."""
    cases, further = _held_out(size, fits)
    for i in count():
        if i == len(cases):
            cases.append(next(further))
        yield cases[i]


@cache
def _held_out(size: int, fits: Fits) -> tuple[list[Case], Iterator[Case]]:
    return [], held_out(size, fits)


def people_case() -> Case:
    """The first held-out scene with people, at 128 pixels."""
    return next(kept_held_out(128, shows_people))
