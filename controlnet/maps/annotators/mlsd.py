"""M-LSD: straight lines. G. Gu et al., "Towards Light-weight and Real-time Line Segment Detection", AAAI 2022."""

from functools import partial
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image

from controlnet.models.loading import load_network

from . import TRAINED_SHORT_SIDE, Annotator
from .network import as_batch, device_of, private_pixels, quiet_controlnet_aux

with quiet_controlnet_aux():
    from controlnet_aux.mlsd.models.mbv2_mlsd_large import MobileV2_MLSD_Large
    from controlnet_aux.mlsd.utils import deccode_output_score_and_ptss

FILE = "mlsd_large_512_fp32.pth"
STRIDE = 16
"""The network halves its input four times. Its output has half the size of the input."""
SCORE_THRESHOLD = 0.1
DISTANCE_THRESHOLD = 0.1
"""ControlNet's defaults: the smallest score of a line's centre, and the smallest length in output pixels."""
MOST_LINES = 200


def load(folder: Path, device: torch.device) -> Annotator:
    """Raises WeightsMismatch if the tensors in the file do not fit the network."""
    return partial(draw_mlsd, load_network(MobileV2_MLSD_Large, folder / FILE, device))


def draw_mlsd(
    network: torch.nn.Module,
    image: Image.Image,
    short_side: int = TRAINED_SHORT_SIDE,
    mlsd_score_threshold: float = SCORE_THRESHOLD,
    mlsd_distance_threshold: float = DISTANCE_THRESHOLD,
) -> Image.Image:
    """RGB picture -> its straight lines, 255 on 0. short_side is the network's private resolution in pixels.

    mlsd_score_threshold is the smallest score of a line, 0 to 1. mlsd_distance_threshold is its smallest length, 0 to
    20 pixels of the network's output, which is half as large as its input. controlnet_aux's MLSDdetector is not used
    because it returns a black map on any exception.
    """
    pixels = private_pixels(image, short_side, STRIDE)
    height, width = pixels.shape[:2]
    # The network expects a fourth channel of ones.
    batch = as_batch(np.dstack([pixels, np.ones((height, width), np.uint8)]), device_of(network)) / 127.5 - 1
    with torch.inference_mode():
        segments = line_segments(network(batch), mlsd_score_threshold, mlsd_distance_threshold)
    segments *= np.array([image.width / width, image.height / height] * 2, np.float32)
    return draw_segments(segments, image.size)


def line_segments(
    output: torch.Tensor, score_threshold: float = SCORE_THRESHOLD, distance_threshold: float = DISTANCE_THRESHOLD
) -> np.ndarray:
    """The network's output [1, 5 or more, height / 2, width / 2] -> segments in input pixels, float32 [n, 4].

    A segment holds x and y of one end, then of the other. n is 0 to MOST_LINES, and the most certain line comes first.
    """
    centres, scores, displacements = deccode_output_score_and_ptss(output, MOST_LINES, 3)
    rows, columns = centres[:, 0], centres[:, 1]
    ends = displacements[rows, columns].reshape(-1, 2, 2)  # [line, end, x or y], relative to the centre
    lengths = np.linalg.norm(ends[:, 0] - ends[:, 1], axis=1)
    kept = (scores > score_threshold) & (lengths > distance_threshold)
    segments = ends + np.stack([columns, rows], axis=1)[:, None]
    return (2 * segments[kept]).reshape(-1, 4).astype(np.float32)


def draw_segments(segments: np.ndarray, size: tuple[int, int]) -> Image.Image:
    """Segments float [n, 4] in pixels of the (width, height) `size` -> an RGB picture of white lines on black.

    The lines are drawn at the final size. They are one pixel wide up to a short side of 512, and proportionally thicker
    above it. Reducing a drawn map instead would lose lines.
    """
    width, height = size
    canvas = np.zeros((height, width), np.uint8)
    thickness = max(1, round(min(size) / TRAINED_SHORT_SIDE))
    for x_start, y_start, x_end, y_end in segments.astype(int).tolist():
        cv2.line(canvas, (x_start, y_start), (x_end, y_end), 255, thickness)
    return Image.fromarray(canvas).convert("RGB")
