"""Jobs with an initial picture, compared with diffusers' own pipelines on small random models."""

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    StableDiffusionControlNetImg2ImgPipeline,
    StableDiffusionControlNetInpaintPipeline,
)
from PIL import Image
from support.jobs import hint, job, pixels
from support.latents import latents
from support.small_models import SmallBundle, parts

from controlnet.generation.generator import Generator
from controlnet.models.schedulers import SCHEDULERS, unet_calls
from controlnet.pictures.canvas import InitialPicture

PICTURE = hint(9)
STEPS = 6


@pytest.fixture(scope="module")
def generator() -> Generator:
    return Generator(SmallBundle())


def mask(left: int = 24, right: int = 64, value: int = 255) -> Image.Image:
    drawn = np.zeros((64, 64), np.uint8)
    drawn[:, left:right] = value
    return Image.fromarray(drawn)


def latents_of(generator: Generator, **changes) -> torch.Tensor:
    return latents(generator, job(num_inference_steps=STEPS, **changes))[0]


def diffusers_own(kind: type, conditioner: str, strength: float, **inputs) -> torch.Tensor:
    small = parts()
    pipeline = kind(
        **SmallBundle().base() | {"scheduler": DDIMScheduler.from_config(small["scheduler"].config)},
        controlnet=small[conditioner],
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    settings = {"control_image": hint(1), "num_inference_steps": STEPS, "guidance_scale": 4.0, "strength": strength}
    settings |= {"image": PICTURE, "output_type": "latent", "controlnet_conditioning_scale": 1.0}
    settings |= {"generator": torch.Generator().manual_seed(5)}
    return pipeline("a red ball", **settings | inputs).images


@pytest.mark.parametrize("conditioner", ["canny", "shuffle"])
@pytest.mark.parametrize("strength", [0.4, 0.8, 1.0])
def test_img2img_latents_equal_those_of_diffusers(generator, conditioner: str, strength: float) -> None:
    ours = latents_of(generator, control={"conditioner": conditioner}, initial=InitialPicture(PICTURE, strength))
    own = diffusers_own(StableDiffusionControlNetImg2ImgPipeline, conditioner, strength)
    assert (ours - own).abs().max() <= 1e-4
    uncontrolled = {"conditioner": conditioner, "scale": 0.0}
    changed = latents_of(generator, control=uncontrolled, initial=InitialPicture(PICTURE, strength))
    assert (ours - changed).abs().max() > 1e-2, "the comparison is empty: control changes nothing"


@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_inpainting_equals_diffusers_for_masks_of_whole_latents(generator, strength) -> None:
    """diffusers takes every eighth pixel of a mask, we the mean of 8×8 pixels. Here both are the same."""
    ours = latents_of(generator, initial=InitialPicture(PICTURE, strength, mask()))
    own = diffusers_own(StableDiffusionControlNetInpaintPipeline, "canny", strength, mask_image=mask())
    assert (ours - own).abs().max() <= 1e-4
    assert (ours - latents_of(generator, initial=InitialPicture(PICTURE, strength))).abs().max() > 1e-2


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_unmasked_pixels_are_kept_bit_for_bit(generator, scheduler: str, strength: float) -> None:
    """The mask has a soft edge, and does not lie on the grid of the latents."""
    soft = np.zeros((64, 64), np.uint8)
    soft[5:41, 21:51] = np.linspace(1, 255, 30).astype(np.uint8)
    initial = InitialPicture(PICTURE, strength, Image.fromarray(soft))
    (made,) = generator.generate(job(num_inference_steps=STEPS, scheduler=scheduler, initial=initial))
    got, picture = np.asarray(made), np.asarray(PICTURE)
    assert np.array_equal(got[soft == 0], picture[soft == 0])
    assert np.abs(got[soft == 255].astype(int) - picture[soft == 255]).mean() > 4


@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_ancestral_samplers_are_seeded_when_repainting(generator, strength: float) -> None:
    """With the global generator, the same request would give another picture each time."""
    asked = job(
        num_inference_steps=STEPS, scheduler="K_EULER_ANCESTRAL", initial=InitialPicture(PICTURE, strength, mask())
    )
    assert pixels(generator.generate(asked)) == pixels(generator.generate(asked))


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_windows_count_the_steps_that_strength_leaves(generator, scheduler: str) -> None:
    """Of 10 steps at strength 0.2 two are left, or a sampler's multiple: half of them is enough, a quarter is not."""
    settings = {"num_inference_steps": 10, "scheduler": scheduler, "initial": InitialPicture(PICTURE, 0.2)}
    calls: list[int] = []
    handle = parts()["canny"].register_forward_hook(lambda *_: calls.append(1))
    try:
        generator.generate(job(**settings))
        everywhere = len(calls)
        calls.clear()
        generator.generate(job(**settings, control={"end": 0.67}))
    finally:
        handle.remove()
    assert everywhere <= 4 and 0 < len(calls) < everywhere
    assert everywhere == unet_calls(scheduler, parts()["scheduler"].config, 10, 8), "the rule of windows counts others"


def test_the_net_sees_minus_one_in_holes(generator) -> None:
    seen: list[torch.Tensor] = []
    handle = parts()["canny"].register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs["controlnet_cond"]), with_kwargs=True
    )
    try:
        generator.generate(job(control={"holes": mask()}))
    finally:
        handle.remove()
    assert (seen[0][..., 24:] == -1).all() and (seen[0][..., :24] >= 0).all()


def test_an_initial_picture_changes_no_later_request(generator) -> None:
    before = pixels(generator.generate(job()))
    starts = [InitialPicture(PICTURE, *more) for more in ((0.6,), (1.0, mask()), (0.6, mask()))]
    made = [pixels(generator.generate(job(initial=initial))) for initial in starts]
    assert len({*map(tuple, made), tuple(before)}) == 4
    assert pixels(generator.generate(job())) == before
