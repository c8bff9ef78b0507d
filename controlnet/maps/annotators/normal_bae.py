"""BAE: surface normals. G. Bae, I. Budvytis, R. Cipolla, "Estimating and Exploiting the Aleatoric Uncertainty in
Surface Normal Estimation", ICCV 2021."""

import io
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from PIL import Image
from torchvision.transforms.functional import normalize

from controlnet.models.loading import load_network

from . import TRAINED_SHORT_SIDE, Annotator
from .network import as_batch, device_of, private_pixels, quiet_controlnet_aux, restore_soft, unwrap

FILE = "scannet.pt"
STRIDE = 32
"""The encoder halves its input five times."""
IMAGENET_MEAN = [0.485, 0.456, 0.406]
IMAGENET_SPREAD = [0.229, 0.224, 0.225]


def load(folder: Path, device: torch.device) -> Annotator:
    """Raises WeightsMismatch if the tensors in the file do not fit the network."""
    # The file is a training checkpoint, with the state dict under "model".
    network = load_network(build_bae, folder / FILE, device, tensors_of=lambda checkpoint: unwrap(checkpoint["model"]))
    return partial(draw_normal_bae, network)


def build_bae() -> torch.nn.Module:
    """The network with the layout of scannet.pt and random weights."""
    # The two ratios are used in training only. Building the network prints two lines, which are kept out of the log.
    with quiet_controlnet_aux(), redirect_stdout(io.StringIO()):
        # Not at the top: tiny.py imports this module, and controlnet_aux takes a second.
        from controlnet_aux.normalbae.nets.NNET import NNET

        return NNET(SimpleNamespace(architecture="BN", sampling_ratio=0.4, importance_ratio=0.7))


def draw_normal_bae(network: torch.nn.Module, image: Image.Image, short_side: int = TRAINED_SHORT_SIDE) -> Image.Image:
    """RGB picture -> its normals as colours. short_side is the network's private resolution in pixels."""
    batch = as_batch(private_pixels(image, short_side, STRIDE), device_of(network)) / 255
    with torch.inference_mode():
        finest = network(normalize(batch, IMAGENET_MEAN, IMAGENET_SPREAD))[0][-1]
    return normal_map(finest[0, :3].permute(1, 2, 0).cpu().numpy(), image.size)


def normal_map(normals: np.ndarray, size: tuple[int, int]) -> Image.Image:
    """Normals float32 [height, width, 3], -1 to 1, in BAE's axes (left, up, to the camera) -> RGB of (width, height).

    In each channel -1 becomes 0 and 1 becomes 255. Blue faces the camera, red faces left, green faces up.
    """
    restored = restore_soft(normals, size)
    return Image.fromarray(((restored + 1) / 2 * 255).clip(0, 255).astype(np.uint8))
