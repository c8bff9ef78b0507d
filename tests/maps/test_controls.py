"""Each control of a request: its control map, strength, window and region, and its defaults."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.requests import laid_out, noise

from controlnet.maps.annotators import ANNOTATORS as KINDS
from controlnet.maps.annotators import LoadedAnnotator
from controlnet.maps.annotators.skeletons import PoseAnnotator, draw_poses
from controlnet.maps.controls import Control, draw_controls
from controlnet.request.pose import Pose, poses_to_json


def invert(picture: Image.Image) -> Image.Image:
    return Image.fromarray(255 - np.asarray(picture))


ANNOTATORS = {"canny": invert, "depth": lambda picture: picture.copy(), "inpaint": invert, "openpose": invert}


def controls(folder: Path, pictures: dict[str, Image.Image], **sent) -> tuple[Control, ...]:
    request, layout = laid_out(folder, pictures, **sent)
    return draw_controls(request, layout, ANNOTATORS)


def test_one_control_has_what_was_sent(tmp_path: Path) -> None:
    image = {"image": noise(64, 64)}
    (control,) = controls(tmp_path, image, conditioning_scale=0.5, control_start=0.25, control_end=0.75)
    assert (control.conditioner, control.scale, control.start, control.end) == ("canny", 0.5, 0.25, 0.75)
    assert control.control_map == invert(noise(64, 64)) and control.region is None and control.holes is None


def test_a_second_control_has_its_own_inputs_or_the_defaults(tmp_path: Path) -> None:
    pictures = {"image": noise(64, 64), "image_2": noise(64, 64, 1), "control_mask_2": Image.new("L", (64, 64), 200)}
    own = {"conditioner_2": "depth", "conditioning_scale_2": 0.4, "control_start_2": 0.25, "control_end_2": 0.75}
    second = controls(tmp_path, pictures, **own)[1]
    assert (second.conditioner, second.scale, second.start, second.end) == ("depth", 0.4, 0.25, 0.75)
    assert second.control_map == pictures["image_2"]
    assert second.region is not None and second.region.getextrema() == (200, 200)
    third = controls(tmp_path, {"image": noise(64, 64)}, conditioner_3="depth")[1]
    assert (third.scale, third.start, third.end, third.region) == (1.0, 0.0, 1.0, None)
    assert third.control_map == noise(64, 64)


def test_preprocess_off_uses_the_map_as_it_is(tmp_path: Path) -> None:
    drawn = Image.fromarray(np.where(np.asarray(noise(64, 64)) > 200, 255, 0).astype(np.uint8))
    sent = {"preprocess": False, "conditioner_2": "canny", "preprocess_2": False}
    first, second = controls(tmp_path, {"image": drawn}, **sent)
    assert first.control_map == second.control_map == drawn
    assert controls(tmp_path, {"image": drawn})[0].control_map == invert(drawn)


def test_fill_adds_no_lines_but_continues_depth(tmp_path: Path) -> None:
    white = {"image": Image.new("RGB", (128, 64), "white")}
    lines, depth = controls(tmp_path, white, conditioner_2="depth", width=64, height=128, resize_mode="fill")
    assert not np.asarray(lines.control_map)[:46].any() and not np.asarray(lines.control_map)[-46:].any()
    assert (np.asarray(depth.control_map) == 255).all()


def test_a_net_with_wide_skeletons_gets_them_of_found_and_of_sent_people(tmp_path: Path) -> None:
    """At a short side of 512 limbs are 4 pixels wide on both sides of their middle, and 8 for twice the width."""
    body = Pose(tuple((100.0 + 300 * (i % 2), 50.0 + 20 * i) for i in range(18)))
    image, size = {"image": Image.new("RGB", (512, 512))}, (512, 512)
    sent = {"conditioner": "openpose", "resolution": 512}
    maps = {}
    for width in (1.0, 2.0):
        wide = LoadedAnnotator(KINDS["openpose"], PoseAnnotator(lambda picture: [body]), width)
        request, layout = laid_out(tmp_path, image, **sent)
        (found,) = draw_controls(request, layout, ANNOTATORS | {"openpose": wide})
        request, layout = laid_out(tmp_path, image, **sent, pose_json=poses_to_json([body], size))
        (given,) = draw_controls(request, layout, ANNOTATORS | {"openpose": wide})
        assert found.control_map.tobytes() == given.control_map.tobytes()
        assert found.control_map.tobytes() == draw_poses([body], size, line_width=width).tobytes()
        maps[width] = np.asarray(found.control_map).any(axis=2)
    assert maps[2.0].sum() > 1.7 * maps[1.0].sum() and (maps[2.0] >= maps[1.0]).all()


@pytest.mark.parametrize(("mode", "lit"), [("fill", range(48, 80)), ("crop", range(128)), ("stretch", range(128))])
def test_lines_in_margins_that_fill_added_are_left_out(tmp_path: Path, mode: str, lit: range) -> None:
    """An annotator sees lines where the picture's edges were continued. Other modes add no margins."""
    request, layout = laid_out(tmp_path, {"image": noise(128, 64)}, width=64, height=128, resize_mode=mode)
    lines = {"canny": lambda picture: Image.new("RGB", picture.size, "white")}
    (control,) = draw_controls(request, layout, lines)
    drawn = np.asarray(control.control_map)[..., 0]
    assert [y for y in range(128) if drawn[y].any()] == [*lit] and drawn[lit].all()


def test_outpainting_leaves_the_margins_uncontrolled(tmp_path: Path) -> None:
    (control,) = controls(tmp_path, {"image": noise(64, 64)}, outpaint_right=32)
    assert control.control_map.size == (96, 64) and control.region is not None
    assert not np.asarray(control.control_map)[:, 64:].any()
    region = np.asarray(control.region)
    assert (region[:, :64] == 255).all() and not region[:, 64:].any()


def test_another_image_controls_the_whole_outpainted_canvas(tmp_path: Path) -> None:
    pictures = {"image": noise(64, 64), "image_2": noise(96, 64, 1), "init_image": noise(64, 64, 2)}
    first, second = controls(tmp_path, pictures, outpaint_right=32, conditioner_2="depth")
    assert first.region is None and second.region is None
    assert second.control_map == pictures["image_2"]


def test_inpaints_map_is_the_picture_with_the_masks_holes(tmp_path: Path) -> None:
    mask = Image.new("L", (64, 64))
    mask.paste(255, (0, 0, 32, 64))
    (control,) = controls(tmp_path, {"image": noise(64, 64), "mask": mask}, conditioner="inpaint")
    shown = np.asarray(control.control_map)
    assert not shown[:, :32].any() and np.array_equal(shown[:, 32:], np.asarray(noise(64, 64))[:, 32:])
    assert control.holes == mask and control.region is None


POSE = '{"people": [{"pose_keypoints_2d": [0.5, 0.25, 1, 0.5, 0.75, 1' + ", 0" * 48 + "]}]}"


def test_the_poses_are_returned_if_the_request_asks_for_them(tmp_path: Path) -> None:
    sent = {"conditioner": "openpose", "pose_json": POSE}
    (silent,) = controls(tmp_path, {"image": noise(64, 64)}, **sent)
    (control,) = controls(tmp_path, {"image": noise(64, 64)}, **sent, return_pose_json=True)
    assert silent.pose_json is None and silent.people == control.people == 1
    assert control.pose_json and json.loads(control.pose_json)["people"][0]["pose_keypoints_2d"][:3] == [32, 16, 1]


def person(x: float, y: float, part: str = "pose_keypoints_2d", joints: int = 18) -> dict[str, list[float]]:
    """One joint at x and y, in pixels."""
    return {part: [x, y, 1, *[0.0] * 3 * (joints - 1)]}


HAND = ("hand_left_keypoints_2d", 21)


@pytest.mark.parametrize(
    ("people", "parts", "counted", "outside"),
    [
        ([person(300, 300), person(-40, 300), {}], "all", 1, 1),
        ([person(600, 300), person(300, 600)], "all", 0, 2),
        ([person(-2, 300), person(514, 300)], "all", 2, 0),  # half of each dot lies on the canvas
        ([person(300, 300, *HAND)], "all", 1, 0),
        ([person(300, 300, *HAND), person(600, 300, *HAND)], None, 1, 1),  # left out, all that is sent is drawn
        ([person(300, 300, *HAND), person(600, 300, *HAND)], "body", 0, 0),  # hands are not drawn
        ([{"pose_keypoints_2d": [-9, 300, 1, 600, 300, 1, *[0.0] * 48]}], "all", 1, 0),  # a limb across the canvas
        ([{}], "all", 0, 0),
    ],
)
def test_a_person_counts_of_whom_something_lies_on_the_canvas(
    tmp_path: Path, people: list, parts: str | None, counted: int, outside: int
) -> None:
    poses = json.dumps({"people": people, "canvas_width": 512, "canvas_height": 512})
    sent = {"conditioner": "openpose", "pose_json": poses, "pose_parts": parts, "resolution": 512}
    (control,) = controls(tmp_path, {"image": noise(64, 64)}, **sent)
    assert (control.people, control.outside) == (counted, outside)
    assert np.asarray(control.control_map).any() == bool(counted)


def test_a_dark_on_white_map_is_inverted_and_filled_with_black(tmp_path: Path) -> None:
    paper = Image.new("RGB", (128, 64), "white")
    paper.paste("black", (60, 10, 68, 54))
    sent = {"preprocess": False, "width": 64, "height": 128, "resize_mode": "fill"}
    (control,) = controls(tmp_path, {"image": paper}, **sent)
    drawn = np.asarray(control.control_map.convert("L"))
    assert drawn[64, 32] == 255 and not drawn[:40].any() and not drawn[-40:].any() and not drawn[64, :20].any()
