"""The schedulers: their names, their noise schedule, and latents equal to those of diffusers."""

import inspect
from typing import Any

import diffusers
import pytest
import torch
from diffusers import StableDiffusionControlNetPipeline
from support.jobs import job
from support.latents import latents
from support.small_models import SmallBundle, parts

from controlnet.generation.generator import Generator
from controlnet.models.schedulers import SCHEDULERS, SchedulerError, make_scheduler, suited_schedulers, unet_calls
from controlnet.request.ignored import USUAL_ETA

STEPS = (1, 2, 5)
CLASSES: dict[str, Any] = {
    "DDIM": diffusers.DDIMScheduler,
    "DPMSolverMultistep": diffusers.DPMSolverMultistepScheduler,
    "DPMSolverMultistepKarras": diffusers.DPMSolverMultistepScheduler,
    "HeunDiscrete": diffusers.HeunDiscreteScheduler,
    "K_EULER": diffusers.EulerDiscreteScheduler,
    "K_EULER_ANCESTRAL": diffusers.EulerAncestralDiscreteScheduler,
    "K_EULER_KARRAS": diffusers.EulerDiscreteScheduler,
    "KLMS": diffusers.LMSDiscreteScheduler,
    "LCM": diffusers.LCMScheduler,
    "PNDM": diffusers.PNDMScheduler,
    "TCD": diffusers.TCDScheduler,
    "UniPCMultistep": diffusers.UniPCMultistepScheduler,
}
KARRAS = {"use_karras_sigmas": True}
OPTIONS = {"PNDM": {"skip_prk_steps": True}, "DPMSolverMultistepKarras": KARRAS, "K_EULER_KARRAS": KARRAS}


@pytest.fixture(scope="module")
def generator() -> Generator:
    return Generator(SmallBundle())


def our_latents(generator: Generator, scheduler: str, steps: int, eta: float = 0.0) -> torch.Tensor:
    return latents(generator, job(scheduler=scheduler, num_inference_steps=steps, eta=eta))[0]


def diffusers_latents(scheduler: str, steps: int, eta: float = 0.0) -> torch.Tensor:
    """The latents of diffusers' pipeline for the same request, with its scheduler, and none of our code."""
    asked = job()
    (control,) = asked.controls
    config = parts()["scheduler"].config
    pipeline = StableDiffusionControlNetPipeline(
        **SmallBundle().base() | {"scheduler": CLASSES[scheduler].from_config(config, **OPTIONS.get(scheduler, {}))},
        controlnet=parts()["canny"],
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    return pipeline(
        asked.prompt,
        image=control.control_map,
        num_inference_steps=steps,
        eta=eta,
        guidance_scale=asked.guidance_scale,
        generator=torch.Generator().manual_seed(asked.seed),
        output_type="latent",
    ).images


@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_call_gives_a_new_scheduler_with_the_bundles_config(name: str) -> None:
    config = parts()["scheduler"].config
    one, other = make_scheduler(name, config), make_scheduler(name, config)
    assert isinstance(one, CLASSES[name]) and one is not other
    for key in ("beta_end", "beta_schedule", "prediction_type", "num_train_timesteps"):
        assert one.config[key] == config[key], key


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_scheduler_gives_the_latents_of_diffusers(generator: Generator, name: str, steps: int) -> None:
    ours, theirs = our_latents(generator, name, steps), diffusers_latents(name, steps)
    assert ours.isfinite().all() and ours.std() > 0.1
    assert (ours - theirs).abs().max() <= 1e-4


@pytest.mark.parametrize("eta", [0.5, 1.0])
@pytest.mark.parametrize("name", USUAL_ETA)
def test_eta_adds_the_noise_of_diffusers(generator: Generator, name: str, eta: float) -> None:
    ours = our_latents(generator, name, 5, eta)
    assert (ours - diffusers_latents(name, 5, eta)).abs().max() <= 1e-4
    assert (ours - our_latents(generator, name, 5)).abs().max() > 0.1


def test_eta_is_taken_by_the_schedulers_that_requests_are_told() -> None:
    taking = [name for name, (kind, _) in SCHEDULERS.items() if "eta" in inspect.signature(kind.step).parameters]
    assert taking == list(USUAL_ETA)


def test_every_scheduler_gives_different_latents(generator: Generator) -> None:
    made = {name: our_latents(generator, name, 5, USUAL_ETA.get(name, 0.0)) for name in SCHEDULERS}
    names = list(made)
    for i, one in enumerate(names):
        for other in names[:i]:
            assert (made[one] - made[other]).abs().max() > 1e-3, (one, other)


def test_those_suited_to_zero_snr_are_those_whose_schedule_ends_with_noise_alone() -> None:
    config = {"beta_end": 0.012, "beta_schedule": "scaled_linear", "rescale_betas_zero_snr": True}
    left = {name: make_scheduler(name, config).alphas_cumprod[-1].item() for name in SCHEDULERS}
    assert {name for name, signal in left.items() if signal > 1e-7} == {"HeunDiscrete", "KLMS", "PNDM"}
    assert suited_schedulers(config) == tuple(name for name, signal in left.items() if signal <= 1e-7)
    assert suited_schedulers({}) == tuple(SCHEDULERS)


def test_an_unknown_scheduler_is_refused_with_the_known_names() -> None:
    with pytest.raises(SchedulerError, match=r"DDIM.*got 'euler'"):
        make_scheduler("euler", parts()["scheduler"].config)


def test_weights_of_earlier_outputs_in_klms_are_those_of_diffusers(generator: Generator) -> None:
    """diffusers computes them in float32."""
    ours: Any = make_scheduler("KLMS", generator.base["scheduler"].config)
    ours.set_timesteps(6)
    theirs = diffusers.LMSDiscreteScheduler.get_lms_coefficient
    for step in range(6):
        for order in range(1, min(step + 1, 4) + 1):
            for earlier in range(order):
                expected = theirs(ours, order, step, earlier)
                assert ours.get_lms_coefficient(order, step, earlier) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("name", "skipped", "calls"), [("DDIM", 0, 10), ("DDIM", 8, 2), ("HeunDiscrete", 0, 19), ("HeunDiscrete", 8, 3)]
)
def test_a_sampler_of_second_order_skips_two_calls_with_each_step(name: str, skipped: int, calls: int) -> None:
    assert unet_calls(name, parts()["scheduler"].config, 10, skipped) == calls
