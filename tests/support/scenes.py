"""A few scenes of the procedural world, rendered when they are first used and kept."""

from collections.abc import Iterator
from functools import cache
from itertools import count

import numpy as np

from tinyworld.cases import Case, Fits, held_out, shows_anything, shows_people
from tinyworld.dataset import ARRAYS, Dataset, render_seed
from tinyworld.scene import make_scene


@cache
def small_dataset() -> Dataset:
    """Two training scenes with people."""
    seeds = [seed for seed in range(200) if "person" in make_scene(seed).caption][:2]
    rows = [render_seed(seed) for seed in seeds]
    return Dataset(**{name: np.stack([row[name] for row, _ in rows]) for name in ARRAYS}, captions=[c for _, c in rows])


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
