"""The pipelines know at once on which device the models are."""

from unittest import mock

import pytest
import torch
from diffusers.hooks import group_offloading
from diffusers.image_processor import VaeImageProcessor
from diffusers.models import modeling_utils
from PIL import Image
from support.jobs import hint, job
from support.latents import pipeline_for
from support.small_models import SmallBundle

from controlnet.generation.generator import Generator
from controlnet.generation.job import Job
from controlnet.pictures.canvas import InitialPicture

REGION = Image.linear_gradient("L").resize((64, 64))
JOBS = {"noise": job(control={"region": REGION}), "picture": job(initial=InitialPicture(hint(2), 0.5))}


@pytest.mark.parametrize("begins_with", JOBS)
def test_no_module_is_asked_for_hooks(begins_with: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """diffusers asks all of them, for each picture: for hooks that would move them or change their precision."""
    generator, asked = Generator(SmallBundle()), []
    monkeypatch.setattr(group_offloading, "_get_top_level_group_offload_hook", asked.append)
    monkeypatch.setattr(modeling_utils, "get_parameter_dtype", lambda module: asked.append(module) or torch.float32)
    generator.generate(JOBS[begins_with])
    assert asked == []
    unet = generator.base["unet"]
    assert (unet.device.type, unet.dtype, asked) == ("cpu", torch.float32, [unet, unet]), "this test sees questions"


@pytest.mark.parametrize("made", JOBS.values(), ids=JOBS)
def test_pictures_are_made_where_the_unet_is(made: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = pipeline_for(Generator(SmallBundle()), made)
    assert pipeline._execution_device == pipeline.device == torch.device("cpu")
    elsewhere = torch.empty(0, device="meta")
    monkeypatch.setattr(type(pipeline.unet), "parameters", lambda _: iter([elsewhere]))
    assert pipeline._execution_device == elsewhere.device


@pytest.mark.parametrize("made", JOBS.values(), ids=JOBS)
def test_control_maps_are_not_resized(made: Job) -> None:
    with mock.patch.object(VaeImageProcessor, "resize", autospec=True, side_effect=VaeImageProcessor.resize) as resize:
        Generator(SmallBundle()).generate(made)
    pictures = [call.args[1] for call in resize.call_args_list]
    assert [type(picture) for picture in pictures] == ([] if made.initial is None else [Image.Image])
