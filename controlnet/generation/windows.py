"""Overlapping windows of a picture, and one result blended from those of the windows.

So the memory of a network depends on the size of a window and not on that of the picture. Noise predictions are
averaged as in MultiDiffusion (O. Bar-Tal et al., arXiv 2302.08113), with weights that fall towards a window's edges.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Span:
    """What a window covers of one side of a picture."""

    start: int
    end: int
    weights: torch.Tensor
    """The window's weight at each place of the result, (places,). Those of all windows add up to 1."""


@dataclass(frozen=True)
class Window:
    """A part of a picture."""

    rows: Span
    columns: Span
    scale: int
    """For each place that the windows cover, the results that are blended have scale × scale."""

    def of(self, tensor: torch.Tensor, scale: int = 1) -> torch.Tensor:
        """Its part of (…, H × scale, W × scale), where (H, W) is the size that the windows cover."""
        rows = slice(self.rows.start * scale, self.rows.end * scale)
        return tensor[..., rows, self.columns.start * scale : self.columns.end * scale]


def windows(
    size: Sequence[int], longest: int, overlap: int, scale: int = 1, device: torch.device | str = "cpu"
) -> list[Window]:
    """Windows that cover (height, width) `size` at even distances, row by row.

    Their sides are `longest`, or those of `size` where they are shorter. Neighbours share at least `overlap`, which is
    less than `longest`. `scale` is that of the results, and `device` that of the weights.
    """
    rows, columns = (_spans(side, longest, overlap, scale, device) for side in size)
    return [Window(span, across, scale) for span in rows for across in columns]


def blended(parts: Sequence[Window], make: Callable[[Window], torch.Tensor]) -> torch.Tensor:
    """The weighted mean of make(window) over all windows of a picture, added up in float32.

    make() returns (…, height × scale, width × scale) of its window. The result is (…, H × scale, W × scale), in the
    same dtype. If there is one window, its own result is returned. The weights are on the device of the results.
    """
    if len(parts) == 1:
        return make(parts[0])
    size = parts[-1].rows.end * parts[-1].scale, parts[-1].columns.end * parts[-1].scale
    total: torch.Tensor | None = None
    for window in parts:
        made = make(window)
        if total is None:
            total = made.new_zeros(*made.shape[:-2], *size, dtype=torch.float32)
        weights = window.rows.weights[:, None] * window.columns.weights
        window.of(total, window.scale).add_(made * weights)
    assert total is not None
    return total.to(made.dtype)


def _spans(length: int, longest: int, overlap: int, scale: int, device: torch.device | str) -> list[Span]:
    if length <= longest:
        return [Span(0, length, torch.ones(length * scale, device=device))]
    count = math.ceil((length - overlap) / (longest - overlap))
    starts = [round(i * (length - longest) / (count - 1)) for i in range(count)]
    # Squared sines of two windows that overlap add up to 1. Where there are three, the sum is divided by.
    raw = []
    for i, start in enumerate(starts):
        before = starts[i - 1] + longest - start if i > 0 else 0
        after = start + longest - starts[i + 1] if i < count - 1 else 0
        raw.append(_rising(longest, before, scale) * _rising(longest, after, scale).flip(0))
    total = torch.zeros(length * scale)
    for start, weights in zip(starts, raw, strict=True):
        total[start * scale : (start + longest) * scale] += weights
    return [
        Span(start, start + longest, (weights / total[start * scale : (start + longest) * scale]).to(device))
        for start, weights in zip(starts, raw, strict=True)
    ]


def _rising(length: int, overlap: int, scale: int) -> torch.Tensor:
    """(length × scale,): from 0 to 1 within the first `overlap`, then 1."""
    places = (torch.arange(length * scale) + 0.5) / max(1, overlap * scale)
    return torch.sin(places.clamp(max=1) * math.pi / 2) ** 2
