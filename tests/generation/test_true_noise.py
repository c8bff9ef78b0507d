"""A UNet that answers the true noise: the last latents of every sampler must be those of the initial picture."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from PIL import Image
from support.jobs import hint, job
from support.latents import latents
from support.small_models import SmallBundle

from controlnet.generation.generator import Generator
from controlnet.generation.repaint import Repainting
from controlnet.models.schedulers import SCHEDULERS
from controlnet.pictures.canvas import InitialPicture

STEPS = 20
SEED = 5
PICTURE = hint(9)
STRENGTHS = (0.05, 0.1, 0.3, 0.5, 0.8, 0.95, 1.0)
ADDS_NOISE = ("K_EULER_ANCESTRAL", "LCM")
"""Samplers that add noise of their own, so that the noise in the latents changes at each step."""

KEEPS_LITTLE_NOISE = ("TCD",)
"""Samplers whose last latents still have the noise of timestep 0, as the authors' own do (arXiv 2402.19159)."""

Noise = Callable[[torch.Tensor, float], torch.Tensor]
"""noise(latents, timestep): the noise that is in the latents."""


SD15 = DDIMScheduler(
    beta_schedule="scaled_linear",
    beta_start=0.00085,
    beta_end=0.012,
    clip_sample=False,
    steps_offset=1,
    timestep_spacing="leading",
    set_alpha_to_one=True,
)
"""Stable Diffusion 1.5's schedule, except that it has no alpha of 1, so DDIM and PNDM leave 3% of the noise."""


@pytest.fixture(scope="module")
def generator() -> Generator:
    generator = Generator(SmallBundle())
    generator.base = generator.base | {"scheduler": SD15}
    return generator


def masks() -> dict[str, Image.Image | None]:
    right, soft = np.zeros((64, 64), np.uint8), np.linspace(0, 255, 64).round().astype(np.uint8)
    right[:, 24:] = 255
    return {"no mask": None, "hard mask": Image.fromarray(right), "soft mask": Image.fromarray(np.tile(soft, (64, 1)))}


def levels(timestep: float) -> tuple[float, float]:
    """The share of the picture and of the noise in latents at that timestep."""
    shares = SD15.alphas_cumprod
    share = float(np.interp(timestep, range(len(shares)), shares))
    return share**0.5, (1 - share) ** 0.5


class TrueNoise:
    """The answers of the UNet: the noise in the latents, which begin at the level of the first timestep."""

    def __init__(self, picture: torch.Tensor, noise: torch.Tensor | None, changes: bool) -> None:
        self.picture, self.noise, self.changes = picture, noise, changes
        self.timesteps: list[float] = []

    def __call__(self, latents: torch.Tensor, timestep: Any, **_: Any) -> tuple[torch.Tensor]:
        self.timesteps.append(float(timestep))
        if self.noise is None or self.changes:
            kept, noisy = levels(float(timestep))
            self.noise = (latents - kept * self.picture) / noisy
        return (self.noise,)


CASES = [(strength, mask) for strength in STRENGTHS for mask in masks() if (strength, mask) != (1.0, "soft mask")]
"""Where a mask is grey and the picture is overwritten, two noises are blended, and none is the true one."""


@pytest.mark.parametrize(("strength", "mask"), CASES)
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_the_true_noise_leads_back_to_the_picture(
    generator: Generator, monkeypatch, scheduler: str, strength: float, mask: str
) -> None:
    drawn = Repainting(
        InitialPicture(PICTURE, strength, Image.new("L", PICTURE.size)),
        generator.base["vae"],
        torch.Generator().manual_seed(SEED),
    )
    initial = InitialPicture(PICTURE, strength, masks()[mask])
    answers = TrueNoise(drawn.latents, None if initial.is_overwritten else drawn.noise, scheduler in ADDS_NOISE)
    monkeypatch.setattr(generator.base["unet"], "forward", answers)
    settings = {"scheduler": scheduler, "num_inference_steps": STEPS, "guidance_scale": 1.0, "seed": SEED}
    made = latents(generator, job(**settings, initial=initial))

    # The least-squares shares of the picture and of the noise in the last latents. They should be 1 and 0.
    columns = torch.stack([drawn.latents.flatten(), drawn.noise.flatten()], dim=1).double()
    shares = torch.linalg.lstsq(columns, made[0].flatten().double()[:, None]).solution.flatten()
    assert len(set(answers.timesteps)) == int(STEPS * strength), "a step is missing"
    off = (made[0] - drawn.latents).abs()
    if scheduler in KEEPS_LITTLE_NOISE:
        kept, noisy = levels(0)
        off -= (1 - kept) * drawn.latents.abs() + noisy * answers.noise.abs()
    assert off.max() <= 2e-3, "shares of picture and noise: {:.3f}, {:.3f}".format(*shares)
