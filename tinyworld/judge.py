"""How well a picture obeys its control map, read by the evaluation network, which drew none of the control maps.

For each conditioner: what a control map asks for, what the network finds in a picture, and the metric of
tinyworld/scoring.py that compares the two. For prompts: the name of the colour that a place in a picture has.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image
from skimage.morphology import skeletonize

from controlnet.conditioners import BY_NAME
from controlnet.maps.annotators.canny import draw_canny
from controlnet.maps.annotators.hed import safe_levels
from controlnet.maps.annotators.tiny import LINE_THRESHOLD, find_people, see, thin_lines
from controlnet.maps.annotators.tiny_network import Seen, TinyVisionModel
from controlnet.maps.annotators.upernet import ade20k_palette
from controlnet.maps.resizing import resize_map
from tinyworld.dataset import SEEN
from tinyworld.scoring import depth_error, edge_f1, mean_iou, ms_ssim, normal_error, pck
from tinyworld.things import COLOURS

People = Sequence[np.ndarray]
Marks = tuple[float, float]
"""The metric in its own unit, and the score from 0 to 1."""


@dataclass(frozen=True)
class Look:
    """A picture, and what the evaluation network sees in it."""

    full: np.ndarray
    """(n, n, 3) uint8: as it was painted."""
    pixels: np.ndarray
    """(128, 128, 3) uint8: as the network sees it."""
    seen: Seen
    numbers: np.ndarray
    """The ADE20K class of each of the network's classes."""


@dataclass(frozen=True)
class Reading:
    """One way to measure obedience to a conditioner."""

    conditioner: str
    metric: str
    """The name of the metric in the field."""
    wanted: Callable[[np.ndarray, People], Any]
    """A control map, (128, 128, 3) uint8, and the joints of the people it shows -> what the map asks for."""
    found: Callable[["Look"], Any]
    """A picture, as the network sees it -> what it shows, in the same form as `wanted`."""
    compare: Callable[[Any, Any], Marks]
    """What was found and what was wanted -> the marks."""
    full: bool = False
    """Whether `wanted` gets the control map as it was sent, not as large as the network sees pictures."""


def _score(metric: Callable[[Any, Any], float]) -> Callable[[Any, Any], Marks]:
    """Marks of a metric whose value is also its score."""

    def marks(found: Any, wanted: Any) -> Marks:
        value = metric(found, wanted)
        return value, value

    return marks


def _bright(control_map: np.ndarray, _: People) -> np.ndarray:
    return control_map.max(axis=2) > 127


def _thin(control_map: np.ndarray, _: People) -> np.ndarray:
    """Strokes are compared along their middle, since the thickness of the pen says nothing about the picture."""
    return skeletonize(control_map.max(axis=2) > 127)


def _facing(control_map: np.ndarray, _: People) -> np.ndarray:
    normals = control_map.astype(np.float32) / 127.5 - 1
    return normals / np.maximum(np.linalg.norm(normals, axis=2, keepdims=True), 1e-6)


def _numbers(control_map: np.ndarray, _: People) -> np.ndarray:
    """ADE20K's class at each pixel: the one with the nearest colour, since a file format may have changed it."""
    colours, place = np.unique(control_map.reshape(-1, 3), axis=0, return_inverse=True)
    away = np.abs(colours[:, None].astype(int) - ade20k_palette()[None].astype(int)).sum(2)
    return away.argmin(1)[place].reshape(control_map.shape[:2])


def _probable(logits: torch.Tensor) -> np.ndarray:
    return logits[0, 0].sigmoid().cpu().numpy()


def _edges(look: Look) -> np.ndarray:
    return skeletonize(_probable(look.seen.edges) > LINE_THRESHOLD)


def _outlines(look: Look) -> np.ndarray:
    return skeletonize(_probable(look.seen.outlines) > LINE_THRESHOLD)


def _coarse(pixels: np.ndarray) -> np.ndarray:
    """The mean colour of each square of 8 pixels."""
    return cv2.resize(pixels, None, fx=1 / 8, fy=1 / 8, interpolation=cv2.INTER_AREA).astype(np.float32)


def _colour_error(found: np.ndarray, wanted: np.ndarray) -> Marks:
    """RMSE, and 1 − RMSE / 128, so a difference as large as between grey and black scores 0."""
    error = float(np.sqrt(np.square(found - wanted).mean()))
    return error, max(0.0, 1 - error / 128)


FAINT_LINE = 63
"""Of 255. Soft lines count from this level on. Usual lines of a picture are drawn at 127 (lineart_standard.py)."""
_CLOSE, _EXACT = 0.1, 0.05
"""Shares of a person's size. At PCK's usual 0.2, a neck on the nose counts as right."""


def _canny_edges(look: Look) -> np.ndarray:
    """At the annotator's own thresholds."""
    return np.asarray(draw_canny(Image.fromarray(look.full)).convert("L")) > 127


def _people(look: Look) -> list[np.ndarray]:
    return find_people(look.seen)


def _sent_people(_: np.ndarray, people: People) -> People:
    return people


READINGS: dict[str, Reading] = {
    "canny": Reading("canny", "F1 of edges, 2 px", _bright, _edges, _score(edge_f1)),
    "canny, sharp": Reading(
        "canny",
        "F1 of Canny's edges, 1 px at full size",
        _bright,
        _canny_edges,
        _score(partial(edge_f1, tolerance=1)),
        full=True,
    ),
    "scribble": Reading("scribble", "F1 of strokes, 2 px", _thin, _outlines, _score(edge_f1)),
    "mlsd": Reading("mlsd", "F1 of lines, 2 px", _bright, lambda look: thin_lines(look.seen.straight), _score(edge_f1)),
    "hed": Reading(
        "hed",
        "multi-scale SSIM",
        lambda control_map, _: control_map[..., 0],
        lambda look: safe_levels(_probable(look.seen.outlines)),
        _score(ms_ssim),
    ),
    "depth": Reading(
        "depth",
        "RMSE of depth, 0–255",
        lambda control_map, _: control_map[..., 0],
        lambda look: look.seen.nearness[0, 0].cpu().numpy(),
        depth_error,
    ),
    "normal": Reading(
        "normal",
        "mean angle, degrees",
        _facing,
        lambda look: look.seen.normals[0].permute(1, 2, 0).cpu().numpy(),
        normal_error,
    ),
    "seg": Reading(
        "seg",
        "mIoU",
        _numbers,
        lambda look: look.numbers[look.seen.classes[0].argmax(0).cpu().numpy()],
        _score(mean_iou),
    ),
    "openpose": Reading("openpose", "PCK at 0.2", _sent_people, _people, _score(pck)),
    "openpose, close": Reading("openpose", "PCK at 0.1", _sent_people, _people, _score(partial(pck, alpha=_CLOSE))),
    "openpose, exact": Reading("openpose", "PCK at 0.05", _sent_people, _people, _score(partial(pck, alpha=_EXACT))),
    "lineart": Reading(
        "lineart",
        "F1 of lines, 2 px",
        lambda control_map, _: skeletonize(control_map.max(axis=2) > FAINT_LINE),
        _edges,
        _score(edge_f1),
    ),
    "tile": Reading(
        "tile",
        "RMSE of colours at an eighth",
        lambda control_map, _: _coarse(control_map),
        lambda look: _coarse(look.pixels),
        _colour_error,
    ),
}
MEASURED = tuple(dict.fromkeys(reading.conditioner for reading in READINGS.values()))
"""The conditioners that can be measured."""


def readings_of(conditioner: str) -> dict[str, Reading]:
    """Those of one conditioner, by name. The first has the conditioner's name."""
    return {name: reading for name, reading in READINGS.items() if reading.conditioner == conditioner}


class Judge:
    """The evaluation network."""

    def __init__(self, network: TinyVisionModel) -> None:
        self.network = network
        self.numbers = np.array(network.config["classes"])

    def look(self, picture: Image.Image) -> Look:
        """What there is to see in an RGB picture, (n, n)."""
        small = reduced(picture)
        return Look(np.asarray(picture), np.asarray(small), see(self.network, small), self.numbers)

    def found(self, reading: str, picture: Image.Image) -> Any:
        """The edges, depth, joints and so on that a picture shows. `reading` is a key of READINGS."""
        return READINGS[reading].found(self.look(picture))


def wanted(reading: str, control_map: Image.Image, people: People) -> Any:
    """What the control map, (n, n), asks for. `people` are the joints that a skeleton map shows, (18, 3) each."""
    asked = READINGS[reading]
    if not asked.full:
        control_map = resize_map(control_map, (SEEN, SEEN), BY_NAME[asked.conditioner].form)
    return asked.wanted(np.asarray(control_map.convert("RGB")), people)


def reduced(picture: Image.Image) -> Image.Image:
    """The picture at the size that the evaluation network reads."""
    if picture.size == (SEEN, SEEN):
        return picture
    return picture.resize((SEEN, SEEN), Image.Resampling.LANCZOS)


BRIGHTNESSES = np.linspace(0.55, 1.15, 13)
"""How light or shadow may change a surface's colour in this world."""


def colour_of(pixels: np.ndarray) -> str:
    """The name of the colour of these pixels, (N, 3) uint8: the nearest of the world's colours in any light.

    A shaded white looks grey, and a shaded orange brown. So an unlikely light counts against a colour: a hundredth of
    the range for each tenth of brightness.
    """
    mean = pixels.reshape(-1, 3).mean(0) / 255
    lights = BRIGHTNESSES[:, None]
    cost = 0.1 * np.abs(BRIGHTNESSES - 0.85)
    away = {name: (np.linalg.norm(lights * np.array(rgb) - mean, axis=1) + cost).min() for name, rgb in COLOURS.items()}
    return min(away, key=lambda name: away[name])
