"""predict.py against what it must agree with: the registries, the manifests, and its own words."""

import ast
import inspect
import re

import pytest
from support import ROOT

import predict
from controlnet.conditioners import CONDITIONERS
from controlnet.generation.composite import CONTROL_MODES
from controlnet.models.schedulers import SCHEDULERS
from controlnet.pictures.geometry import RESIZE_MODES
from controlnet.pictures.output import OUTPUT_FORMATS
from controlnet.request.pose import POSE_PARTS
from controlnet.weights.manifest import Manifest

PARAMETERS = {k: v for k, v in inspect.signature(predict.Predictor.predict).parameters.items() if k != "self"}


def test_every_choice_is_known_to_what_it_dispatches_to() -> None:
    """A peer offered a name that its dispatch did not know, and crashed on it in production."""
    assert [conditioner.name for conditioner in CONDITIONERS] == predict.CONDITIONERS
    assert list(SCHEDULERS) == predict.SCHEDULERS
    assert list(OUTPUT_FORMATS) == predict.FORMATS
    assert list(CONTROL_MODES) == predict.CONTROL_MODES
    assert list(RESIZE_MODES) == predict.RESIZE_MODES
    assert list(POSE_PARTS) == predict.POSE_PARTS


def test_the_full_bundle_has_every_conditioner() -> None:
    assert set(Manifest.read(ROOT / "weights/sd15.toml").conditioners) == set(predict.CONDITIONERS)


def test_prompt_and_image_are_required_and_nothing_else() -> None:
    required = [name for name, parameter in PARAMETERS.items() if _required(parameter)]
    assert required == ["prompt", "image"]


def _required(parameter: inspect.Parameter) -> bool:
    return parameter.default.default is None and "Optional" not in str(parameter.annotation)


def test_the_important_inputs_come_first_and_names_are_final() -> None:
    of_a_control = ("conditioner", "image", "preprocess", "conditioning_scale", "control_start", "control_end")
    others = [f"{name}_{number}" for number in (2, 3) for name in (*of_a_control, "control_mask")]
    knobs = ("low_threshold", "high_threshold", "mlsd_score_threshold", "mlsd_distance_threshold", "pose_parts")
    assert list(PARAMETERS) == [
        "prompt", "image", "conditioner", "negative_prompt", "preprocess", "map_only", "conditioning_scale",
        "control_start", "control_end", "detect_resolution", *knobs, "pose_json", "control_mode", "control_mask",
        *others, "init_image", "prompt_strength", "mask", "outpaint_left", "outpaint_right", "outpaint_top",
        "outpaint_bottom", "num_outputs", "resolution", "width", "height", "resize_mode", "num_inference_steps",
        "guidance_scale", "clip_skip", "scheduler", "seed", "return_control_map", "return_pose_json", "output_format",
        "output_quality", "disable_safety_checker",
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["resolution", "num_inference_steps", "guidance_scale", "scheduler", "control_mode"])
@pytest.mark.parametrize("bundle", ["sd15", "tiny"])
def test_what_depends_on_the_bundle_says_its_default(name: str, bundle: str) -> None:
    effective = getattr(Manifest.read(ROOT / f"weights/{bundle}.toml").defaults, name)
    told = PARAMETERS[name].default.description.split("Left out:")[1]
    assert PARAMETERS[name].default.default is None
    shown = f"{effective:g}" if isinstance(effective, float) else str(effective)
    assert re.search(rf"\b{re.escape(shown)}( with {bundle}|\.$)", told), told


@pytest.mark.parametrize("name", PARAMETERS)
def test_every_input_is_described_in_whole_sentences(name: str) -> None:
    description = PARAMETERS[name].default.description
    assert len(description) > 40 and description.endswith(".")


def test_predict_reads_like_a_table_of_contents() -> None:
    """No loop, no branch but the map-only return, no try, no with but for timing: the logic lives in controlnet/."""
    tree = ast.parse((ROOT / "predict.py").read_text(encoding="utf-8"))
    body = next(node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == "_answer").body
    assert sum(isinstance(node, ast.If) for node in body) == 1
    assert not any(isinstance(node, ast.For | ast.While | ast.Try) for node in body)
    blocks = [ast.unparse(item.context_expr) for node in body if isinstance(node, ast.With) for item in node.items]
    assert all(block.startswith("timed(") for block in blocks), blocks
