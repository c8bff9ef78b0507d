"""The sd15 bundle with small random models in the files that its manifest names, run by the real predictor.

The trained weights are not here, but for all conditioners the tests show that every file in the manifest is found,
loaded strictly and used by the right class.
"""

import os
import shutil
from dataclasses import replace
from pathlib import Path

import cog
import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionControlNetPipeline
from PIL import Image
from skimage import data
from support.latents import latents

import predict
from controlnet.bundle import open_bundle
from controlnet.generation.job import Job
from controlnet.maps.controls import Control
from controlnet.maps.drawing import draw_control_map
from controlnet.settings import Settings

DETECT_RESOLUTION = {"hed": 128, "scribble": 128, "normal": 128, "lineart": 128}
"""For annotators that take seconds on a CPU at the default of 512. The others use it."""


@pytest.fixture(scope="module")
def predictor(sd15_root: Path) -> predict.Predictor:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(predict, "open_bundle", lambda: open_bundle(Settings(bundle="sd15"), sd15_root))
        made = predict.Predictor()
        made.setup()
    return made


@pytest.mark.parametrize("conditioner", predict.CONDITIONERS)
def test_every_conditioner_draws_a_map_that_changes_the_picture(predictor, tmp_path: Path, conditioner: str) -> None:
    """Other ControlNet models on Replicate crashed: canny got wrong arguments, normal and mlsd no threshold."""
    photo = tmp_path / "photo.png"
    Image.fromarray(data.astronaut()).resize((128, 128)).save(photo)
    inputs = {"prompt": "a red ball", "image": cog.Path(photo), "conditioner": conditioner, "resolution": 64, "seed": 0}
    inputs |= {"num_inference_steps": 2, "output_format": "png", "return_control_map": True}
    inputs |= {"detect_resolution": DETECT_RESOLUTION[conditioner]} if conditioner in DETECT_RESOLUTION else {}
    inputs |= {"outpaint_right": 16} if conditioner == "inpaint" else {}
    control_map, picture = (np.asarray(Image.open(file)) for file in predictor.predict(**inputs))
    uncontrolled = np.asarray(Image.open(predictor.predict(**inputs, conditioning_scale=0)[1]))
    assert control_map.shape == picture.shape == (64, 80 if conditioner == "inpaint" else 64, 3)
    assert not np.array_equal(picture, uncontrolled)


def test_the_safety_checker_runs_unless_the_request_disables_it(predictor, tmp_path: Path, monkeypatch) -> None:
    photo = tmp_path / "photo.png"
    Image.fromarray(data.astronaut()).resize((128, 128)).save(photo)
    inputs = {"prompt": "x", "image": cog.Path(photo), "resolution": 64, "num_inference_steps": 1, "num_outputs": 3}
    monkeypatch.setattr(predictor.model.safety_checker, "flags", lambda pictures: [True, False, True][: len(pictures)])
    assert len(predictor.predict(**inputs)) == 1
    assert len(predictor.predict(**inputs, disable_safety_checker=True)) == 3
    assert len(predictor.predict(**inputs)) == 1, "disabled for the next request, too"


def test_setup_fails_without_the_safety_checkers_weights(sd15_root: Path, tmp_path: Path, monkeypatch) -> None:
    shutil.copytree(sd15_root, tmp_path / "weights", copy_function=os.link)
    (tmp_path / "weights/sd15/safety_checker/model.fp16.safetensors").unlink()
    monkeypatch.setattr(predict, "open_bundle", lambda: open_bundle(Settings(bundle="sd15"), tmp_path / "weights"))
    with pytest.raises(RuntimeError, match=r"safety_checker/model.fp16.safetensors: missing"):
        predict.Predictor().setup()


@pytest.mark.parametrize("conditioner", predict.CONDITIONERS)
def test_latents_equal_diffusers_with_every_conditioner(predictor, conditioner: str) -> None:
    """With the same components and the map of the conditioner's annotator. The map of inpaint is -1 in the hole."""
    generator, size = predictor.model.generator, (64, 64)
    # The picture of the test above, whose map is in the cache.
    picture = Image.fromarray(data.astronaut()).resize((128, 128))
    cached = {"detect_resolution": DETECT_RESOLUTION.get(conditioner), "cache": predictor.model.maps}
    control_map = draw_control_map(conditioner, picture, size, True, predictor.model.annotators, **cached)
    hole = Image.new("L", size)
    hole.paste(255, (16, 16, 48, 64))
    control = Control(conditioner, control_map, holes=hole if conditioner == "inpaint" else None)
    jobs = [Job("a bird", "", (replace(control, scale=scale),), 1, 2, 7.5, "DDIM", seed=5) for scale in (1.0, 0.0)]
    made = [latents(generator, asked)[0] for asked in jobs]
    parts = dict(generator.base) | {"safety_checker": None, "feature_extractor": None}
    parts["scheduler"] = DDIMScheduler.from_config(parts["scheduler"].config)
    pixels = torch.from_numpy(np.asarray(control_map, np.float32) / 255).permute(2, 0, 1)[None]
    if control.holes is not None:
        pixels = torch.where(torch.from_numpy(np.array(hole) > 127), -1.0, pixels)
    own = StableDiffusionControlNetPipeline(
        **parts, controlnet=generator.controlnets[conditioner], requires_safety_checker=False
    )("a bird", image=pixels, num_inference_steps=2, generator=torch.Generator().manual_seed(5), output_type="latent")
    assert (made[0] - own.images).abs().max() <= 1e-4
    assert (made[0] - made[1]).abs().max() > 1e-2, "the ControlNet has no effect, so the comparison proves nothing"
