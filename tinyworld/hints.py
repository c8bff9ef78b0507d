"""The control maps that each ControlNet is trained on, drawn from the pictures or from the renderer's truth.

A hint turns rows of the data set into control maps, (B, 3, 128, 128) float32 in [0, 1], as the pipeline feeds them.
"""

from collections.abc import Callable

import cv2
import numpy as np
import torch

from controlnet.annotators.xdog import xdog_strokes
from tinyworld.dataset import Dataset

Hint = Callable[[Dataset, torch.Tensor, torch.Tensor, torch.Generator], torch.Tensor]


def _hint(draw: Callable[[Dataset, int, np.random.Generator], np.ndarray]) -> Hint:
    """A hint from a function that draws one (128, 128) uint8 map; mirrors it where the picture is mirrored."""

    def hint(dataset: Dataset, rows: torch.Tensor, flips: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        seeds = torch.randint(2**31, (len(rows),), generator=generator)
        maps = []
        for row, flip, seed in zip(rows.tolist(), flips.tolist(), seeds.tolist(), strict=True):
            drawn = draw(dataset, row, np.random.default_rng(seed))
            maps.append(np.ascontiguousarray(drawn[:, ::-1]) if flip else drawn)
        grey = torch.from_numpy(np.stack(maps)).float() / 255
        return grey[:, None].expand(-1, 3, -1, -1).contiguous()

    return hint


def canny_map(dataset: Dataset, row: int, rng: np.random.Generator) -> np.ndarray:
    """Canny with random thresholds, as ControlNet's was trained; often the annotator's own 100 and 200."""
    low, high = (100, 200) if rng.random() < 0.4 else sorted(rng.uniform(40, 250, 2))
    return cv2.Canny(cv2.cvtColor(dataset.pictures[row], cv2.COLOR_RGB2GRAY), low, high)


def scribble_map(dataset: Dataset, row: int, rng: np.random.Generator) -> np.ndarray:
    """Half the time what XDoG makes of the picture, half the time wobbly pen strokes along the outlines."""
    if rng.random() < 0.5:
        return xdog_strokes(cv2.cvtColor(dataset.pictures[row], cv2.COLOR_RGB2GRAY))
    return doodle(np.asarray(dataset.outlines[row]), rng)


def doodle(outline: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Outlines as a person would scrawl them: shifted about smoothly by up to two pixels, one to four pixels thick."""
    size = outline.shape[0]
    shift = cv2.resize(rng.normal(0, 1.2, (6, 6, 2)).astype(np.float32), (size, size), interpolation=cv2.INTER_CUBIC)
    y, x = np.mgrid[:size, :size].astype(np.float32)
    moved = cv2.remap(outline, x + shift[..., 0], y + shift[..., 1], cv2.INTER_LINEAR)
    width = int(rng.integers(1, 4))
    thick = cv2.dilate(moved, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (width, width)))
    return np.where(thick > 90, 255, 0).astype(np.uint8)


HINTS: dict[str, Hint] = {"canny": _hint(canny_map), "scribble": _hint(scribble_map)}
