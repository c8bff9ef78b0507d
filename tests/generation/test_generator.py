from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionControlNetPipeline
from diffusers.image_processor import VaeImageProcessor
from support.jobs import hint, job, pixels
from support.latents import latents, pipeline_for
from support.requests import laid_out
from support.small_models import SmallBundle, parts

from controlnet.generation.decoding import decode
from controlnet.generation.generator import Generator
from controlnet.generation.job import make_job
from controlnet.pictures.canvas import InitialPicture
from controlnet.settings import Settings
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


def test_a_picture_equals_that_of_diffusers_pipeline(generator: Generator) -> None:
    (plain,) = diffusers_own("canny", "pil")
    (ours,) = generator.generate(job())
    assert np.abs(np.asarray(ours, int) - np.asarray(plain, int)).max() <= 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_pixels_become_the_bytes_that_diffusers_makes_of_them(dtype: torch.dtype) -> None:
    """In red on the middle between two levels, where rounding decides, in green and blue off it; some out of range."""
    levels = torch.arange(-64, 320) + torch.tensor([[0.5], [0.25], [0.75]])
    decoded = (levels / 127.5 - 1)[None, :, None].to(dtype)
    vae = SimpleNamespace(config=parts()["vae"].config, decode=lambda latents, return_dict: (decoded,))
    processor = VaeImageProcessor()
    (expected,) = processor.postprocess(decoded)
    assert pixels([decode(torch.zeros(1), vae, processor)]) == pixels([expected])


@pytest.mark.parametrize("conditioner", ["canny", "shuffle"])  # a plain net, and one with global pooling
def test_latents_equal_those_of_diffusers(generator: Generator, conditioner: str) -> None:
    (ours,) = latents(generator, job(control={"conditioner": conditioner}))
    (uncontrolled,) = latents(generator, job(control={"conditioner": conditioner, "scale": 0.0}))
    assert ours.dtype == torch.float32
    assert (ours - diffusers_own(conditioner, "latent")).abs().max() <= 1e-4
    assert (uncontrolled - diffusers_own(conditioner, "latent", scale=0.0)).abs().max() <= 1e-4
    assert (ours - uncontrolled).abs().max() > 1e-2, "the comparison is empty: control changes nothing"


def test_picture_i_equals_that_of_seed_plus_i_alone(generator: Generator) -> None:
    """A picture of a batch that cannot be made again alone cannot be refined either."""
    together = pixels(generator.generate(job(num_outputs=3, seed=0)))
    alone = [pixels(generator.generate(job(seed=seed)))[0] for seed in range(3)]
    assert together == alone
    assert len(set(together)) == 3


def test_seeds_wrap_around_to_0(generator: Generator) -> None:
    assert (
        pixels(generator.generate(job(seed=2**32 - 1, num_outputs=2)))[1] == pixels(generator.generate(job(seed=0)))[0]
    )


def test_every_conditioner_uses_the_same_base_model(generator: Generator) -> None:
    """Switching conditioner loads nothing: every pipeline is built around the same modules."""
    pipelines = [pipeline_for(generator, job(control={"conditioner": name})) for name in ("canny", "scribble")]
    for part in ("unet", "vae", "text_encoder"):
        assert getattr(pipelines[0], part) is getattr(pipelines[1], part) is generator.base[part]
    assert pipelines[0].controlnet.nets[0].net is generator.controlnets["canny"]


def test_a_pictures_parameters_reproduce_it(generator: Generator) -> None:
    second = generator.generate(job(num_outputs=2))[1]
    parameters = second.info["parameters"]
    assert parameters["controls"] == [{"conditioner": "canny", "scale": 1.0, "start": 0.0, "end": 1.0}]
    settings = {name: value for name, value in parameters.items() if name != "controls"}
    assert pixels(generator.generate(job(**settings))) == pixels([second])


def test_a_reference_picture_reaches_the_job_and_is_said_in_its_parameters(tmp_path: Path) -> None:
    pictures = {"image": hint(1), "reference_image": hint(2)}
    request, layout = laid_out(tmp_path, pictures, reference_scale=0.5, reference_mode="style")
    made = make_job(request, job().controls, layout)
    assert made.reference and made.reference == layout.reference
    assert made.parameters(0)["reference"] == {"scale": 0.5, "mode": "style"}
    assert "reference" not in job().parameters(0)


def test_phases_are_timed_over_all_pictures(generator: Generator) -> None:
    phases: dict[str, list[float]] = {}
    generator.generate(job(num_outputs=2), Stopwatch(lambda name, value: phases.setdefault(name, []).append(value)))
    assert list(phases) == ["timing.encode", "timing.denoise", "timing.decode"]
    assert len(phases["timing.denoise"]) == 2 and 0 < phases["timing.denoise"][0] < phases["timing.denoise"][1]


@pytest.mark.parametrize(
    "changes",
    [{}, {"scheduler": "K_EULER_ANCESTRAL"}, {"guidance_scale": 1.0}, {"control_mode": "control"}],
    ids=["DDIM", "a sampler that adds noise", "no guidance", "mode control"],
)
@pytest.mark.parametrize("conditioner", ["canny", "shuffle"])
def test_outputs_as_one_batch_are_those_of_each_alone(generator: Generator, conditioner: str, changes) -> None:
    """Up to rounding, because products of larger matrices add up in another order."""
    together = Generator(SmallBundle(Settings(batch_outputs=True)))
    asked = job(num_outputs=3, control={"conditioner": conditioner, "scale": 0.7}, **changes)
    alone, batch = generator.generate(asked), together.generate(asked)
    for one, other in zip(alone, batch, strict=True):
        assert np.abs(np.asarray(one, int) - np.asarray(other)).max() <= 1
        assert one.info == other.info
    assert len(set(pixels(batch))) == 3


def test_a_batch_calls_the_unet_once_a_step(monkeypatch) -> None:
    together = Generator(SmallBundle(Settings(batch_outputs=True)))
    calls: list[int] = []
    unet = together.base["unet"]
    unet.register_forward_pre_hook(lambda _, given: calls.append(len(given[0])))
    together.generate(job(num_outputs=3))
    together.generate(job(num_outputs=2, initial=InitialPicture(hint(9), 1.0)))
    unet._forward_pre_hooks.clear()
    assert calls == [6] * 3 + [1] * 6, "with guidance; pictures that begin with another one are made alone"
