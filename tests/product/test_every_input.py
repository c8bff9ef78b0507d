"""Every input of predict() acts, and no request leaves a trace on the next one: over HTTP, on the tiny bundle."""

import inspect
import json
from typing import Any

import pytest
from PIL import Image
from support import ROOT
from support.requests_to_tiny import HALF, MIRRORED, NIGHT, OTHER, PHOTO, differ, made, url
from support.server import Server

import predict

SKELETON = [
    *((0.5, 0.15), (0.5, 0.25), (0.4, 0.25), (0.35, 0.4), (0.3, 0.55), (0.6, 0.25), (0.65, 0.4), (0.7, 0.55)),
    *((0.45, 0.55), (0.45, 0.75), (0.45, 0.95), (0.55, 0.55), (0.55, 0.75), (0.55, 0.95)),
    *((0.48, 0.13), (0.52, 0.13), (0.46, 0.14), (0.54, 0.14)),
]
"""OpenPose's 18 joints of a person who faces the camera, as shares of the canvas."""
HAND = [(0.1 + 0.03 * finger, 0.9 - 0.1 * joint) for finger in range(7) for joint in range(3)]
POSE = json.dumps(
    {
        "people": [
            {
                key: [value for joint in joints for value in (*joint, 1)]
                for key, joints in (("pose_keypoints_2d", SKELETON), ("hand_right_keypoints_2d", HAND))
            }
        ]
    }
)
THINGS = url(Image.open(ROOT / "examples/things.png"))

Inputs = dict[str, Any]
"""None removes an input that these tests otherwise send."""
ALONE: list[Inputs] = [
    {"prompt": "a blue box in a green room"},
    {"prompt": "a (red:1.5) ball on grass under a blue sky"},
    {"image": MIRRORED},
    {"conditioner": "scribble"},
    {"negative_prompt": "a green room"},
    {"preprocess": False},
    {"map_only": True},
    {"conditioning_scale": 0.5},
    {"conditioning_scale": 0},
    {"control_start": 0.4},
    {"control_end": 0.6},
    {"detect_resolution": 256},
    {"low_threshold": 10},
    {"high_threshold": 120},
    {"upscale": 2.0},
    {"control_mode": "balanced"},
    {"control_mode": "prompt"},
    {"control_mode": "control"},
    {"control_mask": HALF},
    {"conditioner_2": "depth"},
    {"conditioner_3": "depth"},
    {"init_image": PHOTO},
    {"mask": HALF},
    {"outpaint_left": 16},
    {"outpaint_right": 16},
    {"outpaint_top": 16},
    {"outpaint_bottom": 16},
    {"num_outputs": 2},
    {"resolution": 72},
    {"num_inference_steps": 5},
    {"guidance_scale": 9},
    {"guidance_scale": 1},
    {"clip_skip": 2},
    {"go_fast": True},
    {"lora_weights": NIGHT},
    {"lora_weights_2": NIGHT},
    {"reference_image": OTHER},
    {"scheduler": "K_EULER_ANCESTRAL"},
    {"seed": 2},
    {"return_control_map": True},
    {"output_format": "jpg"},
]
WITH_ANOTHER: list[tuple[Inputs, Inputs]] = [
    *[
        ({f"conditioner_{number}": "depth"}, {f"{name}_{number}": value})
        for number in (2, 3)
        for name, value in {
            "image": OTHER,
            "preprocess": False,
            "conditioning_scale": 0.3,
            "control_start": 0.5,
            "control_end": 0.5,
            "control_mask": HALF,
        }.items()
    ],
    ({"scheduler": "DDIM"}, {"eta": 0.5}),
    ({"lora_weights": NIGHT}, {"lora_scale": 0.5}),
    ({"lora_weights_2": NIGHT}, {"lora_scale_2": -1.0}),
    ({"conditioner": "openpose"}, {"pose_json": POSE}),
    ({"conditioner": "openpose"}, {"return_pose_json": True}),
    ({"conditioner": "openpose", "pose_json": POSE}, {"pose_parts": "body"}),
    ({"conditioner": "hed"}, {"hed_safe": False}),
    ({"conditioner": "tile"}, {"tile_factor": 8.0}),
    ({"mask": HALF}, {"mask_feather": 0}),
    ({"conditioner": "mlsd"}, {"mlsd_score_threshold": 0.1}),
    ({"conditioner": "mlsd", "image": THINGS}, {"mlsd_distance_threshold": 20.0}),
    ({"upscale": 1.5}, {"upscale_strength": 0.75}),
    ({"reference_image": OTHER}, {"reference_scale": 0.4}),
    ({"reference_image": OTHER}, {"reference_mask": HALF}),
    ({"init_image": PHOTO}, {"prompt_strength": 0.5}),
    ({"mask": HALF}, {"prompt_strength": 0.5}),
    ({"resolution": None, "width": 64, "height": 64}, {"resize_mode": "fill"}),
    ({"resolution": None, "width": 64, "height": 64}, {"resize_mode": "stretch"}),
    ({"resolution": None, "width": 64}, {"height": 80}),
    ({"resolution": None, "height": 64}, {"width": 80}),
    ({"output_format": "jpg"}, {"output_quality": 10}),
]
"""Inputs that need another one: the inputs of both requests, and the input that only the second request has."""
CASES = [({}, changed) for changed in ALONE] + WITH_ANOTHER
UNSEEN = {
    "disable_safety_checker": "tiny has no safety checker; the walk in test_combinations.py sends it",
    "reference_mode": "tiny has no layers for style; tests/product/test_sdxl.py sends it",
    "shuffle_seed": "tiny has no shuffle; tests/maps/annotators/test_pictures.py draws with it",
}


@pytest.fixture(scope="module")
def first_answers() -> dict[str, list[bytes]]:
    """What each request without the changed input returned when it was sent first."""
    return {}


def _case_id(value: Inputs) -> str:
    return "-".join(f"{k}={v}" if len(str(v)) < 20 else k for k, v in value.items()) or "alone"


@pytest.mark.parametrize(("base", "changed"), CASES, ids=_case_id)
def test_each_input_acts_and_leaves_no_trace(
    server: Server, first_answers: dict[str, list[bytes]], base: Inputs, changed: Inputs
) -> None:
    """Other projects dropped strength, start and end by a typo, or passed a resize factor as the guidance scale."""
    key = json.dumps(base)
    if key not in first_answers:
        first_answers[key] = made(server, **base)
    before = first_answers[key]
    assert differ(made(server, **base | changed), before)
    assert made(server, **base) == before


def test_no_input_of_predict_is_missing_above() -> None:
    declared = inspect.signature(predict.Predictor.predict).parameters.keys() - {"self"}
    assert all(len(changed) == 1 for _, changed in CASES), "which of the two acted?"
    assert declared - UNSEEN.keys() == {name for _, changed in CASES for name in changed}
