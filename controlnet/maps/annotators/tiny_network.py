"""The small network of the tiny bundle's annotators: one trunk predicts lines, depth, normals, classes and joints.

It is a U-Net (O. Ronneberger et al., MICCAI 2015), trained on the procedural world of tinyworld/. Two are trained
separately: one draws control maps in the bundle, the other scores pictures in the evaluation.
"""

from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import nn

JOINTS = 18
"""OpenPose's body joints, in its order."""
FINE = 7
"""Channels at full resolution, without the classes: three for lines, one for nearness, three for the normal."""
STRIDE = 16
"""Both sides of the input must be multiples of this."""
NECK_UNIT = 16.0
"""A value of 1 in `to_neck` stands for this many pixels of the input."""

MOST_ROWS = 128
"""Rows of features, two pixels each, from which the last layer predicts at a time."""


@dataclass(frozen=True)
class Seen:
    """The network's output for pictures of (height, width)."""

    outlines: torch.Tensor
    """(B, 1, height, width) logits of the borders between surfaces."""
    edges: torch.Tensor
    """(B, 1, height, width) logits of the edges that Canny's detector finds with thresholds 100 and 200."""
    straight: torch.Tensor
    """(B, 1, height, width) logits of the straight edges of objects."""
    nearness: torch.Tensor
    """(B, 1, height, width), about 0 (farthest in the picture) to 1 (nearest), linear in 1 / distance."""
    normals: torch.Tensor
    """(B, 3, height, width), unit vectors in BAE's axes: left, up, towards the camera."""
    classes: torch.Tensor
    """(B, K, height, width) logits of the classes that the network's configuration lists by ADE20K number."""
    joints: torch.Tensor
    """(B, 18, height / 2, width / 2) logits, with a bump about two pixels wide on each visible joint."""
    to_neck: torch.Tensor
    """(B, 2, height / 2, width / 2) offsets to the person's neck, x and y in NECK_UNITs; meaningful near joints."""


class TinyVisionModel(ModelMixin, ConfigMixin):
    """`widths` are the channels at a half, a quarter, … of the resolution. `classes` are the ADE20K numbers (0–149) of
    the classes it predicts. No layer runs at full resolution: the last one predicts four pixels for each of its own.
    """

    @register_to_config
    def __init__(self, widths: tuple[int, ...] = (32, 48, 64, 96), classes: tuple[int, ...] = (0,)) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, widths[0], 4, stride=2, padding=1)
        self.first = _block(widths[0], widths[0])
        pairs = list(pairwise(widths))
        self.down = nn.ModuleList(_block(thin, wide, stride=2) for thin, wide in pairs)
        self.middle = _block(widths[-1], widths[-1])
        self.up = nn.ModuleList(_block(wide + thin, thin) for thin, wide in reversed(pairs))
        self.fine = nn.Conv2d(widths[0], 4 * (FINE + len(classes)), 3, padding=1)
        self.coarse = nn.Conv2d(widths[0], JOINTS + 2, 1)
        assert self.coarse.bias is not None  # for the type checker: convolutions have a bias by default
        nn.init.constant_(self.coarse.bias[:JOINTS], -4.0)  # hardly any pixel is a joint

    def forward(self, pictures: torch.Tensor) -> Seen:
        """`pictures`: (B, 3, height, width), 0 to 1, both sides multiples of STRIDE."""
        features = self.stem(pictures * 2 - 1)
        features = features + self.first(features)
        kept = []
        for down in self.down:
            kept.append(features)
            features = down(features)
        features = features + self.middle(features)
        for up in self.up:
            # No name for the enlarged features: the block would work next to them.
            features = up(torch.cat([F.interpolate(features, scale_factor=2.0, mode="nearest"), kept.pop()], 1))
        fine = self._predict_fine(features)
        coarse = self.coarse(features).float()
        return Seen(
            outlines=fine[:, 0:1],
            edges=fine[:, 1:2],
            straight=fine[:, 2:3],
            nearness=fine[:, 3:4],
            normals=F.normalize(fine[:, 4:7], dim=1),
            classes=fine[:, FINE:],
            joints=coarse[:, :JOINTS],
            to_neck=coarse[:, JOINTS:],
        )

    def _predict_fine(self, features: torch.Tensor) -> torch.Tensor:
        """(B, FINE + K, height, width). The memory that a layer takes is several times that of its output, so large
        pictures are predicted in bands of MOST_ROWS. In training they are not so large."""
        rows = features.shape[2]
        if rows <= MOST_ROWS:
            return F.pixel_shuffle(self.fine(features).float(), 2)
        fine = torch.empty(
            len(features), self.fine.out_channels // 4, 2 * rows, 2 * features.shape[3], device=features.device
        )
        for top in range(0, rows, MOST_ROWS):
            above = min(top, 1)  # a row on each side that the convolution sees
            predicted = self.fine(features[:, :, top - above : top + MOST_ROWS + 1])[:, :, above : above + MOST_ROWS]
            fine[:, :, 2 * top : 2 * (top + MOST_ROWS)] = F.pixel_shuffle(predicted.float(), 2)
        return fine


def _block(before: int, after: int, stride: int = 1) -> nn.Sequential:
    """Two convolutions, each followed by a normalisation and SiLU. With stride 2 the first one halves the size."""
    return nn.Sequential(
        nn.Conv2d(before, after, 3, stride=stride, padding=1),
        nn.GroupNorm(8, after),
        nn.SiLU(),
        nn.Conv2d(after, after, 3, padding=1),
        nn.GroupNorm(8, after),
        nn.SiLU(),
    )
