"""Where a picture starts from: another picture, changed as a whole or repainted where a mask is white.

diffusers' img2img pipeline does the first. For the second, its inpainting pipeline keeps what is not repainted only in
a UNet of exactly four latent channels, and only where a mask is black or white. So Repainting does the same after each
step of the other two pipelines, for any number of channels and for soft masks.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers.image_processor import VaeImageProcessor
from diffusers.pipelines.controlnet.pipeline_controlnet_img2img import retrieve_latents
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image

LATENT_FACTOR = 8


@dataclass(frozen=True)
class Start:
    """The picture that a request begins with."""

    picture: Image.Image
    """RGB, of the size of the pictures to be made."""
    strength: float
    """Share of the steps that are taken, 0–1: how much noise is put on the picture first."""
    mask: Image.Image | None = None
    """Of mode L and the picture's size: 255 where it is repainted, 0 where it is kept, grey for a mixture of both."""

    def steps(self, num_inference_steps: int) -> int:
        """How many of the steps are taken; as diffusers counts them."""
        return min(int(num_inference_steps * self.strength), num_inference_steps)

    def restore(self, made: Image.Image) -> Image.Image:
        """`made` with the picture's own pixels where the mask is black, bit for bit, and a mixture where it is grey."""
        return made if self.mask is None else Image.composite(made, self.picture, self.mask)


class Repainting:
    """A picture kept outside a mask while a pipeline denoises: callback_on_step_end of the pipelines.

    After each step the latents outside the mask become the picture's own with the noise of that step, as in diffusers'
    inpainting pipeline (and A. Lugmayr et al., "RePaint", CVPR 2022, without its resampling).
    """

    def __init__(self, start: Start, vae: Any, generator: torch.Generator) -> None:
        """Draws from `generator` what the pipelines would draw: the picture's latents, then the noise."""
        assert start.mask is not None
        pixels = VaeImageProcessor().preprocess(start.picture).to(vae.device, vae.dtype)
        self.latents = retrieve_latents(vae.encode(pixels), generator=generator) * vae.config.scaling_factor
        self.noise = randn_tensor(self.latents.shape, generator, self.latents.device, self.latents.dtype)
        mask = torch.from_numpy(np.array(start.mask, np.float32) / 255)[None, None]
        # A latent stands for 8×8 pixels: repainted as much as the most repainted of them, or a seam would be left.
        self.mask = F.max_pool2d(mask, LATENT_FACTOR).to(self.latents)

    @torch.no_grad()
    def __call__(self, pipeline: Any, i: int, timestep: Any, tensors: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        """The latents after step i, (1, C, h, w), kept outside the mask."""
        times, kept = pipeline.scheduler.timesteps[-pipeline.num_timesteps :], self.latents
        if i + 1 < len(times):
            kept = pipeline.scheduler.add_noise(kept, self.noise, times[i + 1 : i + 2])
        return {"latents": torch.lerp(kept, tensors["latents"], self.mask)}
