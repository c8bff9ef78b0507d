"""Line art of anime: Anime2Sketch. X. Xiang et al., "Adversarial Open Domain Adaptation for Sketch-to-Photo Synthesis",
WACV 2022 (github.com/Mukosame/Anime2Sketch, MIT). The network is a U-Net as in P. Isola et al., "Image-to-Image
Translation with Conditional Adversarial Networks", CVPR 2017."""

from functools import partial
from math import ceil
from pathlib import Path
from typing import Any

import cv2
import torch
from PIL import Image

from controlnet.models.loading import load_network

from . import TRAINED_SHORT_SIDE, Annotator
from .lineart import white_lines
from .network import as_batch, device_of, private_pixels, quiet_controlnet_aux, restore_soft, unwrap

with quiet_controlnet_aux():
    from controlnet_aux.lineart_anime import UnetGenerator

FILE = "netG.pth"
STRIDE = 256
"""The network halves its input eight times."""


def load(folder: Path, device: torch.device) -> Annotator:
    """Raises WeightsMismatch if the tensors in the file do not fit the network."""
    network = load_network(build_lineart_anime, folder / FILE, device, tensors_of=unwrap)
    return partial(draw_lineart_anime, network)


def build_lineart_anime() -> torch.nn.Module:
    """The network with the layout of netG.pth and random weights."""
    norm_layer: Any = torch.nn.InstanceNorm2d  # the class is annotated for batch normalisation only
    return UnetGenerator(3, 1, num_downs=8, norm_layer=norm_layer)


def draw_lineart_anime(
    network: torch.nn.Module, image: Image.Image, short_side: int = TRAINED_SHORT_SIDE
) -> Image.Image:
    """RGB picture -> its lines, white on black with soft edges.

    short_side is the network's private resolution in pixels. If the picture has that size already, the map equals
    the one of controlnet_aux's LineartAnimeDetector.
    """
    pixels = private_pixels(image, short_side, 1)
    height, width = pixels.shape[:2]
    # Stretched up to the next multiples of STRIDE, like controlnet_aux: the nearest ones would halve some pictures.
    stretched = [ceil(side / STRIDE) * STRIDE for side in (width, height)]
    batch = as_batch(cv2.resize(pixels, stretched, interpolation=cv2.INTER_CUBIC), device_of(network)) / 127.5 - 1
    with torch.inference_mode():
        paper = network(batch)[0, 0] * 127.5 + 127.5
    paper = cv2.resize(paper.cpu().numpy(), (width, height), interpolation=cv2.INTER_CUBIC)
    return white_lines(restore_soft(paper, image.size))
