"""Scenes as the VAE encodes them: once, since that takes longer than a step of training."""

from pathlib import Path

import torch
from torch import nn
from tqdm import tqdm

from tinyworld import models
from tinyworld.dataset import PICTURE, SEEN, Dataset, Scenes
from tinyworld.stages import half


def pictures(dataset: Dataset, rows: torch.Tensor, flips: torch.Tensor) -> torch.Tensor:
    """(B, 3, n, n), -1 to 1, mirrored if `flips` is True."""
    batch = torch.from_numpy(dataset.pictures[rows.numpy()]).permute(0, 3, 1, 2).float() / 127.5 - 1
    return torch.where(flips[:, None, None, None], batch.flip(-1), batch)


@torch.no_grad()
def encode_scenes(
    vae: nn.Module, scenes: Scenes, device: torch.device, folder: Path, factor: float | None = None
) -> tuple[dict[int, torch.Tensor], float]:
    """Latents of every picture and its mirror image for both sizes of pictures, (2, N, C, size / 8, size / 8) fp16, and
    the factor by which they are multiplied. It gives those of the larger pictures unit variance, if it is not given."""
    file = folder / "latents.pt"
    if file.exists():
        state = torch.load(file, weights_only=True, mmap=True)
        if state["latents"][SEEN].shape[1] == len(scenes):
            return state["latents"], state["factor"]
    encoded = {each.size: _encoded(vae, each, device) for each in (scenes.painted, scenes.seen)}
    factor = factor or 1 / encoded[PICTURE].std().item()
    latents = {size: (each * factor).half() for size, each in encoded.items()}
    torch.save({"latents": latents, "factor": factor}, file)
    return latents, factor


def _encoded(vae: nn.Module, dataset: Dataset, device: torch.device) -> torch.Tensor:
    # One large tensor: many small ones between large temporaries would fragment the heap by gigabytes.
    latents = torch.empty((2, len(dataset), models.LATENT_CHANNELS, *(dataset.size // 8,) * 2))
    for flip in (0, 1):
        for rows in tqdm(torch.arange(len(dataset)).split(16), desc="encode", mininterval=10):
            batch = pictures(dataset, rows, torch.full((len(rows),), bool(flip)))
            with half(device):
                encoded = vae.encode(batch.to(device, memory_format=torch.channels_last)).latents
            latents[flip, rows] = encoded.float().cpu()
    return latents
