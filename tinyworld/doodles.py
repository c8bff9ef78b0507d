"""Doodles of a scene: its outlines as a person draws them, with a pen, stroke by stroke."""

from itertools import pairwise

import cv2
import numpy as np

Random = np.random.Generator
CORNER = 2.5
"""Pixels of 128: a bend of an outline within this of a straight line does not end a stroke."""
WOBBLE = 1.2
"""Standard deviation, in pixels of 128, of the slow drift of a whole drawing."""
SMALLEST = 12
"""Pixels of 128: an area smaller than this is not drawn around."""
LONGEST_SLIP = 4.0
"""Pixels of 128: strokes end this much too early or too late, at most."""


def pen(width: int) -> np.ndarray:
    """A round pen, for cv2.dilate."""
    return cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (width, width))


def doodle(outlines: np.ndarray, rng: Random) -> np.ndarray:
    """Outlines, (n, n) uint8 0 or 255 -> strokes of the same form, one to six pixels of 256 thick.

    In half of the doodles every line between two corners is a stroke of its own: corners stay open, or strokes
    overshoot. In the others the pen follows the outlines.
    """
    unit = len(outlines) / 128
    drawn = _stroke_by_stroke(outlines, unit, rng) if rng.random() < 0.5 else outlines
    moved = _drift(drawn, unit, rng)
    thick = cv2.dilate(moved, pen(int(rng.integers(1, round(3 * unit) + 1))))
    return np.where(thick > 90, 255, 0).astype(np.uint8)


def _drift(drawn: np.ndarray, unit: float, rng: Random) -> np.ndarray:
    """Shifted smoothly by up to two pixels of 128."""
    size = len(drawn)
    shift = rng.normal(0, WOBBLE * unit, (6, 6, 2)).astype(np.float32)
    shift = cv2.resize(shift, (size, size), interpolation=cv2.INTER_CUBIC)
    y, x = np.mgrid[:size, :size].astype(np.float32)
    return cv2.remap(drawn, x + shift[..., 0], y + shift[..., 1], cv2.INTER_LINEAR)


def _stroke_by_stroke(outlines: np.ndarray, unit: float, rng: Random) -> np.ndarray:
    """Draw around each area between the outlines, in any order, where no stroke is yet."""
    drawn, near = np.zeros_like(outlines), np.zeros_like(outlines)
    _, areas, stats, _ = cv2.connectedComponentsWithStats((outlines == 0).astype(np.uint8), connectivity=4)
    numbers = [i for i in range(1, len(stats)) if stats[i, cv2.CC_STAT_AREA] >= SMALLEST * unit**2]
    for number in rng.permutation(numbers):
        around, _ = cv2.findContours((areas == number).astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        for contour in around:
            for stroke in _strokes(contour[:, 0].astype(np.float32), unit):
                new = near[stroke[:, 1].astype(int), stroke[:, 0].astype(int)] == 0
                framed = ((stroke <= 1) | (stroke >= len(outlines) - 2)).any(1)  # nobody draws the picture's frame
                for run in _runs(stroke, new & ~framed):
                    if len(run) >= 3 * unit:
                        cv2.polylines(drawn, [_slipped(run, unit, rng)], False, 255)
                        cv2.polylines(near, [run.astype(np.int32)], False, 255, round(5 * unit))
    return drawn


def _strokes(contour: np.ndarray, unit: float) -> list[np.ndarray]:
    """A closed contour, (N, 2), cut at its corners."""
    corners = cv2.approxPolyDP(contour[:, None], CORNER * unit, True)[:, 0]
    if len(corners) > 8:  # round: the pen goes around it at once
        return [np.concatenate([contour, contour[:1]])]
    places = sorted(int(np.abs(contour - corner).sum(1).argmin()) for corner in corners)
    turned = np.concatenate([contour[places[0] :], contour[: places[0] + 1]])
    cuts = [place - places[0] for place in places] + [len(contour)]
    return [turned[start : end + 1] for start, end in pairwise(cuts) if end > start]


def _runs(stroke: np.ndarray, new: np.ndarray) -> list[np.ndarray]:
    """The parts of a stroke where `new` is true."""
    bounds = np.flatnonzero(np.diff(np.concatenate([[0], new.astype(np.int8), [0]])))
    return [stroke[start:end] for start, end in bounds.reshape(-1, 2)]


def _slipped(run: np.ndarray, unit: float, rng: Random) -> np.ndarray:
    """A stroke of the hand: its ends too early or too late, as int32 for cv2.polylines."""
    for _ in range(2):
        slip, run = rng.uniform(-0.6, 1.0) * LONGEST_SLIP * unit, run[::-1]
        if slip < 0:
            run = run[: max(2, len(run) + int(slip))]
        else:
            way = run[-1] - run[-1 - min(len(run) - 1, round(6 * unit))]
            run = np.concatenate([run, [run[-1] + way / max(float(np.hypot(*way)), 1e-6) * slip]])
    return np.rint(run).astype(np.int32)
