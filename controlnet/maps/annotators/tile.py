"""Tile: the picture without its details, which the tile net of ControlNet 1.1 paints anew
(github.com/lllyasviel/ControlNet-v1-1-nightly)."""

import cv2
import numpy as np
from PIL import Image

from . import Annotator

FACTOR = 8
"""How many times smaller the picture is made. The net's authors show it a picture of 64 pixels for one of 512."""


def load(device: object) -> Annotator:
    """Needs no weights, and OpenCV runs it on the CPU whatever the device."""
    return draw_tile


def draw_tile(image: Image.Image, factor: int = FACTOR) -> Image.Image:
    """RGB picture -> what is left of it at an eighth of its sides (1 / factor), enlarged to its own size again.

    Averaging on the way down keeps the colours, and a cubic curve on the way up blurs without blocks or a blur of its
    own. A picture that was enlarged already, to have its details painted, loses little; to lose nothing, it is sent
    as a ready-made map.
    """
    pixels = np.array(image.convert("RGB"))
    small = [max(1, round(side / factor)) for side in image.size]
    coarse = cv2.resize(pixels, small, interpolation=cv2.INTER_AREA)
    return Image.fromarray(cv2.resize(coarse, image.size, interpolation=cv2.INTER_CUBIC))
