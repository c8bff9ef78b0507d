"""Requests as predict() reads them, and pictures for them."""

from types import SimpleNamespace

import numpy as np
from PIL import Image

from controlnet.pictures.canvas import MASKS, PICTURES

OUTPAINT = {f"outpaint_{side}": 0 for side in ("left", "right", "top", "bottom")}


def asked(**sent) -> SimpleNamespace:
    nothing = dict.fromkeys((*PICTURES, *MASKS, "width", "height", "prompt_strength"))
    return SimpleNamespace(**(nothing | OUTPAINT | {"resolution": 64, "resize_mode": "crop"} | sent))


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)
