"""Depth Anything: relative depth of one picture. L. Yang et al., "Depth Anything V2", NeurIPS 2024."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from controlnet.models.loading import WeightsMismatch, load_pretrained

from . import Annotator
from .network import device_of, load_processor, private_size, restore_soft


def load(folder: Path, device: torch.device) -> Annotator:
    """Raises WeightsMismatch if the tensors do not fit the model, or if the model measures depth in metres."""
    from transformers import AutoModelForDepthEstimation

    model = load_pretrained(AutoModelForDepthEstimation, folder, device)
    # The metric models predict distance, so near objects would come out black.
    if getattr(model.config, "depth_estimation_type", "relative") != "relative":
        raise WeightsMismatch("annotator/depth_anything holds a metric depth model: use a model of relative depth.")
    return partial(draw_depth, model, load_processor(folder))


def draw_depth(model: Any, processor: Any, image: Image.Image, short_side: int | None = None) -> Image.Image:
    """RGB picture -> its depth in grey.

    short_side is the model's private resolution in pixels, rounded to whole patches. None means the size that the
    model's own processor chooses.
    """
    given = {}
    if short_side is not None:
        width, height = private_size(image.size, short_side, processor.ensure_multiple_of)
        given = {"size": {"height": height, "width": width}, "keep_aspect_ratio": False}
    inputs = processor(images=image.convert("RGB"), return_tensors="pt", **given).to(device_of(model))
    with torch.inference_mode():
        predicted = model(**inputs).predicted_depth
    return depth_map(predicted[0].float().cpu().numpy(), image.size)


def depth_map(nearness: np.ndarray, size: tuple[int, int]) -> Image.Image:
    """Relative inverse depth, float [height, width], large is near -> grey RGB of (width, height) `size`, near white.

    The values of the picture are stretched to the full range, 0 to 255. A flat prediction gives a black map.
    """
    restored = restore_soft(nearness.astype(np.float32), size)
    far, near = float(restored.min()), float(restored.max())
    shares = (restored - far) / (near - far) if near > far else np.zeros_like(restored)
    return Image.fromarray(np.rint(shares * 255).astype(np.uint8)).convert("RGB")
