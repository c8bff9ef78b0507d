"""What each family changes in diffusers' pipelines for ControlNets: noise is the same in every precision (noise.py).

They also do without a search through all modules of their models for each picture.
"""

from typing import Any

import torch

from controlnet.families.noise import Generators, draw_beginning, draw_noise


class _OnOneDevice:
    """All models of a pipeline are on one device here, and nothing moves them while it runs.

    To know where it computes, diffusers asks every module for hooks that would move it. With the models of sd15, this
    takes 7 ms for each picture.
    """

    unet: Any
    vae: Any
    vae_scale_factor: int
    scheduler: Any

    @property
    def _execution_device(self) -> torch.device:
        return next(self.unet.parameters()).device


class FromNoise(_OnOneDevice):
    """For pictures that begin with noise alone. Stands before a pipeline of diffusers."""

    def prepare_latents(
        self,
        batch_size: int,
        num_channels_latents: int,
        height: int,
        width: int,
        dtype: torch.dtype,
        device: torch.device,
        generator: Generators,
        latents: torch.Tensor | None = None,
    ) -> torch.Tensor:
        if latents is None:
            shape = batch_size, num_channels_latents, height // self.vae_scale_factor, width // self.vae_scale_factor
            latents = draw_noise(shape, generator, device, dtype)
        pipeline: Any = super()
        return pipeline.prepare_latents(
            batch_size, num_channels_latents, height, width, dtype, device, generator, latents
        )


class FromPicture(_OnOneDevice):
    """For pictures that begin with an initial picture and noise. Stands before a pipeline of diffusers."""

    def prepare_latents(
        self,
        image: torch.Tensor,
        timestep: torch.Tensor,
        batch_size: int,
        num_images_per_prompt: int,
        dtype: torch.dtype,
        device: torch.device,
        generator: Generators,
        *_: Any,
    ) -> torch.Tensor:
        latents, noise = draw_beginning(self.vae, image.to(device, dtype), generator)
        return self.scheduler.add_noise(latents, noise, timestep)
