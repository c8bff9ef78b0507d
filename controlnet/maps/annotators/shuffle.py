"""Content shuffle: a picture's colours and textures without its layout. ControlNet 1.1's shuffle net was trained to
restore the picture from them (github.com/lllyasviel/ControlNet-v1-1-nightly)."""

import zlib

import cv2
import numpy as np
from PIL import Image

from . import Annotator

WAVELENGTH = 0.5
"""Distance between the random values of the flow, as a share of the short side: 256 pixels at 512, as in training."""


def load(device: object) -> Annotator:
    """Needs no weights and ignores the device: OpenCV always runs on the CPU."""
    return draw_shuffle


def draw_shuffle(image: Image.Image, shuffle_seed: int | None = None) -> Image.Image:
    """RGB picture -> the same picture, moved by a smooth random flow: each pixel comes from where the flow points.

    The flow is that of controlnet_aux's ContentShuffleDetector. The detector takes its numbers from NumPy's global
    generator, so it gives a different map each time. Here they come from a local generator. Without a seed, 0 to
    2³² − 1, it is seeded with the pixels.
    """
    pixels = np.array(image.convert("RGB"))
    # RandomState instead of default_rng: NumPy keeps its numbers the same in all versions (NEP 19).
    seed = zlib.crc32(pixels.tobytes()) if shuffle_seed is None else shuffle_seed
    across, down = shuffle_flow(image.size, np.random.RandomState(seed))
    return Image.fromarray(cv2.remap(pixels, across, down, cv2.INTER_LINEAR))


def shuffle_flow(size: tuple[int, int], random: np.random.RandomState) -> np.ndarray:
    """The place that each pixel of a picture of (width, height) `size` comes from: x and y, float32 [2, height, width].

    The flow reaches all four sides of the picture and never leaves it.
    """
    width, height = size
    step = max(1, round(WAVELENGTH * min(size)))
    across, down = (smooth_noise(size, step, random) * (side - 1) for side in (width, height))
    return np.stack([across, down]).astype(np.float32)


def smooth_noise(size: tuple[int, int], step: int, random: np.random.RandomState) -> np.ndarray:
    """Noise with a random value every `step` pixels, smooth in between: float64 [height, width], 0 to 1."""
    width, height = size
    coarse = random.uniform(size=(height // step + 2, width // step + 2))
    fine = cv2.resize(coarse, (width + 2 * step, height + 2 * step), interpolation=cv2.INTER_CUBIC)
    noise = fine[step : step + height, step : step + width]
    noise = noise - noise.min()
    return noise / noise.max()
