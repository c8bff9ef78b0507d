"""Canny: hard edges, white on black. J. Canny, "A Computational Approach to Edge Detection", PAMI 1986."""

import cv2
import numpy as np
from PIL import Image

from . import Annotator

LOW_THRESHOLD = 100
HIGH_THRESHOLD = 200
"""Gradient strengths. ControlNet was trained on random thresholds; this pair is its authors' default."""


def load(device: object) -> Annotator:
    """Needs no weights, and OpenCV runs it on the CPU whatever the device."""
    return draw_canny


def draw_canny(image: Image.Image) -> Image.Image:
    """RGB picture -> its edges, 255 on 0, one pixel wide: OpenCV's Canny on the grey picture, at its own size."""
    grey = cv2.cvtColor(np.array(image.convert("RGB")), cv2.COLOR_RGB2GRAY)
    return Image.fromarray(cv2.Canny(grey, LOW_THRESHOLD, HIGH_THRESHOLD)).convert("RGB")
