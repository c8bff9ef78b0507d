"""What is refused because it would do nothing beside the rest: each with one sentence that names the inputs."""

import inspect

import pytest

import predict
from controlnet.generation.job import RequestError
from controlnet.request.combinations import check_combinations
from controlnet.request.inputs import check_inputs

FILE = predict.Path("picture.png")


def checked(**sent) -> dict:
    return check_combinations(check_inputs(predict.Predictor.predict, {"prompt": "x", "image": FILE} | sent))


REFUSED: list[tuple[dict, str]] = [
    ({"image_2": FILE}, "image_2 without conditioner_2: choose one, or leave image_2 out."),
    ({"control_end_3": 0.5, "preprocess_3": False}, "preprocess_3 and control_end_3 without conditioner_3"),
    ({"conditioning_scale_2": 1.0}, "conditioning_scale_2 without conditioner_2"),
    ({"control_mask_2": FILE}, "control_mask_2 without conditioner_2"),
    ({"resolution": 512, "width": 512}, "resolution and width both set the size"),
    ({"resolution": 512, "width": 512, "height": 512}, "resolution and width and height both set the size"),
    ({"prompt_strength": 0.5}, "prompt_strength says how much of a picture is changed, and none is"),
    ({"conditioner": "inpaint"}, "inpaint conditioner needs to know what to repaint"),
    ({"conditioner_2": "inpaint"}, "inpaint conditioner needs to know what to repaint"),
    ({"conditioner": "inpaint", "mask": FILE, "init_image": FILE}, "without init_image"),
    ({"conditioner_2": "inpaint", "mask": FILE, "image_2": FILE}, "leave image_2 out"),
    ({"conditioner": "inpaint", "mask": FILE, "preprocess": False}, "leave preprocess on"),
    ({"conditioner_2": "inpaint", "mask": FILE, "preprocess_2": False}, "leave preprocess_2 on"),
    ({"mask": FILE, "preprocess": False}, "send the picture to repaint as init_image"),
    ({"outpaint_left": 8, "preprocess": False}, "send the picture to repaint as init_image"),
    ({"pose_parts": "all"}, "For openpose alone: pose_parts."),
    ({"return_pose_json": True, "pose_json": "{}"}, "For openpose alone: pose_json and return_pose_json."),
    ({"conditioner": "openpose", "conditioner_3": "openpose", "pose_json": "{}"}, "name openpose once"),
    ({"conditioner_2": "openpose", "image_2": FILE, "pose_json": "{}"}, "pose_json takes the place of image_2"),
    ({"conditioner": "openpose", "preprocess": False, "return_pose_json": True}, "with preprocess off"),
    ({"control_mode": "control", "guidance_scale": 1}, "control_mode control works through guidance"),
    ({"control_mode": "unbalanced", "guidance_scale": 0.5}, "control_mode unbalanced works through guidance"),
]


@pytest.mark.parametrize(("sent", "told"), REFUSED, ids=lambda value: value if isinstance(value, str) else None)
def test_what_would_do_nothing_is_refused(sent: dict, told: str) -> None:
    with pytest.raises(RequestError) as refusal:
        checked(**sent)
    assert told in str(refusal.value)
    assert str(refusal.value).endswith(".")


def test_all_faults_are_told_at_once() -> None:
    with pytest.raises(RequestError, match=r"image_2 without conditioner_2.*both set the size"):
        checked(image_2=FILE, resolution=64, height=64)


ALLOWED: list[dict] = [
    {},
    {"conditioner_2": "depth", "image_2": FILE, "control_end_2": 0.5},
    {"conditioner_3": "depth"},
    {"width": 64},
    {"width": 64, "height": 128},
    {"init_image": FILE, "prompt_strength": 0.5},
    {"mask": FILE, "prompt_strength": 0.5},
    {"outpaint_top": 8, "prompt_strength": 0.5},
    {"conditioner": "inpaint", "mask": FILE},
    {"conditioner_2": "inpaint", "mask": FILE, "init_image": FILE},
    {"mask": FILE, "init_image": FILE, "preprocess": False},
    {"control_mode": "prompt", "guidance_scale": 1},
    {"control_mode": "control"},
    {"conditioner": "openpose", "pose_json": "{}", "pose_parts": "all", "return_pose_json": True},
    {"conditioner_2": "openpose", "image_2": FILE, "pose_parts": "body"},
]


@pytest.mark.parametrize("sent", ALLOWED, ids=lambda sent: "-".join(sent))
def test_what_goes_together_passes_unchanged(sent: dict) -> None:
    inputs = checked(**sent)
    assert {name: inputs[name] for name in sent} == sent
    assert set(inputs) == set(inspect.signature(predict.Predictor.predict).parameters) - {"self"}
