"""A request as a typed value: its fields are the inputs, its defaults are filled in, and it knows its inputs' names."""

import ast
import inspect
import re
from dataclasses import fields, replace
from itertools import pairwise
from pathlib import Path

import pytest
from support import ROOT
from support.requests import FILE, FakeBundle, asked

import predict
from controlnet.request.inputs import InputError, file_inputs
from controlnet.request.knobs import KNOBS, Knobs
from controlnet.request.loras import LORA_INPUTS, RequestedLora
from controlnet.request.pose import PoseError
from controlnet.request.request import CONTROL_INPUTS, SUFFIXES, Request, RequestedControl

OTHER = Path("other.png")
PARAMETERS = {k: v for k, v in inspect.signature(predict.Predictor.predict).parameters.items() if k != "self"}
GROUPED = {"controls", "knobs", "loras", "sent", "orphans", "ignored"}
"""Fields of Request that are not inputs."""


def test_fields_are_the_inputs_of_predict_name_for_name() -> None:
    own = {field.name for field in fields(Request)} - GROUPED
    of_controls = {name + suffix for suffix in SUFFIXES for name in CONTROL_INPUTS.values()}
    of_loras = [name for pair in LORA_INPUTS for name in pair]
    assert sorted([*own, *of_controls, *KNOBS, *of_loras]) == sorted(PARAMETERS)
    assert set(CONTROL_INPUTS) == {field.name for field in fields(RequestedControl)} - {"suffix", "has_own_image"}


def docstrings(module: str, name: str) -> dict[str, str]:
    """The docstring under each field of a dataclass. Fails if a field has none, or an annotation with Any."""
    tree = ast.parse((ROOT / f"controlnet/request/{module}.py").read_text(encoding="utf-8"))
    body = next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name).body
    found: dict[str, str] = {}
    for node, text in pairwise(body):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            assert isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant), ast.unparse(node)
            assert "Any" not in ast.unparse(node.annotation)
            found[node.target.id] = str(text.value.value)
    return found


def test_every_field_has_a_docstring_and_no_any() -> None:
    for module, dataclass in (
        ("request", Request),
        ("request", RequestedControl),
        ("knobs", Knobs),
        ("loras", RequestedLora),
    ):
        assert list(docstrings(module, dataclass.__name__)) == [field.name for field in fields(dataclass)]


def test_absent_inputs_get_the_bundles_or_declared_default() -> None:
    request = asked()
    assert (request.resolution, request.num_inference_steps, request.guidance_scale, request.scheduler) == (
        64,
        4,
        4.0,
        "DDIM",
    )
    assert (request.control_mode, request.num_outputs, request.output_format, request.width) == (
        "balanced",
        1,
        "webp",
        None,
    )
    assert request.knobs == Knobs() and request.sent == ("prompt", "image") and request.ignored == ()
    assert request.controls == (RequestedControl("canny", FILE, True, 1.0, 0.0, 1.0, None, "", has_own_image=False),)


@pytest.mark.parametrize("name", ["conditioner_2", "conditioner_3"])
def test_the_conditioner_none_means_no_control(name: str) -> None:
    one, other = asked(seed=3, **{name: "none"}), asked(seed=3)
    assert one == other and len(one.controls) == 1


def test_a_second_control_defaults_to_what_the_first_declares() -> None:
    """Not to what was sent for the first."""
    request = asked(conditioning_scale=0.3, control_end=0.5, preprocess=False, conditioner_3="depth")
    third = RequestedControl("depth", FILE, True, 1.0, 0.0, 1.0, None, "_3", has_own_image=False)
    assert request.controls[1:] == (third,)
    own = asked(conditioner_2="depth", image_2=OTHER, control_mask_2=FILE, control_start_2=0.25).controls[1]
    assert own == RequestedControl("depth", OTHER, True, 1.0, 0.25, 1.0, FILE, "_2", has_own_image=True)


def test_a_reference_picture_has_the_bundles_scale_unless_one_is_sent() -> None:
    request = asked(reference_image=OTHER, reference_mask=FILE)
    assert (request.reference_scale, request.reference_mode) == (0.75, "all")
    assert request.files == (OTHER, FILE, FILE)
    assert asked(reference_image=OTHER, reference_scale=0.5).reference_scale == 0.5


def test_files_are_those_of_every_input_that_is_a_file() -> None:
    """A request removes the files of earlier ones and keeps these."""
    sent = {name: Path(f"{name}.png") for name in file_inputs(predict.Predictor.predict)}
    assert {"image_3", "control_mask_2", "mask"} < sent.keys()
    assert {*asked(conditioner_2="depth", conditioner_3="hed", **sent).files} == {*sent.values()}


def test_a_control_knows_the_names_of_its_inputs() -> None:
    request = asked(conditioner_2="depth", image_2=OTHER, conditioner_3="hed")
    assert request.controls[1].input("image") == "image_2"
    assert [control.input("scale") for control in request.controls] == [
        "conditioning_scale", "conditioning_scale_2", "conditioning_scale_3",
    ]  # fmt: skip


def test_ranges_in_docstrings_are_those_of_the_signature() -> None:
    checked = 0
    for module, name in (("request", "Request"), ("request", "RequestedControl"), ("knobs", "Knobs")):
        for field, text in docstrings(module, name).items():
            declared = PARAMETERS.get(CONTROL_INPUTS.get(field, field))
            ranges = re.findall(r"(\d+)–(\d+(?:\.\d+)?)", text)
            if declared is not None and ranges:
                bounds = (declared.default.ge, declared.default.le)
                assert tuple(map(float, ranges[0])) == bounds, field
                checked += 1
    assert checked >= 15


def test_sent_names_the_inputs_that_differ_from_their_default() -> None:
    request = asked(conditioning_scale=1.0, seed=0, conditioner_2="depth", preprocess_2=True, num_outputs=2)
    assert request.sent == ("prompt", "image", "num_outputs", "seed", "conditioner_2", "preprocess_2")


@pytest.mark.parametrize(
    ("sent", "strength", "taken"),
    [
        ({}, 1.0, 4),
        ({"init_image": OTHER}, 0.8, 3),
        ({"mask": OTHER}, 1.0, 4),
        ({"outpaint_left": 8}, 1.0, 4),
        ({"init_image": OTHER, "mask": OTHER}, 1.0, 4),
        ({"init_image": OTHER, "prompt_strength": 0.25}, 0.25, 1),
        ({"init_image": OTHER, "prompt_strength": 1.0}, 1.0, 4),
        ({"mask": OTHER, "prompt_strength": 0.5}, 0.5, 2),
    ],
)
def test_prompt_strength_depends_on_how_the_request_begins(sent: dict, strength: float, taken: int) -> None:
    request = asked(**sent)
    assert (request.prompt_strength, request.steps_taken) == (strength, taken)
    assert request.repaints == ("mask" in sent or "outpaint_left" in sent)


def test_knobs_are_grouped_and_none_is_not_sent() -> None:
    request = asked(low_threshold=0, high_threshold=50)
    assert request.knobs == Knobs(low_threshold=0, high_threshold=50)
    assert request.knobs.sent() == {"low_threshold": 0, "high_threshold": 50}


def test_seed_0_is_a_seed() -> None:
    """rossjillian/controlnet and jagilley/controlnet-* draw another seed for 0."""
    assert asked(seed=0).seed == 0
    assert asked(seed=4294967295).seed == 4294967295


def test_a_drawn_seed_is_new_and_in_range() -> None:
    seeds = {asked().seed for _ in range(100)}
    assert len(seeds) > 95
    assert min(seeds) >= 0 and 2**31 < max(seeds) < 2**32


def test_a_request_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        asked().seed = 3  # type: ignore[misc]


def test_values_are_checked_before_combinations_and_poses() -> None:
    with pytest.raises(InputError, match="num_outputs"):
        asked(num_outputs=9, image_2=FILE)
    with pytest.raises(PoseError, match="not JSON"):
        asked(conditioner="openpose", pose_json="no json")


def test_clip_skip_defaults_to_the_bundles() -> None:
    bundle = FakeBundle()
    bundle.defaults = replace(bundle.defaults, clip_skip=2)
    assert [asked(bundle).clip_skip, asked(bundle, clip_skip=1).clip_skip, asked().clip_skip] == [2, 1, 1]
