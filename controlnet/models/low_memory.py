"""Low-memory mode: on a GPU without room for all ControlNets they stay in main memory, and a request moves in its own.

The base model, the annotators and the safety checker are on the GPU all the same. Whether there is room is a matter of
the bundle: it is reckoned from its files and from the largest picture that it allows. For sd15 in fp16 that comes to
about 21 GB, so that a card of 24 GB holds everything and a smaller one gets low-memory mode.
"""

import os
from collections.abc import Mapping
from pathlib import Path

import torch

from controlnet.models.loading import TENSOR_FILES, stored_dtype
from controlnet.weights.manifest import Manifest

LOW_MEMORY = "CONTROLNET_LOW_MEMORY"
"""Environment variable: 1 or 0 switches low-memory mode on or off; unset or empty, the free memory decides."""
_CHOICES = {"": None, "1": True, "0": False}

ACTIVATIONS = 768
"""Numbers held at once per pixel of a picture, in the working precision: the most that its making needs.

That is in the last block of Stable Diffusion's VAE decoder: three maps of 256 channels at full size. (Counted by adding
up live tensors; a step of UNet and ControlNet with guidance holds 338.) cuDNN takes more where there is more.
"""
LIBRARIES = 1_000_000_000
"""Bytes that CUDA's libraries take for kernels and workspaces, beyond what the weights and activations add up to."""


class LowMemoryError(ValueError):
    """CONTROLNET_LOW_MEMORY is neither 1 nor 0."""


def asked_mode(environ: Mapping[str, str] = os.environ) -> bool | None:
    """What CONTROLNET_LOW_MEMORY asks for; None: nothing. Raises LowMemoryError."""
    named = environ.get(LOW_MEMORY, "")
    if named not in _CHOICES:
        raise LowMemoryError(f"{LOW_MEMORY}: expected 1 (on), 0 (off) or nothing (by free memory), got {named!r}.")
    return _CHOICES[named]


def choose_mode(asked: bool | None, free: int, needed: int) -> tuple[bool, str]:
    """Whether to run in low-memory mode, and one line that says why; `free` and `needed` in bytes of GPU memory."""
    low = needed > free if asked is None else asked
    mode = "low-memory mode" if low else "all ControlNets on the GPU"
    forced = "" if asked is None else f" ({LOW_MEMORY}={asked:d})"
    return low, f"{mode}{forced}: {free / 1e9:.1f} GB free, {needed / 1e9:.1f} GB needed"


def needed_memory(manifest: Manifest, root: Path, dtype: torch.dtype) -> int:
    """Bytes of GPU memory that a bundle takes with everything on the GPU, models in `dtype`, and room to work.

    `root` has the bundle's folder with its files.
    """
    weights = sum(
        _in_memory(root / manifest.name / path, None if part.name.startswith("annotator/") else dtype)
        for part in manifest.needed_parts
        for path in part.paths
        if path.endswith(TENSOR_FILES)
    )
    return int(weights + manifest.limits.pixels * ACTIVATIONS * dtype.itemsize + LIBRARIES)


def _in_memory(file: Path, dtype: torch.dtype | None) -> float:
    """Bytes of a file's tensors in `dtype`; None: as they are, which is what annotators work in."""
    size = file.stat().st_size
    return size if dtype is None else size * dtype.itemsize / stored_dtype(file).itemsize
