"""The sd15 bundle's manifest, filled with small random models in the very files it names, through the real predictor.

What the trained values do cannot be tested without them. That every file the manifest lists is found, loaded strictly
and used by the class it is for, for all conditioners, can.
"""

import shutil
from dataclasses import replace
from pathlib import Path

import cog
import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionControlNetPipeline
from PIL import Image
from random_bundle import write_bundle
from skimage import data

import predict
from controlnet.bundle import open_bundle
from controlnet.generation.job import Job
from controlnet.maps.controls import Control
from controlnet.maps.drawing import draw_control_map


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weights")
    write_bundle("sd15", folder, small=True)
    return folder


@pytest.fixture(scope="module")
def predictor(root: Path) -> predict.Predictor:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(predict, "open_bundle", lambda: open_bundle({"CONTROLNET_BUNDLE": "sd15"}, root))
        made = predict.Predictor()
        made.setup()
    return made


@pytest.mark.parametrize("conditioner", predict.CONDITIONERS)
def test_every_conditioner_draws_its_map_and_shapes_the_picture(predictor, tmp_path: Path, conditioner: str) -> None:
    """Peers called canny with the wrong number of arguments; normal and mlsd crashed on a threshold never defined."""
    photo = tmp_path / "photo.png"
    Image.fromarray(data.astronaut()).resize((128, 128)).save(photo)
    inputs = {"prompt": "a red ball", "image": cog.Path(photo), "conditioner": conditioner, "resolution": 64, "seed": 0}
    inputs |= {"num_inference_steps": 2, "output_format": "png", "return_control_map": True}
    inputs |= {"outpaint_right": 16} if conditioner == "inpaint" else {}
    control_map, picture = (np.asarray(Image.open(file)) for file in predictor.predict(**inputs))
    uncontrolled = np.asarray(Image.open(predictor.predict(**inputs, conditioning_scale=0)[1]))
    assert control_map.shape == picture.shape == (64, 80 if conditioner == "inpaint" else 64, 3)
    assert not np.array_equal(picture, uncontrolled)


def test_the_safety_checker_is_asked_unless_the_request_says_otherwise(predictor, tmp_path: Path, monkeypatch) -> None:
    photo = tmp_path / "photo.png"
    Image.fromarray(data.astronaut()).resize((128, 128)).save(photo)
    inputs = {"prompt": "x", "image": cog.Path(photo), "resolution": 64, "num_inference_steps": 1, "num_outputs": 3}
    monkeypatch.setattr(predictor.safety_checker, "flags", lambda pictures: [True, False, True][: len(pictures)])
    assert len(predictor.predict(**inputs)) == 1
    assert len(predictor.predict(**inputs, disable_safety_checker=True)) == 3
    assert len(predictor.predict(**inputs)) == 1, "a request that disabled the checker disabled it for the next"


def test_a_missing_safety_checker_refuses_to_start(root: Path, tmp_path: Path, monkeypatch) -> None:
    shutil.copytree(root, tmp_path / "weights")
    (tmp_path / "weights/sd15/safety_checker/model.fp16.safetensors").unlink()
    monkeypatch.setattr(
        predict, "open_bundle", lambda: open_bundle({"CONTROLNET_BUNDLE": "sd15"}, tmp_path / "weights")
    )
    with pytest.raises(RuntimeError, match=r"safety_checker/model.fp16.safetensors: missing"):
        predict.Predictor().setup()


@pytest.mark.parametrize("conditioner", predict.CONDITIONERS)
def test_latents_equal_diffusers_own_with_each_net(predictor, monkeypatch, conditioner: str) -> None:
    """Of the same components, the map in each drawn by the conditioner's own annotator; inpaint's with a hole of -1."""
    generator, size = predictor.generator, (64, 64)
    picture = Image.fromarray(data.astronaut()).resize(size)
    control_map = draw_control_map(conditioner, picture, size, True, predictor.annotators)
    hole = Image.new("L", size)
    hole.paste(255, (16, 16, 48, 64))
    control = Control(conditioner, control_map, holes=hole if conditioner == "inpaint" else None)
    made: list[torch.Tensor] = []
    decode = generator._decode
    monkeypatch.setattr(generator, "_decode", lambda latents, pipe: made.append(latents) or decode(latents, pipe))
    for scale in (1.0, 0.0):
        generator.generate(Job("a bird", "", (replace(control, scale=scale),), 1, 2, 7.5, "DDIM", seed=5))
    parts = dict(generator.base) | {"safety_checker": None, "feature_extractor": None}
    parts["scheduler"] = DDIMScheduler.from_config(parts["scheduler"].config)
    pixels = torch.from_numpy(np.asarray(control_map, np.float32) / 255).permute(2, 0, 1)[None]
    if control.holes is not None:
        pixels = torch.where(torch.from_numpy(np.array(hole) > 127), -1.0, pixels)
    own = StableDiffusionControlNetPipeline(
        **parts, controlnet=generator.controlnets[conditioner], requires_safety_checker=False
    )("a bird", image=pixels, num_inference_steps=2, generator=torch.Generator().manual_seed(5), output_type="latent")
    assert (made[0] - own.images).abs().max() <= 1e-4
    assert (made[0] - made[1]).abs().max() > 1e-2, "the comparison is empty: control changes nothing"
