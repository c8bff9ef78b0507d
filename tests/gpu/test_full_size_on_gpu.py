"""The sd15 bundle at full size in half precision on a CUDA card: setup, and every kind of request.

Latents are compared with diffusers' pipelines with the same weights, in half precision as it comes and in float32:
ours must not be farther from float32 than diffusers' own are.
"""

import copy
from pathlib import Path
from typing import Any
from unittest import mock

import cog
import numpy as np
import pytest
import torch
from diffusers import StableDiffusionControlNetPipeline
from PIL import Image
from skimage import data
from support.latents import latents

import predict
from controlnet.bundle import open_bundle
from controlnet.generation.generator import Generator
from controlnet.generation.job import Job
from controlnet.maps.controls import Control
from controlnet.models.schedulers import SCHEDULERS, make_scheduler
from controlnet.request.modes import CONTROL_MODES
from controlnet.settings import Settings

SIDE = 512
BASE: dict[str, Any] = {"prompt": "a (red:1.3) ball", "resolution": SIDE, "num_inference_steps": 3, "seed": 1}
REQUESTS: dict[str, dict[str, Any]] = {
    "three nets, regions, windows": {
        "conditioner": "shuffle",
        "control_mask": "soft",
        "control_end": 0.5,
        "conditioner_2": "canny",
        "image_2": "other",
        "control_mask_2": "soft",
        "conditioner_3": "tile",
        "control_start_3": 0.5,
    },
    **{f"mode {mode}": {"control_mode": mode, "conditioning_scale": 0.7} for mode in CONTROL_MODES},
    "a pooled net, mode control": {"control_mode": "control", "conditioner": "shuffle"},
    "no guidance": {"guidance_scale": 1},
    "a long prompt": {"prompt": "a (red:1.3) ball " * 30},
    "clip_skip": {"clip_skip": 2},
    "no control": {"conditioning_scale": 0.0},
    "two outputs": {"num_outputs": 2},
    "an initial picture": {"init_image": "other", "prompt_strength": 0.5},
    "a mask": {"mask": "soft"},
    "a mask at strength 0.5": {"mask": "soft", "prompt_strength": 0.5},
    "outpainting": {"conditioner": "inpaint", "outpaint_right": 64},
    "not square": {"image": "wide"},
    "larger pictures": {"upscale": 1.5, "upscale_strength": 0.5},
    "few steps": {"go_fast": True},
    "a reference picture": {"reference_image": "other"},
    "its style, in a part": {"reference_image": "other", "reference_mode": "style", "reference_mask": "soft"},
    "a reference picture, larger": {"reference_image": "other", "upscale": 1.5, "upscale_strength": 0.5},
}


@pytest.fixture(scope="module")
def predictor(sd15: Path) -> predict.Predictor:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(predict, "open_bundle", lambda: open_bundle(Settings(bundle="sd15"), sd15))
        made = predict.Predictor()
        made.setup()
    return made


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, cog.Path]:
    folder = tmp_path_factory.mktemp("pictures")
    photo = Image.fromarray(data.astronaut())
    soft = Image.fromarray(np.tile(np.linspace(0, 255, SIDE).astype(np.uint8), (SIDE, 1)))
    drawn = {"photo": photo, "other": photo.rotate(90), "soft": soft, "wide": photo.resize((640, 448))}
    for name, picture in drawn.items():
        picture.save(folder / f"{name}.png")
    return {name: cog.Path(folder / f"{name}.png") for name in drawn}


@pytest.fixture
def send(predictor: predict.Predictor, pictures: dict[str, cog.Path]):
    def answer(**inputs: Any) -> list[bytes]:
        sent = BASE | {"image": "photo", "output_format": "png"} | inputs
        files = {name: pictures[value] for name, value in sent.items() if value in pictures}
        return [path.read_bytes() for path in predictor.predict(**sent | files)]

    return answer


def job(control_map: Image.Image, conditioner: str = "canny", **changes: Any) -> Job:
    values = {"prompt": "a red ball", "negative_prompt": "blue", "num_outputs": 1, "num_inference_steps": 3}
    values |= {"guidance_scale": 7.0, "scheduler": "DDIM", "seed": 5} | changes
    return Job(**values, controls=(Control(conditioner, control_map),))


def squares(seed: int) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)
    return Image.fromarray(noise).resize((SIDE, SIDE), Image.Resampling.NEAREST)


def drawn_in(dtype: torch.dtype) -> Any:
    """torch.randn, with the numbers of a dtype: PyTorch draws others in float32 than in float16."""
    randn = torch.randn

    def drawn(*size: Any, **named: Any) -> torch.Tensor:
        return randn(*size, **named | {"dtype": dtype}).to(named.get("dtype"))

    return drawn


def diffusers_own(generator: Generator, asked: Job, dtype: torch.dtype) -> torch.Tensor:
    """Latents of diffusers' pipeline, with copies of the models as diffusers loads them."""

    def plain(model: Any) -> Any:
        return copy.deepcopy(model).to(dtype, memory_format=torch.contiguous_format)

    parts = {name: plain(generator.base[name]) for name in ("unet", "vae", "text_encoder")}
    pipeline: Any = StableDiffusionControlNetPipeline(
        **parts,
        tokenizer=generator.base["tokenizer"],
        scheduler=make_scheduler(asked.scheduler, generator.base["scheduler"].config),
        controlnet=plain(generator.controlnets[asked.conditioners[0]]),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    with mock.patch.object(torch, "randn", drawn_in(generator.bundle.dtype)):
        return pipeline(
            asked.prompt,
            asked.controls[0].control_map,
            negative_prompt=asked.negative_prompt,
            num_inference_steps=asked.num_inference_steps,
            guidance_scale=asked.guidance_scale,
            controlnet_conditioning_scale=asked.controls[0].scale,
            eta=asked.eta,
            generator=torch.Generator("cpu").manual_seed(asked.seed),
            output_type="latent",
        ).images.float()


def assert_no_farther(generator: Generator, asked: Job, record_property) -> None:
    with torch.backends.cudnn.flags(allow_tf32=False):
        exact = diffusers_own(generator, asked, torch.float32)
    plain = diffusers_own(generator, asked, generator.bundle.dtype)
    ours = latents(generator, asked)[0].float()
    errors = [float((made - exact).norm() / exact.norm()) for made in (ours, plain)]
    record_property("errors", errors)
    print(f"from float32: ours {errors[0]:.1e}, diffusers {errors[1]:.1e}")
    assert errors[0] <= 1.3 * errors[1] and errors[1] < 0.5


@pytest.mark.parametrize("conditioner", predict.CONDITIONERS)
def test_latents_of_every_conditioner(predictor: predict.Predictor, conditioner: str, record_property) -> None:
    assert_no_farther(predictor.model.generator, job(squares(1), conditioner), record_property)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_latents_of_every_sampler(predictor: predict.Predictor, scheduler: str, record_property) -> None:
    asked = job(squares(2), scheduler=scheduler, num_inference_steps=5)
    assert_no_farther(predictor.model.generator, asked, record_property)


@pytest.mark.parametrize("conditioner", predict.CONDITIONERS)
def test_every_annotator_draws_at_full_size(send, conditioner: str) -> None:
    inputs: dict[str, Any] = {"conditioner": conditioner} | ({"mask": "soft"} if conditioner == "inpaint" else {})
    (control_map,) = send(map_only=True, **inputs)
    assert send(return_control_map=True, **inputs)[0] == control_map


@pytest.mark.parametrize("inputs", REQUESTS.values(), ids=REQUESTS.keys())
def test_every_kind_of_request_has_the_same_bytes_after_another(send, inputs: dict[str, Any]) -> None:
    before = send(**inputs)
    send(prompt="another picture", conditioner="depth", seed=7, scheduler="K_EULER_ANCESTRAL")
    assert send(**inputs) == before


def test_outputs_as_one_batch_are_those_of_each_alone(sd15: Path, predictor: predict.Predictor) -> None:
    generator = predictor.model.generator
    together = Generator(open_bundle(Settings(bundle="sd15", batch_outputs=True), sd15))
    asked = job(squares(4), num_outputs=3)
    with torch.backends.cudnn.flags(allow_tf32=False):
        exact = diffusers_own(generator, asked, torch.float32)
    errors = [float((latents(each, asked)[0].float() - exact).norm() / exact.norm()) for each in (together, generator)]
    print(f"from float32: as one batch {errors[0]:.1e}, alone {errors[1]:.1e}")
    assert errors[0] <= 1.3 * errors[1]


@pytest.mark.parametrize("choices", [{"graphs": False}, {"low_memory": True}], ids=str)
def test_graphs_and_low_memory_mode_change_no_byte(sd15: Path, predictor: predict.Predictor, choices) -> None:
    other = Generator(open_bundle(Settings(bundle="sd15", **choices), sd15))
    for conditioner in ("canny", "shuffle", "canny"):
        asked = job(squares(3), conditioner, num_outputs=2)
        for made, expected in zip(other.generate(asked), predictor.model.generator.generate(asked), strict=True):
            assert made.tobytes() == expected.tobytes()
