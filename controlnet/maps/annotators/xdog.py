"""XDoG: rough strokes without weights. H. Winnemöller, J. E. Kyprianidis, S. C. Olsen, "XDoG: An eXtended
difference-of-Gaussians compendium including advanced image stylization", Computers & Graphics 36 (2012)."""

import cv2
import numpy as np
from PIL import Image

from . import Annotator
from .doodle import find_strokes

# In the paper's terms: D = G(sigma) - tau * G(k * sigma), and ink where D < epsilon. Here tau = 1, so that flat areas
# are never ink however dark they are, epsilon = -DARKER, and phi is infinite: strokes are black or white.
SIGMA = 1.4
"""Pixels at a short side of 512; scales with the picture. Sets how fine a detail becomes a stroke."""
SMALLEST_SIGMA = 0.8
"""Pixels, whatever the picture's size: a narrower one falls between the pixels, and strokes become dashes."""
K = 3.0
"""The surroundings are this many times wider than the detail. The paper's 1.6 gives hair lines; 3 gives a soft pen's
strokes, within the 1 to 24 pixels that scribbles had in training."""
DARKER = 0.035
"""How much darker than its surroundings ink is, as a share of the range from black to white."""
SHORTEST = 20
"""Pixels at a short side of 512: strokes that are neither that wide nor that high are texture, and are left out."""


def load(device: object) -> Annotator:
    """Needs no weights, and OpenCV runs it on the CPU whatever the device."""
    return draw_xdog


def draw_xdog(image: Image.Image) -> Image.Image:
    """RGB picture -> white strokes on black: a doodle's own strokes (doodle.py), any other picture's xdog_strokes."""
    strokes = find_strokes(image)
    if strokes is None:
        strokes = xdog_strokes(cv2.cvtColor(np.array(image.convert("RGB")), cv2.COLOR_RGB2GRAY))
    return Image.fromarray(strokes).convert("RGB")


def xdog_strokes(grey: np.ndarray) -> np.ndarray:
    """Grey uint8 [height, width] -> strokes, 255 on 0, of the same shape: the dark side of edges, and dark lines."""
    scale = min(grey.shape) / 512
    tones = grey.astype(np.float32) / 255
    sigma = max(SIGMA * scale, SMALLEST_SIGMA)
    detail = cv2.GaussianBlur(tones, (0, 0), sigma)
    surroundings = cv2.GaussianBlur(tones, (0, 0), K * sigma)
    ink = (detail - surroundings < -DARKER).astype(np.uint8)
    _, labels, boxes, _ = cv2.connectedComponentsWithStats(ink, connectivity=8)
    extents = np.maximum(boxes[:, cv2.CC_STAT_WIDTH], boxes[:, cv2.CC_STAT_HEIGHT])
    kept = extents >= SHORTEST * scale
    kept[0] = False  # label 0 is what is not ink
    return kept[labels].astype(np.uint8) * 255
