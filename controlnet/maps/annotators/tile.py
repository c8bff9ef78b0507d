"""Tile: the picture without its details, which ControlNet 1.1's tile net paints again
(github.com/lllyasviel/ControlNet-v1-1-nightly)."""

import cv2
import numpy as np
from PIL import Image

from . import Annotator

FACTOR = 1.0
"""The net's authors show it the picture itself. One that was enlarged to the canvas has no details to be dropped."""


def load(device: object) -> Annotator:
    """Needs no weights and ignores the device: OpenCV always runs on the CPU."""
    return draw_tile


def draw_tile(image: Image.Image, tile_factor: float = FACTOR) -> Image.Image:
    """RGB picture -> the same picture reduced to 1 / tile_factor of its sides, then enlarged to its own size again.

    At a factor of 1 that is the picture itself. Averaging on the way down keeps the colours. Cubic interpolation on the
    way up leaves no blocks.
    """
    pixels = np.array(image.convert("RGB"))
    small = [round(side / tile_factor) for side in image.size]
    coarse = cv2.resize(pixels, small, interpolation=cv2.INTER_AREA)
    return Image.fromarray(cv2.resize(coarse, image.size, interpolation=cv2.INTER_CUBIC))
