"""Repainting a part of an initial picture.

diffusers' img2img pipeline changes a picture as a whole. Its inpainting pipeline keeps the latents outside a mask only
for a UNet of exactly four latent channels, and only for masks of pure black and white. Repainting does the same after
each step of the other two pipelines, for any number of channels and for soft masks.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers.image_processor import VaeImageProcessor

from controlnet.families.noise import draw_beginning
from controlnet.pictures.canvas import InitialPicture
from controlnet.pictures.geometry import STEP


class Repainting:
    """A picture kept outside a mask while a pipeline denoises: callback_on_step_end of the pipelines.

    After each step the latents outside the mask become the picture's own with the noise of that step, as in diffusers'
    inpainting pipeline (and A. Lugmayr et al., "RePaint", CVPR 2022, without its resampling).
    """

    def __init__(self, initial: InitialPicture, vae: Any, generator: torch.Generator) -> None:
        """Draws from `generator` what the pipelines draw: the picture's latents, then the noise."""
        assert initial.mask is not None
        pixels = VaeImageProcessor().preprocess(initial.picture).to(vae.device, vae.dtype)
        self.latents, self.noise = draw_beginning(vae, pixels, generator)
        mask = torch.from_numpy(np.array(initial.mask, np.float32) / 255)[None, None]
        # A latent covers 8×8 pixels. It is repainted as much as their mean, as in ControlNet's demo of inpainting. By
        # the most repainted of them, the painted part would reach beyond the mask and be cut off at its edge.
        self.mask = F.avg_pool2d(mask, STEP).to(self.latents)

    @torch.no_grad()
    def __call__(self, pipeline: Any, i: int, timestep: Any, tensors: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        """The latents after step i, (1, C, h, w), kept outside the mask."""
        times, kept = pipeline.scheduler.timesteps[-pipeline.num_timesteps :], self.latents
        if i + 1 < len(times):
            kept = pipeline.scheduler.add_noise(kept, self.noise, times[i + 1 : i + 2])
        return {"latents": torch.lerp(kept, tensors["latents"], self.mask)}
