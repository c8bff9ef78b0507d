"""Masks, initial pictures, outpainting, poses and several controls work as their descriptions say. Over HTTP."""

import json

import numpy as np
import pytest
from PIL import Image
from support.requests_to_tiny import CAT, HALF, PHOTO, SQUARE, answer, differ, made, pixels, url
from support.scenes import people_case
from support.server import Answer, Server

from controlnet.maps.annotators.skeletons import draw_skeletons

FLAT = url(Image.new("RGB", (64, 64), "grey"))


def one(server: Server, **inputs) -> np.ndarray:
    (picture,) = made(server, **inputs)
    return pixels(picture)


def openpose() -> dict:
    """Inputs for the poses in a held-out scene."""
    return {"image": url(people_case().picture), "conditioner": "openpose", "resolution": 128}


FEATHER = 4
"""The usual mask_feather: so far beyond its edge, a mask is no longer black."""


@pytest.mark.parametrize("size", [{"resolution": 72}, {"resolution": None, "width": 104, "height": 88}])
@pytest.mark.parametrize("init", [{}, {"init_image": SQUARE}])
def test_unmasked_pixels_are_kept_bit_for_bit(server: Server, size: dict, init: dict) -> None:
    """Two masks with soft rims: where both are black, both requests return the fitted picture, so the same pixels."""
    left, right = np.zeros((90, 140), np.uint8), np.zeros((90, 140), np.uint8)
    left[:, 30:60] = np.linspace(255, 0, 30).astype(np.uint8)
    right[:, 100:] = np.linspace(0, 255, 40).astype(np.uint8)
    first, second = (one(server, mask=url(Image.fromarray(mask)), **size, **init) for mask in (left, right))
    width = first.shape[1]
    between = slice(width * 70 // 140, width * 90 // 140)
    if not init:  # init_image has another shape than the mask, which is cropped with it
        assert np.array_equal(first[:, between], second[:, between])
    assert not np.array_equal(first, second)
    grown = one(server, mask=url(Image.fromarray(right)), outpaint_left=13, **size, **init)
    assert grown.shape[1] == width + 16
    kept = slice(FEATHER, width // 4)
    assert np.array_equal(grown[:, 16:][:, kept], second[:, kept])


def test_a_low_prompt_strength_stays_near_the_init_image(server: Server) -> None:
    target = np.asarray(CAT.resize((96, 64))).astype(int)
    away = [
        np.abs(one(server, init_image=PHOTO, prompt_strength=s, num_inference_steps=20) - target).mean()
        for s in (0.2, 0.6, 1.0)
    ]
    assert away[0] < away[1] < away[2], away


def test_the_inpaint_map_is_the_picture_around_the_mask(server: Server) -> None:
    asked = {"mask": HALF, "conditioner": "inpaint", "num_inference_steps": 20}
    shown, painted = (pixels(file) for file in made(server, **asked, return_control_map=True))
    assert not shown[:, :48].any() and shown[:, 48:].any()
    kept = slice(48 + FEATHER, None)
    assert np.array_equal(painted[:, kept], shown[:, kept])
    assert not np.array_equal(painted[:, 48:], shown[:, 48:])
    assert differ(made(server, **asked), made(server, **asked, conditioning_scale=0))


def test_outpainting_adds_its_margins_to_the_size(server: Server) -> None:
    made = one(server, outpaint_left=16, outpaint_top=8)
    assert made.shape == (72, 112, 3)


def test_control_maps_come_back_in_the_order_of_the_controls(server: Server) -> None:
    canny, depth, _ = made(server, conditioner_2="depth", return_control_map=True)
    assert canny == made(server, map_only=True)[0]
    assert depth == made(server, map_only=True, conditioner="depth")[0]
    assert made(server, map_only=True, conditioner_2="depth") == [canny, depth]


def test_poses_come_back_as_json_and_go_in_again(server: Server) -> None:
    asked = openpose()
    control_map, poses, picture = made(server, **asked, return_control_map=True, return_pose_json=True)
    assert json.loads(poses)["canvas_width"] == 128 and json.loads(poses)["people"]
    again = made(server, **asked, pose_json=poses.decode(), return_control_map=True)
    assert not differ(again, [control_map, picture])
    assert json.loads(made(server, **asked, map_only=True, return_pose_json=True)[1]) == json.loads(poses)


def test_return_pose_json_changes_no_other_file(server: Server) -> None:
    asked = openpose() | {"detect_resolution": 200}
    control_map, _, picture = made(server, **asked, return_control_map=True, return_pose_json=True)
    assert made(server, **asked, return_control_map=True) == [control_map, picture]


def test_the_syntax_of_other_tools_is_said_to_be_literal(server: Server) -> None:
    got = answer(server, prompt="a red house <lora:night:1> BREAK grass", negative_prompt="[fog|rain]")
    assert got.status == "succeeded", got.error
    (line,) = (line for line in got.logs.splitlines() if line.startswith("literal text: "))
    assert "<lora:night:1> (name its file in lora_weights" in line and "BREAK (" in line and "[fog|rain] (" in line
    assert "literal text" not in answer(server, prompt="a (red:1.3) house").logs
    assert "literal text" not in answer(server, prompt="a <lora:night:1>", map_only=True).logs


def test_a_size_above_that_of_training_is_said_and_upscale_named(server: Server) -> None:
    usual = {"width": 320, "height": 256, "num_inference_steps": 3}
    larger = usual | {"height": 264}
    enlarged = answer(server, **usual, upscale=1.1)
    assert enlarged.metrics["height"] == 280 and "size: " not in enlarged.logs
    (line,) = (line for line in answer(server, **larger).logs.splitlines() if line.startswith("size: "))
    assert "320×264 is above the short side of 256 that tiny was trained for" in line and "upscale" in line
    assert "size: " not in answer(server, **larger, map_only=True).logs


def test_openpose_says_how_many_people_its_map_shows(server: Server) -> None:
    people = answer(server, **openpose(), map_only=True)
    again = answer(server, **openpose(), map_only=True, return_pose_json=True)  # the map comes from the cache
    assert people.metrics["people"] == again.metrics["people"] == len(json.loads(again.files[1])["people"]) > 0
    assert "nobody" not in people.logs
    nobody = answer(server, image=FLAT, conditioner="openpose", conditioner_2="openpose", image_2=openpose()["image"])
    assert nobody.status == "succeeded" and nobody.metrics["people"] == 0 and nobody.metrics["people_2"] > 0
    assert "openpose: nobody in image, so its control map is empty\n" in nobody.logs
    sent = answer(server, conditioner_3="openpose", pose_json='{"people": []}', map_only=True)
    assert sent.metrics["people_3"] == 0 and "openpose: nobody in pose_json" in sent.logs
    ready = answer(server, **openpose(), preprocess=False, return_pose_json=True, map_only=True)
    assert len(ready.files) == 1 and "people" not in ready.metrics
    assert "people" not in answer(server, map_only=True).metrics


def test_people_beyond_the_canvas_are_not_counted(server: Server) -> None:
    def sent(*places: int, **canvas: int) -> Answer:
        joints = [{"pose_keypoints_2d": [x, 40, 1, x + 20, 90, 1, *[0] * 48]} for x in places]
        pose = json.dumps({"people": joints} | canvas)
        return answer(server, conditioner="openpose", pose_json=pose, map_only=True)

    canvas = {"canvas_width": 226, "canvas_height": 150}
    some, none = sent(100, 400, **canvas), sent(400, 500, **canvas)
    assert some.metrics["people"] == 1 and none.metrics["people"] == 0
    assert "openpose: 1 of 2 people in pose_json are beyond the canvas\n" in some.logs and "nobody" not in some.logs
    assert "2 of 2 people" in none.logs and "openpose: nobody on the canvas, so its control map is empty\n" in none.logs
    plain = sent(100, 400)  # PHOTO's size is assumed
    assert plain.files == some.files and "226×150 are assumed" in plain.logs and "assumed" not in some.logs


def test_poses_of_an_outpainted_picture_are_on_its_own_canvas(server: Server) -> None:
    asked = openpose()
    grown = made(server, **asked, outpaint_left=64, map_only=True, return_pose_json=True)
    alone = made(server, **asked, map_only=True, return_pose_json=True)
    assert grown[1] == alone[1]
    assert np.array_equal(pixels(grown[0])[:, 64:], pixels(alone[0]))


def test_pose_json_is_drawn_as_sent(server: Server) -> None:
    people = people_case().sample.people
    joints = [{"pose_keypoints_2d": [float(v) for joint in person for v in joint]} for person in people]
    pose = json.dumps({"people": joints, "canvas_width": 128, "canvas_height": 128})
    asked = {"image": PHOTO, "conditioner": "openpose", "width": 128, "height": 128, "resolution": None}
    (drawn,) = made(server, **asked, pose_json=pose, map_only=True)
    expected = draw_skeletons([[(x, y) if seen else None for x, y, seen in person] for person in people], (128, 128))
    assert np.array_equal(pixels(drawn), np.asarray(expected))


def test_a_bad_pose_json_gets_one_clear_error(server: Server) -> None:
    for sent in ("no json", '{"people": [{"pose_keypoints_2d": [1, 2]}]}', '{"people": 3}'):
        got = answer(server, conditioner="openpose", pose_json=sent)
        assert got.status == "failed" and "pose" in got.error and "Traceback" not in got.error, got.error


def test_a_conditioning_scale_of_0_equals_no_control(server: Server) -> None:
    alone = made(server)
    assert not differ(made(server, conditioner_2="depth", conditioning_scale_2=0), alone)
    assert not differ(made(server, conditioner_3="depth", conditioning_scale_3=0), alone)
