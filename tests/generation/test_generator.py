import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionControlNetPipeline
from support.jobs import hint, job, pixels
from support.small_models import SmallBundle, parts

from controlnet.generation.generator import Generator
from controlnet.models.schedulers import SCHEDULERS
from controlnet.stopwatch import Stopwatch


@pytest.fixture(scope="module")
def generator() -> Generator:
    return Generator(SmallBundle())


def diffusers_own(conditioner: str, output_type: str, scale: float = 1.0):
    """What diffusers' pipeline makes of job(), without our generator."""
    small = parts()
    pipeline = StableDiffusionControlNetPipeline(
        **SmallBundle().base() | {"scheduler": DDIMScheduler.from_config(small["scheduler"].config)},
        controlnet=small[conditioner],
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    settings = {"image": hint(1), "num_inference_steps": 3, "guidance_scale": 4.0}
    settings |= {"controlnet_conditioning_scale": scale, "output_type": output_type}
    return pipeline("a red ball", **settings, generator=torch.Generator().manual_seed(5)).images


def test_a_request_equals_diffusers_own_pipeline(generator: Generator) -> None:
    (plain,) = diffusers_own("canny", "pil")
    (ours,) = generator.generate(job())
    assert np.abs(np.asarray(ours, int) - np.asarray(plain, int)).max() <= 1


@pytest.mark.parametrize("conditioner", ["canny", "shuffle"])  # a plain net, and one with global pooling
def test_latents_equal_diffusers_own(generator: Generator, conditioner: str, monkeypatch) -> None:
    latents = []
    decode = generator._decode
    monkeypatch.setattr(generator, "_decode", lambda made, pipeline: latents.append(made) or decode(made, pipeline))
    generator.generate(job(control={"conditioner": conditioner}))
    generator.generate(job(control={"conditioner": conditioner, "scale": 0.0}))
    ours, uncontrolled = latents
    assert ours.dtype == torch.float32
    assert (ours - diffusers_own(conditioner, "latent")).abs().max() <= 1e-4
    assert (uncontrolled - diffusers_own(conditioner, "latent", scale=0.0)).abs().max() <= 1e-4
    assert (ours - uncontrolled).abs().max() > 1e-2, "the comparison is empty: control changes nothing"


def test_picture_i_of_seed_s_is_picture_0_of_seed_s_plus_i(generator: Generator) -> None:
    """A picture of a batch that cannot be made again alone cannot be refined either."""
    together = pixels(generator.generate(job(num_outputs=3, seed=0)))
    alone = [pixels(generator.generate(job(seed=seed)))[0] for seed in range(3)]
    assert together == alone
    assert len(set(together)) == 3


def test_after_the_highest_seed_comes_0(generator: Generator) -> None:
    assert (
        pixels(generator.generate(job(seed=2**32 - 1, num_outputs=2)))[1] == pixels(generator.generate(job(seed=0)))[0]
    )


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_every_scheduler_runs_with_any_number_of_steps(generator: Generator, scheduler: str, steps: int) -> None:
    (picture,) = generator.generate(job(scheduler=scheduler, num_inference_steps=steps))
    assert picture.size == (64, 64)


@pytest.mark.parametrize(
    "changed",
    [
        {"prompt": "a blue box on grass"},
        {"negative_prompt": "a green room"},
        {"num_inference_steps": 4},
        {"guidance_scale": 9.0},
        {"scheduler": "K_EULER_ANCESTRAL"},
        {"seed": 6},
        {"control": {"scale": 0.5}},
        {"control": {"start": 0.3}},
        {"control": {"end": 0.7}},
        {"control": {"conditioner": "scribble"}},
        {"control": {"control_map": hint(2)}},
    ],
    ids=lambda changed: "-".join(changed.get("control", changed)),
)
def test_every_setting_changes_the_picture_and_leaves_no_trace(generator: Generator, changed: dict) -> None:
    """rossjillian/controlnet once put its resize factor in the place of the guidance scale, and nobody noticed."""
    before = pixels(generator.generate(job()))
    assert pixels(generator.generate(job(**changed))) != before
    assert pixels(generator.generate(job())) == before


def test_one_base_whatever_the_number_of_conditioners(generator: Generator) -> None:
    """Switching conditioner loads nothing: the pipeline of each is built around the very same modules."""
    pipelines = [generator._pipeline(job(control={"conditioner": name})) for name in ("canny", "scribble")]
    for part in ("unet", "vae", "text_encoder"):
        assert getattr(pipelines[0], part) is getattr(pipelines[1], part) is generator.base[part]
    assert pipelines[0].controlnet.nets[0].net is generator.controlnets["canny"]


def test_a_pictures_parameters_make_it_again(generator: Generator) -> None:
    second = generator.generate(job(num_outputs=2))[1]
    parameters = second.info["parameters"]
    assert parameters["controls"] == [{"conditioner": "canny", "scale": 1.0, "start": 0.0, "end": 1.0}]
    settings = {name: value for name, value in parameters.items() if name != "controls"}
    assert pixels(generator.generate(job(**settings))) == pixels([second])


def test_each_phase_is_timed_and_the_pictures_add_up(generator: Generator) -> None:
    phases: dict[str, list[float]] = {}
    generator.generate(job(num_outputs=2), Stopwatch(lambda name, value: phases.setdefault(name, []).append(value)))
    assert list(phases) == ["timing.encode", "timing.denoise", "timing.decode"]
    assert len(phases["timing.denoise"]) == 2 and 0 < phases["timing.denoise"][0] < phases["timing.denoise"][1]
