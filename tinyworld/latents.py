"""Scenes as the VAE encodes them: once, since that takes longer than a step of training."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from tinyworld import models
from tinyworld.dataset import PICTURE, SEEN, Dataset, Scenes
from tinyworld.stages import half

Look = Callable[[Dataset, int], np.ndarray]
"""Takes scenes of one size and a row, and gives the row's picture, (n, n, 3) uint8."""


def as_rendered(dataset: Dataset, row: int) -> np.ndarray:
    return dataset.pictures[row]


def pictures(dataset: Dataset, rows: torch.Tensor, look: Look = as_rendered) -> torch.Tensor:
    """(B, 3, n, n), -1 to 1."""
    shown = np.stack([look(dataset, row) for row in rows.tolist()])
    return torch.from_numpy(shown).permute(0, 3, 1, 2).float() / 127.5 - 1


@torch.no_grad()
def encode_scenes(
    vae: nn.Module,
    scenes: Scenes,
    device: torch.device,
    folder: Path,
    factor: float | None = None,
    look: Look = as_rendered,
) -> tuple[dict[int, torch.Tensor], float]:
    """Latents of every picture for both sizes of pictures, (N, C, size / 8, size / 8) fp16, and the factor by which
    they are multiplied. It gives those of the larger pictures unit variance, if it is not given. `look` gives other
    pictures than the rendered ones."""
    file = folder / "latents.pt"
    if file.exists():
        state = torch.load(file, weights_only=True, mmap=True)
        if len(state["latents"][SEEN]) == len(scenes):
            return state["latents"], state["factor"]
    encoded = {each.size: _encoded(vae, each, device, look) for each in (scenes.painted, scenes.seen)}
    factor = factor or 1 / encoded[PICTURE].std().item()
    latents = {size: (each * factor).half() for size, each in encoded.items()}
    torch.save({"latents": latents, "factor": factor}, file)
    return latents, factor


def _encoded(vae: nn.Module, dataset: Dataset, device: torch.device, look: Look) -> torch.Tensor:
    # One large tensor: many small ones between large temporaries would fragment the heap by gigabytes.
    latents = torch.empty((len(dataset), models.LATENT_CHANNELS, *(dataset.size // 8,) * 2))
    for rows in tqdm(torch.arange(len(dataset)).split(16), desc="encode", mininterval=10):
        with half(device):
            batch = pictures(dataset, rows, look).to(device, memory_format=torch.channels_last)
            latents[rows] = vae.encode(batch).latents.float().cpu()
    return latents
