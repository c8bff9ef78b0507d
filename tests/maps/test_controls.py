"""Each control of a request: its picture, map, strength, window and region, or what it has where nothing is said."""

from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from support.asks import asked, noise

from controlnet.conditioners import ConditionerError, KnobError
from controlnet.generation.job import Control, RequestError
from controlnet.maps.controls import (
    DEFAULTS,
    KNOBS,
    SUFFIXES,
    check_conditioners,
    check_knobs_sent,
    draw_controls,
    windows,
)
from controlnet.pictures.canvas import lay_out, start_of


def invert(picture: Image.Image) -> Image.Image:
    return Image.fromarray(255 - np.asarray(picture))


ANNOTATORS = {"canny": invert, "depth": lambda picture: picture.copy(), "inpaint": invert}


def request(**sent) -> SimpleNamespace:
    own = {name + suffix: None for suffix in SUFFIXES for name in ("conditioner", *DEFAULTS)}
    own |= dict.fromkeys((*KNOBS, "detect_resolution"))
    own |= {"pose_json": None, "pose_parts": None, "return_pose_json": False}
    return asked(**(own | {"conditioner": "canny"} | DEFAULTS | sent))


def controls(pictures: dict, **sent) -> tuple[Control, ...]:
    ask = request(**sent)
    canvas = lay_out(ask, pictures)
    return draw_controls(ask, pictures, canvas, start_of(ask, pictures, canvas), ANNOTATORS)


def test_one_control_and_what_was_said_of_it() -> None:
    (control,) = controls({"image": noise(64, 64)}, conditioning_scale=0.5, control_start=0.1, control_end=0.9)
    assert (control.conditioner, control.scale, control.start, control.end) == ("canny", 0.5, 0.1, 0.9)
    assert control.control_map == invert(noise(64, 64)) and control.region is None and control.holes is None


def test_a_second_has_its_own_of_everything_and_else_the_first_image_and_the_defaults() -> None:
    pictures = {"image": noise(64, 64), "image_2": noise(64, 64, 1), "control_mask_2": Image.new("L", (64, 64), 200)}
    own = {"conditioner_2": "depth", "conditioning_scale_2": 0.4, "control_start_2": 0.2, "control_end_2": 0.6}
    second = controls(pictures, **own)[1]
    assert (second.conditioner, second.scale, second.start, second.end) == ("depth", 0.4, 0.2, 0.6)
    assert second.control_map == pictures["image_2"]
    assert second.region is not None and second.region.getextrema() == (200, 200)
    third = controls({"image": noise(64, 64)}, conditioner_3="depth")[1]
    assert (third.scale, third.start, third.end, third.region) == (1.0, 0.0, 1.0, None)
    assert third.control_map == noise(64, 64)


def test_a_ready_made_map_is_taken_as_it_is() -> None:
    drawn = Image.fromarray(np.where(np.asarray(noise(64, 64)) > 200, 255, 0).astype(np.uint8))
    first, second = controls({"image": drawn}, preprocess=False, conditioner_2="canny", preprocess_2=False)
    assert first.control_map == second.control_map == drawn
    assert controls({"image": drawn})[0].control_map == invert(drawn)


def test_what_fill_adds_has_no_lines_and_its_depth_is_continued() -> None:
    lines, depth = controls(
        {"image": Image.new("RGB", (128, 64), "white")}, conditioner_2="depth", width=64, height=128, resize_mode="fill"
    )
    assert not np.asarray(lines.control_map)[:46].any() and not np.asarray(lines.control_map)[-46:].any()
    assert (np.asarray(depth.control_map) == 255).all()


def test_outpainting_controls_what_is_there_and_leaves_what_is_new() -> None:
    (control,) = controls({"image": noise(64, 64)}, outpaint_right=32)
    assert control.control_map.size == (96, 64) and control.region is not None
    assert not np.asarray(control.control_map)[:, 64:].any()
    region = np.asarray(control.region)
    assert (region[:, :64] == 255).all() and not region[:, 64:].any()


def test_another_image_controls_all_of_an_outpainted_canvas() -> None:
    pictures = {"image": noise(64, 64), "image_2": noise(96, 64, 1), "init_image": noise(64, 64, 2)}
    first, second = controls(pictures, outpaint_right=32, conditioner_2="depth")
    assert first.region is None and second.region is None
    assert second.control_map == pictures["image_2"]


def test_inpaints_map_is_the_picture_with_the_masks_hole() -> None:
    mask = Image.new("L", (64, 64))
    mask.paste(255, (0, 0, 32, 64))
    (control,) = controls({"image": noise(64, 64), "mask": mask}, conditioner="inpaint")
    shown = np.asarray(control.control_map)
    assert not shown[:, :32].any() and np.array_equal(shown[:, 32:], np.asarray(noise(64, 64))[:, 32:])
    assert control.holes == mask and control.region is None


def test_a_black_region_is_refused_by_name() -> None:
    with pytest.raises(RequestError, match="control_mask_2 is black everywhere"):
        controls({"image": noise(64, 64), "control_mask_2": Image.new("L", (9, 9))}, conditioner_2="depth")


def test_each_conditioner_must_be_the_bundles() -> None:
    check_conditioners(request(conditioner_3="depth"), ANNOTATORS)
    with pytest.raises(ConditionerError, match="no seg conditioner"):
        check_conditioners(request(conditioner_3="seg"), ANNOTATORS)


def test_a_knob_that_no_drawn_map_takes_is_refused() -> None:
    check_knobs_sent(request(detect_resolution=96), ANNOTATORS)
    check_knobs_sent(request(conditioner="inpaint", conditioner_2="depth", detect_resolution=96), ANNOTATORS)
    for asked_for in (
        {"low_threshold": 50},  # of an annotator that declares no such knob
        {"detect_resolution": 96, "preprocess": False},
        {"detect_resolution": 96, "conditioner": "inpaint"},
        {"mlsd_score_threshold": 0.5, "conditioner_2": "depth"},
    ):
        with pytest.raises(KnobError, match=next(iter(asked_for))):
            check_knobs_sent(request(**asked_for), ANNOTATORS)


def test_a_dark_on_white_map_is_inverted_and_what_fill_adds_is_black() -> None:
    paper = Image.new("RGB", (128, 64), "white")
    paper.paste("black", (60, 10, 68, 54))
    (control,) = controls({"image": paper}, preprocess=False, width=64, height=128, resize_mode="fill")
    drawn = np.asarray(control.control_map.convert("L"))
    assert drawn[64, 32] == 255 and not drawn[:40].any() and not drawn[-40:].any() and not drawn[64, :20].any()


def test_windows_are_told_by_the_suffix_of_their_inputs() -> None:
    assert windows(request(conditioner_3="depth", control_end_3=0.5)) == [("", 0.0, 1.0), ("_3", 0.0, 0.5)]
