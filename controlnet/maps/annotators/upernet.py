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
from .network import device_of, load_processor, private_pixels

STRIDE = 32
"""The backbone's coarsest features have a thirty-second of the input's size."""
CLASSES_AT_ONCE = 16
"""All 150 classes of a 2048 × 2048 picture together would take 2.5 GB."""
PALETTE = """
787878 b47878 06e6e6 503232 04c803 787850 8c8c8c cc05ff e6e6e6 04fa07 e005ff ebff07 96053d 787846 08ff33
ff0652 8fff8c ccff04 ff3307 cc4603 0066c8 3de6fa ff0633 0b66ff ff0747 ff09e0 0907e6 dcdcdc ff095c 7009ff
08ffd6 07ffe0 ffb806 0aff47 ff290a 07ffff e0ff08 6608ff ff3d06 ffc207 ff7a08 00ff14 ff0829 ff0599 0633ff
eb0cff a09614 00a3ff 8c8c8c fa0a0f 14ff00 1fff00 ff1f00 ffe000 99ff00 0000ff ff4700 00ebff 00adff 1f00ff
0bc8c8 ff5200 00fff5 003dff 00ff70 00ff85 ff0000 ffa300 ff6600 c2ff00 008fff 33ff00 0052ff 00ff29 00ffad
0a00ff adff00 00ff99 ff5c00 ff00ff ff00f5 ff0066 ffad00 ff0014 ffb8b8 001fff 00ff3d 0047ff ff00cc 00ffc2
00ff52 000aff 0070ff 3300ff 00c2ff 007aff 00ffa3 ff9900 00ff0a ff7000 8fff00 5200ff a3ff00 ffeb00 08b8aa
8500ff 00ff5c b800ff ff001f 00b8ff 00d6ff ff0070 5cff00 00e0ff 70e0ff 46b8a0 a300ff 9900ff 47ff00 ff00a3
ffcc00 ff008f 00ffeb 85ff00 ff00eb f500ff ff007a fff500 0abed4 d6ff00 00ccff 1400ff ffff00 0099ff 0029ff
00ffcc 2900ff 29ff00 ad00ff 00f5ff 4700ff 7a00ff 00ffb8 005cff b8ff00 0085ff ffd600 19c2c2 66ff00 5c00ff
"""
"""The colours of ADE20K's 150 classes in order, RGB in hexadecimal digits."""


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
    """The colours of ADE20K's classes, uint8 [150, 3], read-only, as in the seg ControlNet's training."""
    return np.frombuffer(bytes.fromhex(PALETTE), np.uint8).reshape(-1, 3)


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
