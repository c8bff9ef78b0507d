"""Recognise a picture that is a doodle already, and use its strokes unchanged.

An edge detector outlines each pen stroke on both sides, and a scribble ControlNet then draws tubes instead of lines. So
a doodle must not go through an edge detector.
"""

import cv2
import numpy as np
from PIL import Image

COLOURED = 48
"""Spread between a pixel's channels, 0 to 255, above which it counts as coloured. JPEG noise stays far below."""
COLOURED_SHARE = 0.1
"""A doodle has at most this share of coloured pixels. A coloured pen is fine, coloured paper is not."""
CONTRAST = 96
"""Smallest difference between the mean tones of ink and paper, 0 to 255."""
TWO_TONE = 0.85
"""Smallest share of the grey levels' variance that a split into ink and paper explains (Otsu's criterion). Photos stay
below it. Anti-aliased lines, the softest drawings there are, stay above it."""
INK_SHARE = 0.35
"""Ink covers at most this share of the picture."""
STROKE_RADIUS = 16
"""Half the width of the thickest pen stroke, in pixels at a short side of 512. Deeper ink belongs to a filled shape."""
FILLED_SHARE = 0.1
"""At most this share of the ink may lie deeper than STROKE_RADIUS: crossings and dots pass, silhouettes do not."""


def find_strokes(image: Image.Image) -> np.ndarray | None:
    """A doodle's strokes as uint8 [height, width], white (255) on black (0), or None if the picture is not a doodle.

    A doodle is a nearly two-tone, unsaturated line drawing, dark on light or light on dark. The rarer tone is the ink.
    The tenth of the tones nearest to the ink becomes pure white and the tenth nearest to the paper pure black. The
    tones in between keep their anti-aliasing.
    """
    pixels = np.array(image.convert("RGB"))
    spread = pixels.max(axis=2) - pixels.min(axis=2)
    if (spread > COLOURED).mean() > COLOURED_SHARE:
        return None
    grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
    threshold, _ = cv2.threshold(grey, 0, 255, cv2.THRESH_BINARY | cv2.THRESH_OTSU)
    light = grey > threshold
    if light.all() or not light.any():
        return None
    ink_mask = light if light.mean() < 0.5 else ~light
    if not _is_line_drawing(grey, ink_mask):
        return None
    # Medians, because the anti-aliased edges of thin strokes would pull the means together.
    ink, paper = float(np.median(grey[ink_mask])), float(np.median(grey[~ink_mask]))
    inkness = (grey.astype(np.float32) - paper) / (ink - paper)
    return np.rint(np.clip((inkness - 0.1) / 0.8, 0, 1) * 255).astype(np.uint8)


def _is_line_drawing(grey: np.ndarray, ink_mask: np.ndarray) -> bool:
    share = float(ink_mask.mean())
    distance = abs(float(grey[ink_mask].mean()) - float(grey[~ink_mask].mean()))
    explained = share * (1 - share) * distance**2 / float(grey.astype(np.float64).var())
    if share > INK_SHARE or distance < CONTRAST or explained < TWO_TONE:
        return False
    depth = cv2.distanceTransform(ink_mask.astype(np.uint8), cv2.DIST_L2, 5)
    deep = depth > STROKE_RADIUS * min(grey.shape) / 512
    return float(deep.sum()) <= FILLED_SHARE * float(ink_mask.sum())
