"""predict.py agrees with the registries, with the manifests, and with its own descriptions."""

import inspect
import re

import pytest
from support import ROOT

import predict
from controlnet.conditioners import CONDITIONERS
from controlnet.maps.annotators.canny import STRONGEST
from controlnet.models.schedulers import SCHEDULERS
from controlnet.pictures.geometry import LARGEST, RESIZE_MODES, SMALLEST
from controlnet.pictures.output import OUTPUT_FORMATS
from controlnet.request.modes import CONTROL_MODES, REFERENCE_MODES
from controlnet.request.pose import POSE_PARTS
from controlnet.request.reading import NO_CONDITIONER
from controlnet.request.request import INITIAL_STRENGTH, SEEDS, UPSCALE_STRENGTH
from controlnet.weights.manifest import Manifest, bundle_names

PARAMETERS = {k: v for k, v in inspect.signature(predict.Predictor.predict).parameters.items() if k != "self"}


def test_choices_equal_the_registries_they_name() -> None:
    """A choice that the code does not know would crash on the first client that makes it."""
    assert [conditioner.name for conditioner in CONDITIONERS] == predict.CONDITIONERS
    assert predict.NO_CONDITIONER == [NO_CONDITIONER]
    assert list(SCHEDULERS) == predict.SCHEDULERS
    assert list(OUTPUT_FORMATS) == predict.OUTPUT_FORMATS
    assert list(CONTROL_MODES) == predict.CONTROL_MODES
    assert list(RESIZE_MODES) == predict.RESIZE_MODES
    assert list(REFERENCE_MODES) == predict.REFERENCE_MODES
    assert list(POSE_PARTS) == predict.POSE_PARTS


def test_sd15_has_every_conditioner() -> None:
    assert set(Manifest.read(ROOT / "weights/sd15.toml").conditioners) == set(predict.CONDITIONERS)


def test_prompt_and_image_are_required_and_nothing_else() -> None:
    required = [name for name, parameter in PARAMETERS.items() if _required(parameter)]
    assert required == ["prompt", "image"]


def _required(parameter: inspect.Parameter) -> bool:
    return parameter.default.default is None and "Optional" not in str(parameter.annotation)


def test_names_and_order_of_inputs_are_final() -> None:
    of_a_control = ("conditioner", "image", "preprocess", "conditioning_scale", "control_start", "control_end")
    others = [f"{name}_{number}" for number in (2, 3) for name in (*of_a_control, "control_mask")]
    knobs = (
        "detect_resolution", "low_threshold", "high_threshold", "hed_safe", "mlsd_score_threshold",
        "mlsd_distance_threshold", "shuffle_seed", "tile_factor", "pose_parts", "pose_json",
    )  # fmt: skip
    assert list(PARAMETERS) == [
        "prompt", "image", "conditioner", "negative_prompt", "num_outputs", "seed", "resolution", "width", "height",
        "resize_mode", "guidance_scale", "num_inference_steps", "go_fast", "conditioning_scale", "preprocess",
        "map_only", "return_control_map", "return_pose_json", "lora_weights", "lora_scale", "lora_weights_2",
        "lora_scale_2", "init_image", "prompt_strength", "mask", "mask_feather",
        "outpaint_left", "outpaint_right", "outpaint_top", "outpaint_bottom", "upscale", "upscale_strength",
        "reference_image", "reference_scale", "reference_mode", "reference_mask",
        "control_start", "control_end", "control_mode", "control_mask",
        *knobs, *others, "scheduler", "eta", "clip_skip", "output_format",
        "output_quality", "disable_safety_checker",
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["resolution", "num_inference_steps", "guidance_scale", "scheduler", "control_mode"])
@pytest.mark.parametrize("bundle", bundle_names())
def test_descriptions_say_each_bundles_default(name: str, bundle: str) -> None:
    """As "512 with sd15, 256 with tiny", or as "20, with tiny 30" for a value that all others have."""
    assert_said(name, bundle, getattr(Manifest.read(ROOT / f"weights/{bundle}.toml").defaults, name))


@pytest.mark.parametrize("bundle", bundle_names())
def test_reference_scale_says_each_bundles_default(bundle: str) -> None:
    if reference := Manifest.read(ROOT / f"weights/{bundle}.toml", {}, reference=True).reference:
        assert_said("reference_scale", bundle, reference.scale)


def assert_said(name: str, bundle: str, effective: float | str) -> None:
    description = PARAMETERS[name].default.description.split("Left out: ")[1].rstrip(".")
    assert PARAMETERS[name].default.default is None
    shown = f"{effective:g}" if isinstance(effective, float) else str(effective)
    own = re.search(rf"([^ ,]+) with {bundle}\b|, with {bundle} (\S+)", description)
    said = own or re.match(r"([^ ,]+)", description)
    assert said and shown in said.groups(), description


@pytest.mark.parametrize("name", PARAMETERS)
def test_every_input_is_described_in_whole_sentences(name: str) -> None:
    description = PARAMETERS[name].default.description
    assert description[0].isalpha() and len(description) > 20 and description.endswith(".")


def test_descriptions_are_short_enough_for_a_form() -> None:
    """docs/inputs.md has the rest."""
    lengths = {name: len(description_of(name)) for name in PARAMETERS}
    assert sum(lengths.values()) / len(lengths) <= 90
    assert lengths.pop("conditioner") <= 300 and lengths.pop("control_mode") <= 220  # they say what each choice is
    assert max(lengths.values()) <= 110


@pytest.mark.parametrize(
    ("names", "bounds"),
    [
        (("resolution", "width", "height", "detect_resolution"), (SMALLEST, LARGEST)),
        (("seed", "shuffle_seed"), (0, SEEDS - 1)),
        (("low_threshold", "high_threshold"), (0, STRONGEST)),
        (("mlsd_score_threshold",), (0, 1)),
        (("mlsd_distance_threshold",), (0, 20)),
    ],
)
def test_bounds_are_those_that_the_code_works_with(names: tuple[str, ...], bounds: tuple[int, int]) -> None:
    for name in names:
        declared = PARAMETERS[name].default
        assert (declared.ge, declared.le) == bounds, name


@pytest.mark.parametrize("conditioner", predict.CONDITIONERS)
def test_the_description_says_what_each_conditioner_is(conditioner: str) -> None:
    assert re.search(rf"\b{conditioner}\b", description_of("conditioner")), "predict.py: a word in conditioner's text"


@pytest.mark.parametrize("mode", predict.CONTROL_MODES)
def test_the_description_says_what_each_control_mode_is(mode: str) -> None:
    assert re.search(rf"\b{mode}[ ,]", description_of("control_mode").split("Left out:")[0])


def test_prompt_strength_says_its_default() -> None:
    assert f"Left out: {INITIAL_STRENGTH:g}, and 1 with mask or outpaint." in description_of("prompt_strength")


def test_upscale_strength_has_the_default_of_jobs() -> None:
    assert PARAMETERS["upscale_strength"].default.default == UPSCALE_STRENGTH


def description_of(name: str) -> str:
    return PARAMETERS[name].default.description
