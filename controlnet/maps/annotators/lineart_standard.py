"""Line art without weights: what is darker than its blurred surroundings, as a soft line. Known in the field as the
standard lineart preprocessor (github.com/Fannovel16/comfyui_controlnet_aux)."""

import cv2
import numpy as np
from PIL import Image

from . import Annotator
from .lineart import white_lines
from .network import private_pixels, restore_soft

SIGMA = 6 / 512
"""Of the surroundings' blur, as a share of the short side."""
FAINTEST = 8
"""Of 255: a smaller difference is no line, and does not count towards how dark the picture's lines are."""
LEAST_DARKNESS = 16
"""Of 255: the lines of a picture that has only fainter ones stay fainter than half."""
SHORT_SIDE = 512
"""Pixels."""


def load(device: object) -> Annotator:
    """Needs no weights, and OpenCV runs it on the CPU whatever the device."""
    return draw_lineart_standard


def draw_lineart_standard(image: Image.Image, short_side: int = SHORT_SIDE) -> Image.Image:
    """RGB picture -> its dark lines and the dark sides of its edges, white on black with soft rims.

    Pictures with a larger short side than short_side, in pixels, are looked at in that size, smaller ones as they are.
    Where the picture's short side is 512, the map is that of controlnet_aux's LineartStandardDetector, which divides by
    the mean of nothing where there are no lines at all.
    """
    pixels = private_pixels(image, min(short_side, *image.size), 1).astype(np.float32)
    surroundings = cv2.GaussianBlur(pixels, (0, 0), SIGMA * min(pixels.shape[:2]))
    darker = (surroundings - pixels).min(axis=2).clip(0, 255)  # darker in every channel, not of another colour
    lines = darker[darker > FAINTEST]
    usual = max(LEAST_DARKNESS, float(np.median(lines))) if lines.size else LEAST_DARKNESS
    return white_lines(255 - restore_soft((darker / usual * 127).clip(0, 255), image.size))
