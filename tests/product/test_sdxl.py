"""Whole requests to the bundle sdxl, with small random weights: predict.py as it is, in any order, and cancelled."""

import random
from collections.abc import Callable
from typing import Any

import cog
import pytest
import torch
from PIL import Image
from random_bundle import write_bundle
from skimage import data

import predict
from controlnet.bundle import open_bundle
from controlnet.request.combinations import RequestError
from controlnet.settings import Settings

Inputs = dict[str, Any]
SHORTEST: Inputs = {"prompt": "a red ball", "resolution": 64, "num_inference_steps": 4, "seed": 1, "image": "photo"}
WALK: list[Inputs] = [
    {},
    {"conditioner_2": "tile", "conditioning_scale_2": 0.5, "negative_prompt": "grass"},
    {"conditioner_2": "tile", "image_2": "other", "control_mask_2": "mask", "control_mode": "prompt"},
    {"conditioner": "inpaint", "mask": "mask"},
    {"conditioner": "inpaint", "outpaint_right": 24},
    {"init_image": "other", "prompt_strength": 0.5, "mask": "mask"},
    {"go_fast": True},
    {"upscale": 2.0, "upscale_strength": 0.5},
    {"prompt": "a (red:1.3) ball " * 20, "clip_skip": 1, "num_outputs": 2},
    {"guidance_scale": 1.0, "scheduler": "UniPCMultistep", "return_control_map": True},
    {"reference_image": "other"},
    {"reference_image": "photo", "reference_scale": 1.0, "conditioner_2": "tile", "control_mask_2": "mask"},
    {"reference_image": "other", "reference_mode": "style", "go_fast": True},
    {"reference_image": "other", "reference_mask": "mask", "upscale": 2.0, "upscale_strength": 0.5},
    {"reference_image": "other", "conditioner": "inpaint", "mask": "mask", "guidance_scale": 1.0, "num_outputs": 2},
]


@pytest.fixture(scope="module")
def send(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., list[bytes]]:
    """send(**inputs): the files of a short request. A picture is named."""
    root = tmp_path_factory.mktemp("sdxl")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CONTROLNET_REFERENCE", "1")
        write_bundle("sdxl", root, small=True, conditioners=("canny", "tile", "inpaint"))
    photo, mask = Image.fromarray(data.astronaut()).resize((64, 64)), Image.new("L", (64, 64))
    mask.paste(255, (24, 0, 64, 64))
    pictures = {"photo": photo, "other": photo.rotate(90), "mask": mask}
    for name, picture in pictures.items():
        picture.save(root / f"{name}.png")
    settings = Settings(bundle="sdxl")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(predict, "open_bundle", lambda: open_bundle(settings, root))
        predictor = predict.Predictor()
        predictor.setup()

    def answer(**inputs: Any) -> list[bytes]:
        sent = SHORTEST | {"output_format": "png"} | inputs
        files = {name: cog.Path(root / f"{value}.png") for name, value in sent.items() if value in pictures}
        return [path.read_bytes() for path in predictor.predict(**sent | files)]

    return answer


def test_requests_in_any_order_and_after_cancelled_ones_give_the_same_bytes(send, monkeypatch) -> None:
    first = [send(**inputs) for inputs in WALK]
    assert len({files[-1] for files in first}) == len(WALK)
    drawn = random.Random(1)
    forward = torch.nn.Module.__call__
    for inputs, expected in sorted(zip(WALK, first, strict=True), key=lambda _: drawn.random()):
        left = drawn.randrange(5, 400)

        def cancelled(module: Any, *args: Any, **named: Any) -> Any:
            nonlocal left
            left -= 1
            if left == 0:
                raise KeyboardInterrupt
            return forward(module, *args, **named)

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(torch.nn.Module, "__call__", cancelled)
            send(**inputs)
        assert send(**inputs) == expected


def test_a_reference_of_scale_zero_is_none(send) -> None:
    assert send(reference_image="other", reference_scale=0.0) == send()


def test_what_the_family_lacks_is_said(send) -> None:
    with pytest.raises(RequestError, match="has no shuffle conditioner"):
        send(conditioner="shuffle")
    with pytest.raises(RequestError, match="clip_skip must be from 1"):
        send(clip_skip=12)


def test_left_out_inputs_are_those_of_the_bundle(send) -> None:
    files = send(num_inference_steps=2, clip_skip=2, guidance_scale=6.0, scheduler="K_EULER_ANCESTRAL")
    assert send(num_inference_steps=2) == files
