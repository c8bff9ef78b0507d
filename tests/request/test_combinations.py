"""Inputs that do not go together, or not with the bundle, are refused with one sentence each."""

import pytest
from support.asks import FILE, FakeBundle, asked

from controlnet.models.schedulers import SCHEDULERS
from controlnet.request.combinations import FORBID_UNSAFE, RULES, Note, Refusal, RequestError

NOBODY = '{"people": []}'

REFUSED: list[tuple[dict, str]] = [
    ({"image_2": FILE}, "image_2 without conditioner_2: choose one, or leave image_2 out."),
    ({"control_end_3": 0.5, "preprocess_3": False}, "preprocess_3 and control_end_3 without conditioner_3"),
    ({"conditioning_scale_2": 1.0}, "conditioning_scale_2 without conditioner_2"),
    ({"control_mask_2": FILE}, "control_mask_2 without conditioner_2"),
    ({"resolution": 512, "width": 512}, "resolution and width both set the size"),
    ({"resolution": 512, "width": 512, "height": 512}, "resolution and width and height both set the size"),
    ({"prompt_strength": 0.5}, "prompt_strength says how much of an initial picture is changed, and there is none"),
    ({"conditioner": "inpaint"}, "inpaint conditioner needs to know what to repaint"),
    ({"conditioner_2": "inpaint"}, "inpaint conditioner needs to know what to repaint"),
    ({"conditioner": "inpaint", "mask": FILE, "init_image": FILE}, "without init_image"),
    ({"conditioner_2": "inpaint", "mask": FILE, "image_2": FILE}, "leave image_2 out"),
    ({"conditioner": "inpaint", "mask": FILE, "preprocess": False}, "leave preprocess on"),
    ({"conditioner_2": "inpaint", "mask": FILE, "preprocess_2": False}, "leave preprocess_2 on"),
    ({"mask": FILE, "preprocess": False}, "send the picture to repaint as init_image"),
    ({"outpaint_left": 8, "preprocess": False}, "send the picture to repaint as init_image"),
    ({"pose_parts": "all"}, "Only for openpose: pose_parts."),
    ({"return_pose_json": True, "pose_json": NOBODY}, "Only for openpose: pose_json and return_pose_json."),
    ({"conditioner": "openpose", "conditioner_3": "openpose", "pose_json": NOBODY}, "use openpose once"),
    ({"conditioner_2": "openpose", "image_2": FILE, "pose_json": NOBODY}, "pose_json takes the place of image_2"),
    ({"conditioner": "openpose", "preprocess": False, "return_pose_json": True}, "with preprocess off"),
    ({"control_mode": "control", "guidance_scale": 1}, "control_mode control works through guidance"),
    ({"control_mode": "unbalanced", "guidance_scale": 0.5}, "control_mode unbalanced works through guidance"),
    ({"conditioner": "ip2p"}, "The bundle in use has no ip2p conditioner. It has canny, depth"),
    ({"conditioner_3": "seg"}, "The bundle in use has no seg conditioner."),
    ({"conditioner": "depth", "low_threshold": 50}, "depth takes no low_threshold: leave it out, or choose canny."),
    ({"mlsd_score_threshold": 0.5, "conditioner_2": "depth"}, "canny takes no mlsd_score_threshold"),
    (
        {"low_threshold": 50, "preprocess": False},
        "low_threshold sets how a control map is drawn, but preprocess is off: leave low_threshold out",
    ),
    ({"detect_resolution": 96, "preprocess": False}, "leave detect_resolution out, or turn preprocess on."),
    (
        {"detect_resolution": 96, "conditioner": "inpaint", "mask": FILE},
        "the picture itself: leave detect_resolution",
    ),
    (
        {"low_threshold": 200},
        "low_threshold 200 and high_threshold 200: expected numbers from 0",
    ),
    ({"high_threshold": 100}, r"(left out, they are 100 and 200)"),
    (
        {"conditioner": "openpose", "pose_parts": "all"},
        "people's bodies and no hands or face: leave pose_parts",
    ),
    ({"control_start": 0.5, "control_end": 0.5}, "control_start must be below control_end: got 0.5 and 0.5."),
    ({"control_start": 1.0}, "control_start must be below control_end"),
    (
        {"conditioner_3": "depth", "control_start_3": 0.7, "control_end_3": 0.2},
        "Lower control_start_3 or raise",
    ),
    ({"control_end": 0.2}, "Control from 0 to 0.2 covers none of the 4 steps: widen control_start and control_end or"),
    ({"conditioner_3": "depth", "control_end_3": 0.1}, "widen control_start_3 and control_end_3 or raise"),
    ({"init_image": FILE, "prompt_strength": 0.1}, "prompt_strength of 0.1 leaves none of the 4 steps"),
    ({"init_image": FILE, "prompt_strength": 0.1, "num_inference_steps": 3}, "raise prompt_strength to 0.34 or more"),
    ({"clip_skip": 3}, "clip_skip is too high."),
    ({"init_image": FILE, "prompt_strength": 0.5, "control_end": 0.4}, "covers none of the 2 steps"),
]


@pytest.mark.parametrize(("sent", "sentence"), REFUSED, ids=lambda value: value if isinstance(value, str) else None)
def test_inputs_that_do_not_go_together_are_refused(sent: dict, sentence: str) -> None:
    with pytest.raises(RequestError) as refusal:
        asked(**sent)
    assert sentence in str(refusal.value)
    assert str(refusal.value).endswith(".")


def test_all_refusals_come_at_once_and_each_once() -> None:
    with pytest.raises(RequestError, match=r"image_2 without conditioner_2.*both set the size.*below control_end"):
        asked(image_2=FILE, resolution=64, height=64, control_start=1.0)
    with pytest.raises(RequestError) as refusal:
        asked(conditioner="seg", conditioner_2="seg", control_start=0.25)
    assert str(refusal.value).count("no seg conditioner") == 1


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
    {"conditioner": "openpose", "pose_json": NOBODY, "pose_parts": "all", "return_pose_json": True},
    {"conditioner_2": "openpose", "image_2": FILE, "pose_parts": "body"},
    {"detect_resolution": 96, "conditioner": "inpaint", "mask": FILE, "conditioner_2": "depth"},
    {"low_threshold": 50, "conditioner": "depth", "conditioner_2": "canny"},
    {"low_threshold": 199},
    {"control_end": 0.25},
    {"clip_skip": 3, "map_only": True},
    {"init_image": FILE, "prompt_strength": 0.25},
    {"init_image": FILE, "prompt_strength": 0.5, "control_end": 0.5},
]


@pytest.mark.parametrize("sent", ALLOWED, ids=lambda sent: "-".join(sent))
def test_inputs_that_go_together_pass_with_no_note(sent: dict) -> None:
    ask = asked(**sent)
    assert set(sent) == set(ask.sent) - {"prompt", "image"}
    assert ask.notes == ()


def test_a_note_does_not_end_the_request(monkeypatch: pytest.MonkeyPatch) -> None:
    def rule(ask, bundle):
        yield Note("seed has no effect.")

    monkeypatch.setattr("controlnet.request.combinations.RULES", (*RULES, rule))
    assert asked().notes == ("seed has no effect.",)
    monkeypatch.setattr("controlnet.request.combinations.RULES", (rule, lambda ask, bundle: [Refusal("No.")]))
    with pytest.raises(RequestError, match=r"^No\.$"):
        asked()


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_a_window_counts_the_samplers_own_steps(scheduler: str) -> None:
    steps = FakeBundle().steps(scheduler, 10, 8)
    with pytest.raises(RequestError, match=f"covers none of the {steps} steps"):
        asked(init_image=FILE, prompt_strength=0.2, num_inference_steps=10, scheduler=scheduler, control_end=0.2)


@pytest.mark.parametrize("value", ["1", "true", "yes", "ture"])
def test_the_container_can_forbid_unsafe_requests(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv(FORBID_UNSAFE, value)
    with pytest.raises(RequestError, match="disable_safety_checker is not allowed here"):
        asked(disable_safety_checker=True)
    asked()


@pytest.mark.parametrize("value", ["", "0", "false"])
def test_the_container_can_allow_unsafe_requests(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv(FORBID_UNSAFE, value)
    assert asked(disable_safety_checker=True).disable_safety_checker
