"""Latents as pictures, and those that are none."""

from typing import Any

import torch
from PIL import Image

from controlnet.models.precision import DTYPE


class NotFinite(RuntimeError):
    """The networks gave infinite numbers or NaN, of which no picture can be made. The server's fault."""


@torch.no_grad()
def decode(latents: torch.Tensor, vae: Any, image_processor: Any) -> Image.Image:
    """The picture of (1, C, h, w) `latents`, as diffusers' pipelines decode it.

    Raises NotFinite if any of the latents or pixels is infinite or no number. It looks at both, because AutoencoderTiny
    bounds its latents. It does so once for each picture, where the CPU waits for the GPU anyway.
    """
    pixels = vae.decode(latents / vae.config.scaling_factor, return_dict=False)[0]
    finite = latents.isfinite().all() & pixels.isfinite().all()
    # postprocess() gives the same bytes, but takes twice as long to put the colours of each pixel side by side.
    levels = image_processor.denormalize(pixels[0]).float().mul_(255).round_().to(torch.uint8).cpu()
    if not finite:
        raise NotFinite(_words(pixels.dtype))
    return Image.merge("RGB", [Image.fromarray(plane) for plane in levels.numpy()])


def _words(dtype: torch.dtype) -> str:
    wider = f" Whoever runs the server can set {DTYPE} to bf16 or fp32." if dtype == torch.float16 else ""
    return (
        "The server's networks gave numbers of which no picture can be made (infinite or NaN). Try another "
        f"seed, or a lower guidance_scale.{wider}"
    )
