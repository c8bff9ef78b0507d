"""Line art without weights: pixels that are darker than their blurred surroundings become soft lines. This is known as
the standard lineart preprocessor (github.com/Fannovel16/comfyui_controlnet_aux)."""

import cv2
import numpy as np
from PIL import Image

from . import Annotator
from .lineart import white_lines
from .network import private_pixels, restore_soft

SIGMA = 6 / 512
"""Standard deviation of the blur of the surroundings, as a share of the short side."""
FAINTEST = 8
"""Of 255. A smaller difference is not a line and does not count towards the usual darkness of the lines."""
LEAST_DARKNESS = 16
"""Of 255. If all lines of a picture are fainter than this, they stay below half strength."""
LARGEST_SHORT_SIDE = 512
"""Pixels. A larger picture is reduced to it first."""


def load(device: object) -> Annotator:
    """Needs no weights and ignores the device: OpenCV always runs on the CPU."""
    return draw_lineart_standard


def draw_lineart_standard(image: Image.Image, short_side: int = LARGEST_SHORT_SIDE) -> Image.Image:
    """RGB picture -> its dark lines and the dark sides of its edges, white on black with soft edges.

    A picture whose short side is larger than short_side, in pixels, is reduced to that size first; smaller pictures are
    used as they are. At a short side of 512 the map equals the one of controlnet_aux's LineartStandardDetector, except
    for a picture without any lines: there the detector takes the median of an empty array.
    """
    pixels = private_pixels(image, min(short_side, *image.size), 1).astype(np.float32)
    surroundings = cv2.GaussianBlur(pixels, (0, 0), SIGMA * min(pixels.shape[:2]))
    darker = (surroundings - pixels).min(axis=2).clip(0, 255)  # darker in every channel, not just another colour
    lines = darker[darker > FAINTEST]
    usual = max(LEAST_DARKNESS, float(np.median(lines))) if lines.size else LEAST_DARKNESS
    return white_lines(255 - restore_soft((darker / usual * 127).clip(0, 255), image.size))
