"""The first noise of a picture is the same numbers in every precision; only their rounding differs."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionControlNetImg2ImgPipeline
from PIL import Image
from support.jobs import hint, job
from support.small_models import SmallBundle, parts
from torch import nn

from controlnet.families.noise import draw_noise
from controlnet.families.sd15 import FromNoise, FromPicture
from controlnet.generation.generator import Generator
from controlnet.generation.repaint import Repainting
from controlnet.models.controlnets import ControlNets
from controlnet.pictures.canvas import InitialPicture

HALVES = [torch.bfloat16, torch.float16]
NEAR = {torch.bfloat16: 0.05, torch.float16: 0.01}
"""How far numbers of this size may be moved by rounding. Unrelated ones are 1 apart."""
PICTURE = hint(9)
MASK = Image.fromarray(np.repeat(np.uint8([[0] * 32 + [255] * 32]), 64, 0))


def in_precision(models: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    """Copies of the networks among them."""
    return {
        name: copy.deepcopy(part).to(dtype) if isinstance(part, nn.Module) else part for name, part in models.items()
    }


def pipeline(kind: type, dtype: torch.dtype) -> Any:
    return kind(
        **in_precision(SmallBundle().base(), dtype),
        controlnet=in_precision({"canny": parts()["canny"]}, dtype)["canny"],
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def beginning(kind: type, dtype: torch.dtype) -> torch.Tensor:
    """The latents with which a picture begins."""
    made, generator = pipeline(kind, dtype), torch.Generator().manual_seed(5)
    made.scheduler.set_timesteps(4)
    with torch.no_grad():
        if kind is FromNoise:
            return made.prepare_latents(1, 4, 64, 64, dtype, "cpu", [generator])
        pixels = made.image_processor.preprocess(PICTURE)
        return made.prepare_latents(pixels, made.scheduler.timesteps[1:2], 1, 1, dtype, torch.device("cpu"), generator)


@pytest.mark.parametrize("dtype", HALVES)
def test_noise_is_that_of_float32_rounded(dtype: torch.dtype) -> None:
    drawn = [
        draw_noise((2, 4, 8, 8), [torch.Generator().manual_seed(s) for s in (1, 2)], "cpu", d)
        for d in (torch.float32, dtype)
    ]
    assert drawn[1].dtype == dtype
    assert torch.equal(drawn[0].to(dtype), drawn[1])


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("kind", [FromNoise, FromPicture])
def test_a_picture_begins_alike_in_every_precision(kind: type, dtype: torch.dtype) -> None:
    full, rounded = beginning(kind, torch.float32), beginning(kind, dtype)
    assert rounded.dtype == dtype
    assert (full - rounded.float()).abs().max() < NEAR[dtype] * full.abs().max()


@pytest.mark.parametrize("dtype", HALVES)
def test_repainting_draws_alike_in_every_precision(dtype: torch.dtype) -> None:
    initial, drawn = InitialPicture(PICTURE, 0.5, MASK), []
    for each in (torch.float32, dtype):
        with torch.no_grad():
            drawn.append(Repainting(initial, pipeline(FromPicture, each).vae, torch.Generator().manual_seed(5)))
    assert torch.equal(drawn[0].noise.to(dtype), drawn[1].noise)
    assert (drawn[0].latents - drawn[1].latents.float()).abs().max() < NEAR[dtype] * drawn[0].latents.abs().max()


def test_in_float32_an_initial_picture_is_drawn_as_diffusers_does() -> None:
    assert torch.equal(
        beginning(FromPicture, torch.float32), beginning(StableDiffusionControlNetImg2ImgPipeline, torch.float32)
    )


class InHalf(SmallBundle):
    """The small models in bfloat16."""

    def base(self) -> dict:
        return in_precision(super().base(), torch.bfloat16)

    def controlnets(self) -> ControlNets:
        nets = in_precision({name: parts()[name] for name in ("canny", "tile")}, torch.bfloat16)
        return ControlNets(nets, torch.bfloat16)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"initial": InitialPicture(PICTURE, 0.8)},
        {"initial": InitialPicture(PICTURE, 1.0, MASK)},
        {"initial": InitialPicture(PICTURE, 0.8, MASK)},
        {"upscale": 2.0},
    ],
    ids=["text", "initial picture", "overwritten part", "repainted part", "second pass"],
)
def test_a_seed_gives_one_picture_in_every_precision(changes: dict[str, Any]) -> None:
    pictures = [
        np.asarray(Generator(bundle).generate(job(**changes))[0], np.float32).ravel()
        for bundle in (SmallBundle(), InHalf())
    ]
    assert np.corrcoef(pictures)[0, 1] > 0.9
    assert not np.array_equal(*pictures), "both were made in one precision"
