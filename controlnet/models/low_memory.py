"""Low-memory mode, for a GPU without room for all ControlNets: they stay in main memory until a request uses them.

UNet, VAE and safety checker are on the GPU in this mode, too. So are text encoders and annotators, unless the family
says that they wait (Family.texts_wait). How much memory a bundle needs is estimated from its files and from the largest
picture that it allows. For sd15 in fp16 that is about 22 GB: a card of 24 GB holds everything, and a smaller one gets
low-memory mode.
"""

from pathlib import Path
from typing import Any

import torch

from controlnet.models.loading import stored_dtype
from controlnet.models.packed import tensors_of, with_tensors
from controlnet.settings import Settings
from controlnet.weights.files import TENSOR_FILES
from controlnet.weights.manifest import Manifest

LOW_MEMORY = Settings.variable("low_memory")

ACTIVATIONS = 768
"""The most numbers held at once per pixel of the picture, in the working precision.

The maximum is in the last block of Stable Diffusion's VAE decoder: three maps of 256 channels at full size. (Measured
by adding up live tensors. A step of UNet and ControlNet with guidance holds 338.) cuDNN takes more if more is free.
"""
LIBRARIES = 1_000_000_000
"""Bytes that CUDA's libraries take for kernels and workspaces, in addition to weights and activations."""


def choose_mode(asked: bool | None, free: int, needed: int) -> tuple[bool, str]:
    """Whether to use low-memory mode, and a line for the log. `free` and `needed` are bytes of GPU memory."""
    low = needed > free if asked is None else asked
    mode = "low-memory mode" if low else "all ControlNets on the GPU"
    forced = "" if asked is None else f" ({LOW_MEMORY}={asked:d})"
    return low, f"{mode}{forced}: {free / 1e9:.1f} GB free, {needed / 1e9:.1f} GB needed"


def on_device(network: Any, device: torch.device) -> Any:
    """A copy of a network on a device. The network itself stays where it is, whatever interrupts this."""
    return with_tensors(network, [tensor.to(device) for tensor in tensors_of(network)])


def needed_memory(manifest: Manifest, root: Path, dtype: torch.dtype) -> int:
    """Bytes of GPU memory that a bundle needs to have everything on the GPU, its models in `dtype`, and to run.

    `root` is the folder that contains the bundle's folder.
    """
    weights = sum(
        _in_memory(root / part.bundle / path, None if part.name.startswith("annotator/") else dtype)
        for part in manifest.needed_parts
        for path in part.paths
        if path.endswith(TENSOR_FILES)
    )
    return int(weights + manifest.limits.pixels * ACTIVATIONS * dtype.itemsize + LIBRARIES)


def _in_memory(file: Path, dtype: torch.dtype | None) -> float:
    """Bytes of a file's tensors in `dtype`. None keeps the precision of the file, as for annotators."""
    size = file.stat().st_size
    return size if dtype is None else size * dtype.itemsize / stored_dtype(file).itemsize
