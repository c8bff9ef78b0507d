"""Inputs without an effect are ignored: the request is that without them, and a reason says why."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from support.requests import FILE, asked, laid_out, noise

from controlnet.request.combinations import RequestError
from controlnet.request.request import Request

NOBODY = '{"people": []}'
INPAINT: dict[str, Any] = {"conditioner": "inpaint", "mask": FILE}
POSE: dict[str, Any] = {"conditioner": "openpose"}

IGNORED: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({}, {"image_2": FILE, "control_end_2": 0.0}, "image_2, control_end_2 (no conditioner_2)"),
    ({}, {"preprocess_3": False, "control_mask_3": FILE}, "preprocess_3, control_mask_3 (no conditioner_3)"),
    ({"conditioner_3": "depth"}, {"conditioning_scale_2": 1.0}, "conditioning_scale_2 (no conditioner_2)"),
    ({"width": 512}, {"resolution": 512}, "resolution (width sets the size)"),
    ({"width": 512, "height": 512}, {"resolution": 512}, "resolution (width and height set the size)"),
    ({}, {"prompt_strength": 0.0}, "prompt_strength (no init_image, mask or outpaint)"),
    ({}, {"mask_feather": 0}, "mask_feather (nothing is repainted)"),
    ({"init_image": FILE}, {"mask_feather": 0}, "mask_feather (nothing is repainted)"),
    ({}, {"upscale_strength": 0.0}, "upscale_strength (upscale is 1)"),
    (
        {},
        {"reference_scale": 0.0, "reference_mode": "style", "reference_mask": FILE},
        "reference_scale, reference_mode, reference_mask (no reference_image)",
    ),
    (
        {},
        {"reference_image": FILE, "reference_scale": 0.0, "reference_mode": "style", "reference_mask": FILE},
        "reference_image, reference_scale, reference_mode, reference_mask (a reference picture of scale 0 changes",
    ),
    ({"guidance_scale": 1}, {"negative_prompt": "a cat"}, "negative_prompt (no guidance with guidance_scale 1)"),
    ({"guidance_scale": 0}, {"negative_prompt": "a cat"}, "negative_prompt (no guidance with guidance_scale 0)"),
    (INPAINT, {"preprocess": False}, "preprocess (inpaint has no annotator)"),
    ({"conditioner_2": "inpaint", "mask": FILE}, {"preprocess_2": False}, "preprocess_2 (inpaint has no annotator)"),
    ({}, {"pose_parts": "all"}, "pose_parts (only for openpose)"),
    ({}, {"pose_json": "no json", "return_pose_json": True}, "pose_json, return_pose_json (only for openpose)"),
    (POSE | {"preprocess": False}, {"return_pose_json": True}, "return_pose_json (preprocess off)"),
    (POSE | {"preprocess": False}, {"pose_parts": "all"}, "pose_parts (preprocess off)"),
    ({"conditioner": "depth"}, {"low_threshold": 50}, "low_threshold (only for canny)"),
    (
        {"conditioner": "depth"},
        {"low_threshold": 200, "high_threshold": 100},
        "low_threshold, high_threshold (only for canny)",
    ),
    ({"conditioner_2": "depth"}, {"mlsd_score_threshold": 0.5}, "mlsd_score_threshold (only for mlsd)"),
    ({"preprocess": False}, {"low_threshold": 50}, "low_threshold (preprocess off)"),
    (
        {"preprocess": False, "conditioner_2": "canny", "preprocess_2": False},
        {"low_threshold": 50},
        "low_threshold (preprocess and preprocess_2 off)",
    ),
    ({}, {"shuffle_seed": 5}, "shuffle_seed (no annotator of the bundle takes it)"),
    ({"preprocess": False}, {"detect_resolution": 96}, "detect_resolution (no annotator is used)"),
    (INPAINT, {"detect_resolution": 96}, "detect_resolution (no annotator is used)"),
    (POSE | {"pose_json": NOBODY}, {"detect_resolution": 96}, "detect_resolution (no annotator is used)"),
    ({"scheduler": "KLMS"}, {"eta": 0.5}, "eta (only for DDIM or TCD)"),
    ({"output_format": "png"}, {"output_quality": 10}, "output_quality (png is lossless)"),
    (
        {"map_only": True, "conditioner_2": "depth"},
        {"clip_skip": 3, "control_start_2": 1.0, "control_mask": FILE, "mask": FILE, "num_outputs": 4},
        "num_outputs, clip_skip, control_mask, control_start_2, mask (map_only makes no pictures)",
    ),
    ({"map_only": True}, {"upscale": 2.0, "upscale_strength": 0.0}, "upscale, upscale_strength (map_only makes no"),
    (
        {"map_only": True},
        {"reference_image": FILE, "reference_scale": 0.0, "reference_mode": "style", "reference_mask": FILE},
        "reference_image, reference_scale, reference_mode, reference_mask (map_only makes no pictures)",
    ),
    ({"map_only": True, "preprocess": False}, {"mask": FILE}, "mask (map_only makes no pictures)"),
    ({"map_only": True}, {"control_mode": "control", "guidance_scale": 1.0}, "guidance_scale (map_only makes no"),
]
"""Inputs that act, inputs that do not act next to them, and what the log says of those."""


def unseeded(request: Request) -> Request:
    return replace(request, ignored=(), seed=0)


@pytest.mark.parametrize(("kept", "ignored", "said"), IGNORED, ids=[f"{'-'.join(each[1])}" for each in IGNORED])
def test_what_has_no_effect_is_ignored_with_a_reason(kept: dict, ignored: dict, said: str) -> None:
    request = asked(**kept, **ignored)
    assert {name for each in request.ignored for name in each.names} == {*ignored}
    assert said in "; ".join(map(str, request.ignored))
    assert unseeded(request) == unseeded(asked(**kept))


def test_a_knob_is_used_if_any_drawn_control_takes_it() -> None:
    request = asked(conditioner_2="depth", low_threshold=50, preprocess_2=False)
    assert request.ignored == () and request.knobs.low_threshold == 50
    assert asked(conditioner_2="canny", preprocess=False, low_threshold=50).ignored == ()
    assert asked(conditioner="depth", detect_resolution=96, conditioner_2="openpose", pose_json=NOBODY).ignored == ()


def test_thresholds_are_compared_only_if_canny_is_drawn() -> None:
    assert asked(conditioner="depth", low_threshold=200, high_threshold=100).knobs.sent() == {}
    with pytest.raises(RequestError, match="the low one below the high one"):
        asked(conditioner="depth", conditioner_2="canny", low_threshold=200, high_threshold=100)


def test_a_refusal_does_not_name_what_is_ignored() -> None:
    with pytest.raises(RequestError, match=r"^control_start must be below[^;]*raise control_end\.$"):
        asked(image_2=FILE, resolution=64, height=64, control_start=1.0)


def test_an_ignored_picture_is_not_opened(tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"not a picture")
    reference = dict.fromkeys(("reference_image", "reference_mask"), type(FILE)(broken))
    sent = dict.fromkeys(("image_2", "control_mask_2", "control_mask", "mask"), type(FILE)(broken)) | reference
    pictures: dict[str, Image.Image] = {"image": noise(64, 64)}
    request, layout = laid_out(tmp_path, pictures, map_only=True, **sent)
    assert {name for each in request.ignored for name in each.names} == {*sent}
    assert len(layout.controls) == 1 and layout.initial is layout.reference is None
    assert laid_out(tmp_path, pictures, reference_scale=0.0, **reference)[1].reference is None
