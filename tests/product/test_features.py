"""Every way to start and to control, through the real server on the tiny bundle: that each input changes the picture as
it says, that left out it changes nothing, and that no two of them crash or are ignored together."""

import json

import numpy as np
import pytest
from PIL import Image
from support.requests_to_tiny import CAT, HALF, PHOTO, SQUARE, answer, differ, made, pixels, url
from support.server import Server

from controlnet.maps.annotators.skeletons import draw_skeletons
from tinyworld.cases import held_out, shows_people


def one(server: Server, **inputs) -> np.ndarray:
    (picture,) = made(server, **inputs)
    return pixels(picture)


SCENE, TRUTH = next((case.picture, case.sample.people) for case in held_out(128, shows_people))
"""A held-out scene with people, whose joints are known."""
POSE = json.dumps(
    {
        "people": [{"pose_keypoints_2d": [float(v) for joint in person for v in joint]} for person in TRUTH],
        "canvas_width": 128,
        "canvas_height": 128,
    }
)
# ---- as described


@pytest.mark.parametrize("size", [{"resolution": 72}, {"resolution": None, "width": 104, "height": 88}])
@pytest.mark.parametrize("init", [{}, {"init_image": SQUARE}])
def test_what_is_not_masked_comes_back_bit_for_bit(server: Server, size: dict, init: dict) -> None:
    """Two masks with soft rims: where both are black, both give the fitted picture, and so the same."""
    left, right = np.zeros((90, 140), np.uint8), np.zeros((90, 140), np.uint8)
    left[:, 30:60] = np.linspace(255, 0, 30).astype(np.uint8)
    right[:, 100:] = np.linspace(0, 255, 40).astype(np.uint8)
    first, second = (one(server, mask=url(Image.fromarray(mask)), **size, **init) for mask in (left, right))
    width = first.shape[1]
    between = slice(width * 70 // 140, width * 90 // 140)
    if not init:  # of another shape than the mask's, which is cropped with it
        assert np.array_equal(first[:, between], second[:, between])
    assert not np.array_equal(first, second)
    grown = one(server, mask=url(Image.fromarray(right)), outpaint_left=13, **size, **init)
    assert grown.shape[1] == width + 16
    assert np.array_equal(grown[:, 16:][:, : width // 4], second[:, : width // 4])


def test_a_low_strength_stays_near_the_picture_to_begin_with(server: Server) -> None:
    target = np.asarray(CAT.resize((96, 64))).astype(int)
    away = [
        np.abs(one(server, init_image=PHOTO, prompt_strength=s, num_inference_steps=20) - target).mean()
        for s in (0.2, 0.6, 1.0)
    ]
    assert away[0] < away[1] < away[2], away


def test_the_inpaint_conditioner_sees_what_is_around_the_hole(server: Server) -> None:
    asked = {"mask": HALF, "conditioner": "inpaint", "num_inference_steps": 20}
    shown, painted = (pixels(file) for file in made(server, **asked, return_control_map=True))
    assert not shown[:, :48].any() and shown[:, 48:].any()
    assert np.array_equal(painted[:, 48:], shown[:, 48:])
    assert differ(made(server, **asked), made(server, **asked, conditioning_scale=0))


def test_outpainting_keeps_the_picture_where_it_was(server: Server) -> None:
    made = one(server, outpaint_left=16, outpaint_top=8)
    assert made.shape == (72, 112, 3)


def test_several_maps_come_back_in_order(server: Server) -> None:
    canny, depth, _ = made(server, conditioner_2="depth", return_control_map=True)
    assert canny == made(server, map_only=True)[0]
    assert depth == made(server, map_only=True, conditioner="depth")[0]
    assert made(server, map_only=True, conditioner_2="depth") == [canny, depth]


def test_poses_come_back_as_json_and_go_in_again(server: Server) -> None:
    asked = {"image": url(SCENE), "conditioner": "openpose", "resolution": 128}
    control_map, told, picture = made(server, **asked, return_control_map=True, return_pose_json=True)
    assert json.loads(told)["canvas_width"] == 128 and json.loads(told)["people"]
    again = made(server, **asked, pose_json=told.decode(), return_control_map=True)
    assert not differ(again, [control_map, picture])
    assert json.loads(made(server, **asked, map_only=True, return_pose_json=True)[1]) == json.loads(told)


def test_asking_for_the_poses_changes_nothing_else(server: Server) -> None:
    asked = {"image": url(SCENE), "conditioner": "openpose", "resolution": 128, "detect_resolution": 200}
    control_map, _, picture = made(server, **asked, return_control_map=True, return_pose_json=True)
    assert made(server, **asked, return_control_map=True) == [control_map, picture]


def test_the_poses_of_an_outpainted_picture_are_where_it_is(server: Server) -> None:
    asked = {"image": url(SCENE), "conditioner": "openpose", "resolution": 128}
    grown = made(server, **asked, outpaint_left=64, map_only=True, return_pose_json=True)
    alone = made(server, **asked, map_only=True, return_pose_json=True)
    assert grown[1] == alone[1]
    assert np.array_equal(pixels(grown[0])[:, 64:], pixels(alone[0]))


def test_a_pose_sent_is_the_pose_drawn(server: Server) -> None:
    asked = {"image": PHOTO, "conditioner": "openpose", "width": 128, "height": 128, "resolution": None}
    (drawn,) = made(server, **asked, pose_json=POSE, map_only=True)
    expected = draw_skeletons([[(x, y) if seen else None for x, y, seen in person] for person in TRUTH], (128, 128))
    assert np.array_equal(pixels(drawn), np.asarray(expected))


def test_a_bad_pose_is_told_in_one_sentence(server: Server) -> None:
    for sent in ("no json", '{"people": [{"pose_keypoints_2d": [1, 2]}]}', '{"people": 3}'):
        got = answer(server, conditioner="openpose", pose_json=sent)
        assert got.status == "failed" and "pose" in got.error and "Traceback" not in got.error, got.error


def test_a_scale_of_zero_is_as_if_the_control_were_not_there(server: Server) -> None:
    alone = made(server)
    assert not differ(made(server, conditioner_2="depth", conditioning_scale_2=0), alone)
    assert not differ(made(server, conditioner_3="depth", conditioning_scale_3=0), alone)
