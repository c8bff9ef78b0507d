"""Loss curves of all stages that have checkpoints, in one PNG."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

SMOOTHED = 50
"""Each point of a curve is the mean of this many steps."""


def plot_losses(folder: Path, names: Sequence[str]) -> Path:
    """Draw the losses in the checkpoints of `folder` into its losses.png, and return that path."""
    import matplotlib

    matplotlib.use("Agg")  # draws into a file, without a screen
    from matplotlib import pyplot

    found = [name for name in names if (folder / f"{name}.pt").exists()]
    columns = 4
    rows = -(-max(1, len(found)) // columns)
    figure, axes = pyplot.subplots(rows, columns, figsize=(4 * columns, 2.6 * rows), squeeze=False)
    for axis in axes.flat[len(found) :]:
        axis.set_axis_off()
    for axis, name in zip(axes.flat, found, strict=False):
        losses = np.array(torch.load(folder / f"{name}.pt", map_location="cpu", weights_only=True)["losses"])
        window = min(SMOOTHED, len(losses))
        smooth = np.convolve(losses, np.ones(window) / window, mode="valid")
        axis.plot(np.arange(window, len(losses) + 1), smooth)
        axis.set(title=f"{name}: {smooth[-1]:.4f} after {len(losses)} steps", yscale="log")
        axis.grid(alpha=0.3, which="both")
    figure.tight_layout()
    file = folder / "losses.png"
    figure.savefig(file, dpi=80)
    pyplot.close(figure)
    return file
