"""Line art like a hand drawing. C. Chan, F. Durand, P. Isola, "Learning to Generate Line Drawings That Convey Geometry
and Semantics", CVPR 2022 (github.com/carolineec/informative-drawings, MIT)."""

from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from controlnet.models.loading import load_network

from . import TRAINED_SHORT_SIDE, Annotator
from .network import as_batch, device_of, private_pixels, quiet_controlnet_aux, restore_soft

FILE = "sk_model.pth"
"""The network for fine lines, controlnet_aux's default. The one for coarse lines is sk_model2.pth; offering both would
need another input."""
STRIDE = 4
"""The network halves its input twice."""


def load(folder: Path, device: torch.device) -> Annotator:
    """Raises WeightsMismatch if the tensors in the file do not fit the network."""
    return partial(draw_lineart, load_network(build_lineart, folder / FILE, device))


def build_lineart() -> torch.nn.Module:
    """The network with the layout of sk_model.pth and random weights."""
    with quiet_controlnet_aux():  # not at the top: tiny's lineart_standard.py imports this module
        from controlnet_aux.lineart import Generator
    return Generator(3, 1, n_residual_blocks=3)


def draw_lineart(network: torch.nn.Module, image: Image.Image, short_side: int = TRAINED_SHORT_SIDE) -> Image.Image:
    """RGB picture -> its lines, white on black with soft edges.

    short_side is the network's private resolution in pixels. If the picture has that size already, the map equals
    the one of controlnet_aux's LineartDetector.
    """
    pixels = private_pixels(image, short_side, STRIDE)
    with torch.inference_mode():
        paper = network(as_batch(pixels, device_of(network)) / 255)[0, 0].cpu().numpy() * 255
    return white_lines(restore_soft(paper, image.size))


def white_lines(paper: np.ndarray) -> Image.Image:
    """Dark lines on white, float [height, width], about 0 to 255 -> the same lines white on black, RGB."""
    return Image.fromarray(255 - paper.clip(0, 255).astype(np.uint8)).convert("RGB")
