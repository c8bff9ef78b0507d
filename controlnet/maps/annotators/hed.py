"""HED: soft edges. S. Xie, Z. Tu, "Holistically-Nested Edge Detection", ICCV 2015. The network and weights are by the
authors of ControlNet 1.1 (github.com/lllyasviel/ControlNet-v1-1-nightly, Apache-2.0)."""

from functools import partial
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image

from controlnet.models.loading import load_network

from . import TRAINED_SHORT_SIDE, Annotator
from .network import as_batch, device_of, private_pixels, quiet_controlnet_aux, restore_soft

FILE = "ControlNetHED.pth"
STRIDE = 16
"""The network halves its input four times."""


def load(folder: Path, device: torch.device) -> Annotator:
    """Raises WeightsMismatch if the tensors in the file do not fit the network."""
    return partial(draw_hed, load_hed(folder, device))


def load_hed(folder: Path, device: torch.device) -> torch.nn.Module:
    """The HED network from a folder that contains ControlNetHED.pth. Raises WeightsMismatch as load does."""
    with quiet_controlnet_aux():  # not at the top: tiny.py imports this module, and controlnet_aux takes a second
        from controlnet_aux.hed import ControlNetHED_Apache2
    return load_network(ControlNetHED_Apache2, folder / FILE, device)


def draw_hed(
    network: torch.nn.Module, image: Image.Image, short_side: int = TRAINED_SHORT_SIDE, hed_safe: bool = True
) -> Image.Image:
    """RGB picture -> its edges, in quantised strengths if hed_safe. short_side is the network's private resolution in
    pixels.

    Quantised is the default. ControlNet 1.1's authors rank the plain form first in quality and last in robustness: it
    has faint traces of the picture's textures, and sometimes of the picture itself, which the net paints back.

    controlnet_aux's HEDdetector quantises first and then resizes, which blurs the levels. Here the strengths are
    resized to the picture's size before they are quantised. If no resizing is needed, both give the same map.
    """
    edges = restore_soft(edge_strength(network, private_pixels(image, short_side, STRIDE)), image.size)
    return Image.fromarray(levels_of(edges, hed_safe)).convert("RGB")


def edge_strength(network: torch.nn.Module, pixels: np.ndarray) -> np.ndarray:
    """uint8 [height, width, 3], both sides multiples of STRIDE -> edge strength, float64 [height, width], 0 to 1."""
    height, width = pixels.shape[:2]
    with torch.inference_mode():
        sides = [side[0, 0].cpu().numpy() for side in network(as_batch(pixels, device_of(network)))]
    # On the CPU and in float64, like controlnet_aux: the levels of safe_levels depend on the last digit.
    resized = [cv2.resize(side, (width, height), interpolation=cv2.INTER_LINEAR) for side in sides]
    logits = np.mean(np.stack(resized, axis=2), axis=2).astype(np.float64)
    return 1 / (1 + np.exp(-logits))


def levels_of(edges: np.ndarray, safe: bool) -> np.ndarray:
    """Edge strength 0 to 1 -> uint8, in safe_levels if `safe`."""
    return safe_levels(edges) if safe else (edges * 255).clip(0, 255).astype(np.uint8)


def safe_levels(edges: np.ndarray) -> np.ndarray:
    """Edge strength 0 to 1 -> uint8 in ControlNet 1.1's "safe" levels: 0, 127, 255.

    Three quarters of the training maps of the softedge ControlNet were quantised like this. It removes faint traces of
    the source's texture, which the ControlNet would otherwise paint back (ControlNet 1.1's notes on soft edges).
    """
    return np.clip(np.floor(edges * 3) / 2 * 255, 0, 255).astype(np.uint8)
