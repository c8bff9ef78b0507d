"""Shared by the annotators with a network: quiet imports, and resizing to the network's private resolution and back."""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image

LONGEST_ASPECT = 4
"""Longest side of a private picture, in short sides. Otherwise an enlarged 64 × 2048 strip would not fit in memory."""


@contextmanager
def quiet_controlnet_aux() -> Iterator[None]:
    """Silence the warnings that controlnet_aux 0.0.10 gives when it is imported or when its networks are built.

    They are about the package's age (old import paths, torch.jit) or about detectors that are not used here (mediapipe,
    SAM). A reader of the log can do nothing about them. Other warnings pass.
    """
    with warnings.catch_warnings():
        for message, category in (
            ("The module 'mediapipe' is not installed", UserWarning),
            ("Overwriting tiny_vit_", UserWarning),
            ("Importing from timm.models", FutureWarning),
            ("Please import `gaussian_filter`", DeprecationWarning),
            ("`torch.jit.", DeprecationWarning),
        ):
            warnings.filterwarnings("ignore", message=message, category=category)
        yield


def unwrap(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The state dict of a network in DataParallel, as some were published -> that of the network itself."""
    return {name.removeprefix("module."): tensor for name, tensor in tensors.items()}


def load_processor(folder: Path) -> Any:
    """Open the image processor that is saved in the folder of a transformers model."""
    from transformers import AutoImageProcessor

    return AutoImageProcessor.from_pretrained(folder, local_files_only=True)


def private_size(size: tuple[int, int], short_side: int, multiple: int) -> tuple[int, int]:
    """The (width, height) at which a network sees a picture of (width, height) `size`.

    Both sides are multiples of `multiple`, the network's stride. The short side is about `short_side`, and the long
    side is at most about LONGEST_ASPECT times that. The aspect ratio is kept, apart from rounding.
    """
    scale = min(short_side / min(size), LONGEST_ASPECT * short_side / max(size))
    width, height = (max(multiple, round(side * scale / multiple) * multiple) for side in size)
    return width, height


def private_pixels(image: Image.Image, short_side: int, multiple: int) -> np.ndarray:
    """The picture at its private_size, as uint8 [height, width, 3]; always a copy."""
    size = private_size(image.size, short_side, multiple)
    pixels = np.array(image.convert("RGB"))
    if size == image.size:
        return pixels
    enlarging = size[0] * size[1] > image.width * image.height
    return cv2.resize(pixels, size, interpolation=cv2.INTER_LANCZOS4 if enlarging else cv2.INTER_AREA)


def as_batch(pixels: np.ndarray, device: torch.device) -> torch.Tensor:
    """uint8 [height, width, channels] -> float32 [1, channels, height, width], 0 to 255, on the device."""
    return torch.from_numpy(pixels).to(device).permute(2, 0, 1)[None].float()


def restore_soft(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize values that may be blended (edge strength, depth, normals) to the picture's (width, height)."""
    height, width = values.shape[:2]
    if (width, height) == size:
        return values
    enlarging = size[0] * size[1] > width * height
    return cv2.resize(values, size, interpolation=cv2.INTER_LINEAR if enlarging else cv2.INTER_AREA)


def restore_exact(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize values that must not be blended (labels, skeleton colours, strokes) to the picture's (width, height)."""
    return cv2.resize(values, size, interpolation=cv2.INTER_NEAREST_EXACT)


def device_of(network: torch.nn.Module) -> torch.device:
    return next(network.parameters()).device
