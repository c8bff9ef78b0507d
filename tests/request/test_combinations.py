"""Inputs that do not go together, or not with the bundle, are refused with one sentence each."""

import pytest
from support.requests import FILE, FakeBundle, asked

from controlnet.models.schedulers import SCHEDULERS, suited_schedulers
from controlnet.request.combinations import RequestError
from controlnet.weights.tables import Reference

NOBODY = '{"people": []}'

REFUSED: list[tuple[dict, str]] = [
    ({"conditioner": "inpaint"}, "inpaint conditioner needs to know what to repaint"),
    ({"conditioner_2": "inpaint"}, "inpaint conditioner needs to know what to repaint"),
    ({"conditioner": "inpaint", "mask": FILE, "init_image": FILE}, "without init_image"),
    ({"conditioner_2": "inpaint", "mask": FILE, "image_2": FILE}, "leave image_2 out"),
    ({"mask": FILE, "preprocess": False}, "send the picture to repaint as init_image"),
    ({"outpaint_left": 8, "preprocess": False}, "send the picture to repaint as init_image"),
    ({"conditioner_2": "openpose", "image_2": FILE, "pose_json": NOBODY}, "pose_json takes the place of image_2"),
    (
        {"conditioner": "openpose", "preprocess": False, "pose_json": NOBODY},
        "With preprocess off, image is a control map",
    ),
    (
        {"conditioner": "openpose", "conditioner_3": "openpose", "preprocess_3": False, "pose_json": NOBODY},
        "With preprocess_3 off, image is a control map, and pose_json is another",
    ),
    ({"control_mode": "control", "guidance_scale": 1}, "control_mode control works through guidance"),
    ({"control_mode": "unbalanced", "guidance_scale": 0.5}, "control_mode unbalanced works through guidance"),
    ({"conditioner": "ip2p"}, "The bundle in use has no ip2p conditioner. It has canny, depth"),
    ({"conditioner_3": "seg"}, "The bundle in use has no seg conditioner."),
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
    ({"upscale": 2.0, "upscale_strength": 0.2}, "An upscale_strength of 0.2 leaves none of the 4 steps to take"),
    ({"upscale": 2.0, "upscale_strength": 0.0, "num_inference_steps": 3}, "raise it to 0.34 or more"),
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
    with pytest.raises(RequestError, match=r"needs to know what to repaint.*below control_end"):
        asked(conditioner="inpaint", control_start=1.0)
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
    {"conditioner": "openpose", "conditioner_3": "openpose", "pose_json": NOBODY, "return_pose_json": True},
    {"conditioner": "openpose", "conditioner_3": "openpose", "image_3": FILE, "pose_parts": "body"},
    {"map_only": True, "return_control_map": True, "output_quality": 30},
    {"map_only": True, "mask": FILE, "conditioner_2": "inpaint", "mask_feather": 8},
    {"map_only": True, "outpaint_left": 8, "preprocess": False},
    {"mask": FILE, "mask_feather": 8},
    {"guidance_scale": 1.5, "negative_prompt": "a cat"},
    {"init_image": FILE, "prompt_strength": 0.25},
    {"upscale": 1.5, "upscale_strength": 0.25, "mask": FILE, "control_end": 0.5},
    {"reference_image": FILE, "reference_scale": 1.5, "reference_mode": "style", "reference_mask": FILE},
    {"reference_image": FILE, "guidance_scale": 1, "upscale": 2.0, "conditioner": "inpaint", "mask": FILE},
    {"init_image": FILE, "prompt_strength": 0.5, "control_end": 0.5},
]


@pytest.mark.parametrize("sent", ALLOWED, ids=lambda sent: "-".join(sent))
def test_inputs_that_go_together_pass_and_none_is_ignored(sent: dict) -> None:
    request = asked(**sent)
    assert set(sent) == set(request.sent) - {"prompt", "image"}
    assert request.ignored == ()


def test_a_bundle_without_a_tile_net_refuses_to_upscale() -> None:
    class Without(FakeBundle):
        def __init__(self) -> None:
            self.annotator_of = {"canny": "canny"}

    with pytest.raises(RequestError, match="has no tile ControlNet, which upscale needs: leave upscale out, or run"):
        asked(Without(), upscale=2.0)
    assert asked(Without(), upscale_strength=0.5).upscale == 1


def test_a_bundle_that_takes_no_reference_picture_refuses_it() -> None:
    class Without(FakeBundle):
        reference = None

    words = "takes no reference pictures, or they are switched off: leave reference_image out, or run one that takes"
    with pytest.raises(RequestError, match=words) as refusal:
        asked(Without(), reference_image=FILE, reference_mode="style")
    assert str(refusal.value).endswith("CONTROLNET_REFERENCE=1 does).") and "reference_mode" not in str(refusal.value)
    assert asked(Without()).reference_image is None
    assert asked(Without(), reference_image=FILE, map_only=True).ignored, "no picture is made"


def test_a_bundle_without_layers_for_style_refuses_that_mode() -> None:
    class Whole(FakeBundle):
        reference = Reference("ip_adapter", "image_encoder", 0.6)

    with pytest.raises(RequestError, match=r"^The bundle in use has no reference_mode style: leave it out, or run"):
        asked(Whole(), reference_image=FILE, reference_mode="style")
    assert asked(Whole(), reference_image=FILE).reference_mode == "all"


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_a_window_counts_the_samplers_own_steps(scheduler: str) -> None:
    steps = FakeBundle().unet_calls(scheduler, 10, 8)
    with pytest.raises(RequestError, match=f"covers none of the {steps} steps"):
        asked(init_image=FILE, prompt_strength=0.2, num_inference_steps=10, scheduler=scheduler, control_end=0.2)


def test_samplers_that_do_not_know_a_bundles_zero_snr_are_refused() -> None:
    class Rescaled(FakeBundle):
        schedulers = suited_schedulers({"rescale_betas_zero_snr": True})

    refused = {"HeunDiscrete", "KLMS", "PNDM"}
    assert set(SCHEDULERS) - set(Rescaled.schedulers) == refused
    for scheduler in SCHEDULERS:
        assert asked(scheduler=scheduler).scheduler == scheduler
        if scheduler not in refused:
            assert asked(Rescaled(), scheduler=scheduler).scheduler == scheduler
            continue
        words = f"to zero SNR, which the scheduler {scheduler} does not know: choose one of DDIM, DPMSolverMultistep, "
        with pytest.raises(RequestError, match=words):
            asked(Rescaled(), scheduler=scheduler)
        assert asked(Rescaled(), scheduler=scheduler, map_only=True).scheduler == "DDIM", "no sampler is used"


def test_the_container_can_forbid_unsafe_requests() -> None:
    class Forbids(FakeBundle):
        forbids_unsafe = True

    with pytest.raises(RequestError, match="disable_safety_checker is not allowed here"):
        asked(Forbids(), disable_safety_checker=True)
    asked(Forbids())
    assert asked(disable_safety_checker=True).disable_safety_checker
