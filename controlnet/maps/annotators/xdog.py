"""XDoG: rough strokes without weights. H. Winnemöller, J. E. Kyprianidis, S. C. Olsen, "XDoG: An eXtended
difference-of-Gaussians compendium including advanced image stylization", Computers & Graphics 36 (2012)."""

import cv2
import numpy as np
from PIL import Image

from . import Annotator
from .doodle import find_strokes

# In the paper's terms: D = G(sigma) - tau * G(k * sigma), and a pixel is ink if D < epsilon. Here tau = 1, so flat
# areas are never ink, however dark they are; epsilon = -DARKER; and phi is infinite, so strokes are black or white.
SIGMA = 1.4
"""Pixels at a short side of 512; scales with the picture. A smaller value turns finer details into strokes."""
SMALLEST_SIGMA = 0.8
"""Pixels, at any size of the picture. A narrower blur falls between the pixels, and strokes become dashes."""
K = 3.0
"""The surroundings are this many times wider than the detail. The paper's 1.6 gives hairlines. 3 gives the strokes of a
soft pen, within the 1 to 24 pixels that scribbles had in training."""
DARKER = 0.035
"""Ink is darker than its surroundings by more than this share of the range from black to white."""
SHORTEST = 20
"""Pixels at a short side of 512. Strokes that are neither this wide nor this high are texture and are dropped."""


def load(device: object) -> Annotator:
    """Needs no weights and ignores the device: OpenCV always runs on the CPU."""
    return draw_xdog


def draw_xdog(image: Image.Image) -> Image.Image:
    """RGB picture -> white strokes on black: a doodle's own strokes (doodle.py), or xdog_strokes for other pictures."""
    strokes = find_strokes(image)
    if strokes is None:
        strokes = xdog_strokes(cv2.cvtColor(np.array(image.convert("RGB")), cv2.COLOR_RGB2GRAY))
    return Image.fromarray(strokes).convert("RGB")


def xdog_strokes(grey: np.ndarray) -> np.ndarray:
    """Grey uint8 [height, width] -> strokes, 255 on 0, of the same shape: dark lines and the dark sides of edges."""
    scale = min(grey.shape) / 512
    tones = grey.astype(np.float32) / 255
    sigma = max(SIGMA * scale, SMALLEST_SIGMA)
    detail = cv2.GaussianBlur(tones, (0, 0), sigma)
    surroundings = cv2.GaussianBlur(tones, (0, 0), K * sigma)
    ink = (detail - surroundings < -DARKER).astype(np.uint8)
    _, labels, boxes, _ = cv2.connectedComponentsWithStats(ink, connectivity=8)
    extents = np.maximum(boxes[:, cv2.CC_STAT_WIDTH], boxes[:, cv2.CC_STAT_HEIGHT])
    kept = extents >= SHORTEST * scale
    kept[0] = False  # label 0 is the paper
    return kept[labels].astype(np.uint8) * 255
