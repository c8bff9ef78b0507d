"""Rough strokes along HED's edges, like the training maps of ControlNet 1.1's scribble net, with hed.py's network."""

from functools import partial
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image

from . import TRAINED_SHORT_SIDE, Annotator
from .doodle import find_strokes
from .hed import STRIDE, edge_strength, load_hed
from .network import private_pixels, quiet_controlnet_aux, restore_exact

with quiet_controlnet_aux():
    from controlnet_aux.util import nms


def load(folder: Path, device: torch.device) -> Annotator:
    """Raises WeightsMismatch if the tensors in the file do not fit the network."""
    return partial(draw_hed_scribble, load_hed(folder, device))


def draw_hed_scribble(
    network: torch.nn.Module, image: Image.Image, short_side: int = TRAINED_SHORT_SIDE
) -> Image.Image:
    """RGB picture -> white strokes on black. A doodle keeps its own strokes, and the network is not run.

    short_side is the network's private resolution in pixels.
    """
    strokes = find_strokes(image)
    if strokes is None:
        edges = edge_strength(network, private_pixels(image, short_side, STRIDE))
        strokes = restore_exact(scribble_strokes(edges), image.size)
    return Image.fromarray(strokes).convert("RGB")


def scribble_strokes(edges: np.ndarray) -> np.ndarray:
    """Edge strength 0 to 1, [height, width] -> uint8 strokes, 255 on 0, about 14 pixels wide.

    These are the ridges of the blurred edges, drawn with a round pen. The numbers are those of controlnet_aux's
    HEDdetector.
    """
    ridges = nms((edges * 255).clip(0, 255).astype(np.uint8), 127, 3.0)
    return np.where(cv2.GaussianBlur(ridges, (0, 0), 3.0) > 4, 255, 0).astype(np.uint8)
