"""Content shuffle: a picture's colours and textures without its layout, which the shuffle net of ControlNet 1.1 puts
together to a picture again (github.com/lllyasviel/ControlNet-v1-1-nightly)."""

import zlib

import cv2
import numpy as np
from PIL import Image

from . import Annotator

WAVELENGTH = 0.5
"""Distance between the flow's random values, in short sides of the picture: 256 pixels at 512, as in training."""


def load(device: object) -> Annotator:
    """Needs no weights, and OpenCV runs it on the CPU whatever the device."""
    return draw_shuffle


def draw_shuffle(image: Image.Image) -> Image.Image:
    """RGB picture -> the same picture with each pixel taken from where a smooth random flow points.

    The flow is that of controlnet_aux's ContentShuffleDetector, which draws it from NumPy's global generator and so
    gives another map every time. Here the numbers come from a generator of this one call, seeded with the pixels.
    """
    pixels = np.array(image.convert("RGB"))
    # RandomState and not default_rng: NumPy keeps its numbers the same in all versions (NEP 19).
    across, down = shuffle_flow(image.size, np.random.RandomState(zlib.crc32(pixels.tobytes())))
    return Image.fromarray(cv2.remap(pixels, across, down, cv2.INTER_LINEAR))


def shuffle_flow(size: tuple[int, int], random: np.random.RandomState) -> np.ndarray:
    """Where to take each pixel of a picture of (width, height) `size` from: x and y, float32 [2, height, width].

    All four sides of the picture are reached, and no place outside it.
    """
    width, height = size
    step = max(1, round(WAVELENGTH * min(size)))
    across, down = (smooth_noise(size, step, random) * (side - 1) for side in (width, height))
    return np.stack([across, down]).astype(np.float32)


def smooth_noise(size: tuple[int, int], step: int, random: np.random.RandomState) -> np.ndarray:
    """Noise with random values every `step` pixels and smooth in between: float64 [height, width], from 0 to 1."""
    width, height = size
    coarse = random.uniform(size=(height // step + 2, width // step + 2))
    fine = cv2.resize(coarse, (width + 2 * step, height + 2 * step), interpolation=cv2.INTER_CUBIC)
    noise = fine[step : step + height, step : step + width]
    noise = noise - noise.min()
    return noise / noise.max()
