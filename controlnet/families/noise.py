"""The random numbers that a picture begins with, the same in every precision.

PyTorch draws other numbers in half precision than in float32. If noise were drawn in the precision of the models, as
diffusers does it, a seed would give unrelated pictures on a CPU and on a GPU.
"""

from collections.abc import Sequence
from typing import Any

import torch
from diffusers.utils.torch_utils import randn_tensor

Generators = torch.Generator | list[torch.Generator]


def draw_noise(
    shape: Sequence[int], generator: Generators, device: torch.device | str, dtype: torch.dtype
) -> torch.Tensor:
    """Normally distributed numbers of a `shape`, drawn in float32 and then rounded to `dtype`.

    A list has a generator for each element of the batch.
    """
    return randn_tensor(tuple(shape), generator, torch.device(device), torch.float32).to(dtype)


def draw_beginning(vae: Any, pixels: torch.Tensor, generator: Generators) -> tuple[torch.Tensor, torch.Tensor]:
    """What diffusers draws for a picture to begin with: its latents and the noise for them, each (B, C, h, w).

    `pixels` are (B, 3, H, W), −1 to 1, on the VAE's device and in its dtype.
    """
    encoded = vae.encode(pixels)
    if hasattr(encoded, "latent_dist"):
        mean, deviation = encoded.latent_dist.mean, encoded.latent_dist.std
        latents = mean + deviation * draw_noise(mean.shape, generator, mean.device, mean.dtype)
    else:
        latents = encoded.latents  # of a VAE that draws nothing
    latents = latents * vae.config.scaling_factor
    return latents, draw_noise(latents.shape, generator, latents.device, latents.dtype)
