"""The sd15 bundle's manifest, filled with small random models in the very files it names, through the real predictor.

What the trained values do cannot be tested without them. That every file the manifest lists is found, loaded strictly
and used by the class it is for, for all conditioners, can.
"""

import shutil
from pathlib import Path

import cog
import numpy as np
import pytest
from PIL import Image
from random_bundle import write_bundle
from skimage import data

import predict
from controlnet.bundle import open_bundle


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
