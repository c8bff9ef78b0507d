"""UPerNet: semantic segmentation. T. Xiao et al., "Unified Perceptual Parsing for Scene Understanding", ECCV 2018. The
classes and colours are ADE20K's (B. Zhou et al., "Scene Parsing through ADE20K Dataset", CVPR 2017)."""

from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from controlnet.models.loading import WeightsMismatch, load_pretrained

from . import TRAINED_SHORT_SIDE, Annotator
from .network import device_of, load_processor, private_pixels, quiet_controlnet_aux

with quiet_controlnet_aux():
    from controlnet_aux.util import ade_palette

STRIDE = 32
"""The backbone's coarsest features have a thirty-second of the input's size."""
CLASSES_AT_ONCE = 16
"""All 150 classes of a 2048 × 2048 picture together would take 2.5 GB."""


def load(folder: Path, device: torch.device) -> Annotator:
    """Raises WeightsMismatch if the tensors do not fit the model, or if it does not have ADE20K's 150 classes."""
    from transformers import UperNetForSemanticSegmentation

    model = load_pretrained(UperNetForSemanticSegmentation, folder, device)
    if model.config.num_labels != len(ade20k_palette()):
        raise WeightsMismatch(
            f"annotator/upernet has {model.config.num_labels} classes: use a model with ADE20K's "
            f"{len(ade20k_palette())} classes, whose colours the ControlNet was trained on."
        )
    return partial(draw_segmentation, model, load_processor(folder))


@cache
def ade20k_palette() -> np.ndarray:
    """The colours of ADE20K's classes, uint8 [150, 3], as in the seg ControlNet's training: controlnet_aux's table."""
    palette = np.array(ade_palette(), np.uint8)
    palette.flags.writeable = False  # cached, so all callers share it
    return palette


def draw_segmentation(
    model: Any, processor: Any, image: Image.Image, short_side: int = TRAINED_SHORT_SIDE
) -> Image.Image:
    """RGB picture -> its classes in ADE20K's colours. short_side is the network's private resolution in pixels.

    The aspect ratio is kept, as in the model's training. The model's own processor would squeeze every picture into a
    square.
    """
    pixels = private_pixels(image, short_side, STRIDE)
    inputs = processor(images=Image.fromarray(pixels), do_resize=False, return_tensors="pt").to(device_of(model))
    with torch.inference_mode():
        labels = label_map(model(pixel_values=inputs["pixel_values"]).logits, image.size)
    return segmentation_map(labels)


def label_map(logits: torch.Tensor, size: tuple[int, int]) -> np.ndarray:
    """Logits [1, classes, height, width] -> the most likely class at each pixel, int64, of (width, height) `size`.

    The logits are resized instead of the labels, because contours come out finer. Labels are never blended.
    """
    width, height = size
    best = torch.full((height, width), -torch.inf, device=logits.device)
    labels = torch.zeros((height, width), dtype=torch.int64, device=logits.device)
    for first in range(0, logits.shape[1], CLASSES_AT_ONCE):
        some = logits[:, first : first + CLASSES_AT_ONCE].float()
        resized = torch.nn.functional.interpolate(some, (height, width), mode="bilinear", align_corners=False)
        values, indices = resized[0].max(dim=0)
        better = values > best
        labels = torch.where(better, indices + first, labels)
        best = torch.where(better, values, best)
    return labels.cpu().numpy()


def segmentation_map(labels: np.ndarray) -> Image.Image:
    """Class numbers 0 to 149, [height, width] -> an RGB picture in ADE20K's exact colours."""
    return Image.fromarray(ade20k_palette()[labels])
