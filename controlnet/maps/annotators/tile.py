"""Tile: the picture without its details, which ControlNet 1.1's tile net paints again
(github.com/lllyasviel/ControlNet-v1-1-nightly)."""

import cv2
import numpy as np
from PIL import Image

from . import Annotator

FACTOR = 8
"""The picture is reduced by this factor. The net's authors use pictures of 64 pixels for 512."""


def load(device: object) -> Annotator:
    """Needs no weights and ignores the device: OpenCV always runs on the CPU."""
    return draw_tile


def draw_tile(image: Image.Image, factor: int = FACTOR) -> Image.Image:
    """RGB picture -> the same picture reduced to 1 / factor of its sides, then enlarged to its own size again.

    Averaging on the way down keeps the colours. Cubic interpolation on the way up leaves no blocks. A picture that was
    enlarged already, to have its details painted, loses little. To lose nothing, send it as a ready-made map.
    """
    pixels = np.array(image.convert("RGB"))
    small = [max(1, round(side / factor)) for side in image.size]
    coarse = cv2.resize(pixels, small, interpolation=cv2.INTER_AREA)
    return Image.fromarray(cv2.resize(coarse, image.size, interpolation=cv2.INTER_CUBIC))
