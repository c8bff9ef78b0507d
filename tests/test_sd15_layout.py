"""The sd15 bundle's manifest, filled with small random models in the very files it names, through the real predictor.

What the trained values do cannot be tested without them. That every file the manifest lists is found, loaded strictly
and used by the class it is for, for all conditioners, can.
"""

import copy
import json
import shutil
from pathlib import Path

import cog
import numpy as np
import pytest
import torch
from annotator_weights import make_part
from PIL import Image
from safetensors.torch import load_file
from skimage import data
from small_models import controlnet, parts
from test_safety import processor, tiny_model

import predict
from controlnet.bundle import open_bundle
from controlnet.manifest import WEIGHTS, Manifest, Part

MANIFEST = Manifest.read(WEIGHTS / "sd15.toml")


def write_tokenizer(folder: Path) -> None:
    """In the published files: transformers itself writes a single tokenizer.json now."""
    tokenizer = parts()["tokenizer"]
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    folder.mkdir()
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *(" ".join(pair) for pair in model["merges"])]))
    (folder / "special_tokens_map.json").write_text("{}")
    config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": tokenizer.model_max_length}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def write_part(part: Part, root: Path) -> None:
    small, folder = parts(), root / part.name
    if part.name.startswith("annotator/"):
        make_part(part.name, root)
        if "pytorch_model.bin" in part.files:
            file = folder / "model.safetensors"
            torch.save(load_file(file), folder / "pytorch_model.bin")
            file.unlink()
    elif part.name == "tokenizer":
        write_tokenizer(folder)
    elif part.name == "scheduler":
        small["scheduler"].save_pretrained(folder)
    elif part.name == "feature_extractor":
        processor().save_pretrained(folder)
    else:
        net = small["unet"]
        model = tiny_model() if part.name == "safety_checker" else small.get(part.name)
        if part.name.startswith("controlnet/"):
            model = controlnet(net, global_pool_conditions=part.name == "controlnet/shuffle")
        if "diffusion_pytorch_model.bin" in part.files:
            model.save_pretrained(folder, safe_serialization=False)
        else:
            copy.deepcopy(model).half().save_pretrained(folder, variant="fp16")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weights")
    shutil.copy(WEIGHTS / "sd15.toml", folder)
    for part in MANIFEST.parts:
        write_part(part, folder / "sd15")
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
    control_map, picture = (np.asarray(Image.open(file)) for file in predictor.predict(**inputs))
    uncontrolled = np.asarray(Image.open(predictor.predict(**inputs, conditioning_scale=0)[1]))
    assert control_map.shape == picture.shape == (64, 64, 3)
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
