"""Canny: hard edges, white on black. J. Canny, "A Computational Approach to Edge Detection", PAMI 1986."""

import cv2
import numpy as np
from PIL import Image

from . import Annotator

LOW_THRESHOLD = 100
HIGH_THRESHOLD = 200
"""Gradient strengths. ControlNet was trained on random thresholds; this pair is its authors' default."""
STRONGEST = 255
"""OpenCV's gradients reach further, but this is the range that users know."""


def load(device: object) -> Annotator:
    """Needs no weights. OpenCV runs it on the CPU, for any device."""
    return draw_canny


def fault(low_threshold: float = LOW_THRESHOLD, high_threshold: float = HIGH_THRESHOLD) -> str | None:
    """None if 0 <= low_threshold < high_threshold <= 255, else a sentence that says so."""
    if 0 <= low_threshold < high_threshold <= STRONGEST:
        return None
    return (
        f"canny cannot work with low_threshold {low_threshold:g} and high_threshold {high_threshold:g}: expected "
        f"numbers from 0 to {STRONGEST}, the low one below the high one (left out, they are {LOW_THRESHOLD} and "
        f"{HIGH_THRESHOLD})."
    )


def draw_canny(
    image: Image.Image, low_threshold: float = LOW_THRESHOLD, high_threshold: float = HIGH_THRESHOLD
) -> Image.Image:
    """RGB picture -> its edges, 255 on 0, one pixel wide: OpenCV's Canny on the colours, at its own size.

    An edge starts where the gradient is above high_threshold and goes on while it is above low_threshold. `fault` says
    which thresholds can be used. Of a pixel's three gradients OpenCV takes the strongest. ControlNet was trained on
    that. Grey has no edge between two colours of the same brightness.
    """
    edges = cv2.Canny(np.array(image.convert("RGB")), low_threshold, high_threshold)
    return Image.fromarray(edges).convert("RGB")
