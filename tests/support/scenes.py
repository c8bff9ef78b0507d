"""A few scenes of the toy world with people in them."""

from functools import cache

import numpy as np

from tinyworld.dataset import ARRAYS, Dataset, render_seed
from tinyworld.scene import make_scene


@cache
def small_dataset() -> Dataset:
    seeds = [seed for seed in range(200) if "person" in make_scene(seed).caption][:2]
    rows = [render_seed(seed) for seed in seeds]
    return Dataset(**{name: np.stack([row[name] for row, _ in rows]) for name in ARRAYS}, captions=[c for _, c in rows])
