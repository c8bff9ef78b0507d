"""Each interface has the inputs of the original: names, types, choices, defaults and bounds.

The originals are those of docs/moving.md: rossjillian's published schema, jagilley's public code and clients, and the
public code of fofr and lucataco.
"""

from typing import Any

import pytest
from support import ROOT

from controlnet.serving.schema import schema_of
from controlnet.serving.server import interfaces_in

Fields = dict[str, dict[str, Any]]

NEGATIVE = (
    "ongbody, lowres, bad anatomy, bad hands, missing fingers, extra digit, fewer digits, cropped, worst quality, "
    "low quality"
)
PICTURE = {"type": "string", "format": "uri"}
SEED = {"type": "integer", "nullable": True}
"""Not as there, where it is an integer without a default: today's Cog would make it required."""
SCALE = {"type": "number", "default": 9, "minimum": 0.1, "maximum": 30}
ETA = {"type": "number", "default": 0}
THRESHOLDS: Fields = {
    "low_threshold": {"type": "integer", "default": 100, "minimum": 1, "maximum": 255},
    "high_threshold": {"type": "integer", "default": 200, "minimum": 1, "maximum": 255},
}
DETECT: Fields = {"detect_resolution": {"type": "integer", "default": 512, "minimum": 128, "maximum": 1024}}
HOUGH: Fields = {
    "value_threshold": {"type": "number", "default": 0.1, "minimum": 0.01, "maximum": 2},
    "distance_threshold": {"type": "number", "default": 0.1, "minimum": 0.01, "maximum": 20},
}
BACKGROUND: Fields = {"bg_threshold": {"type": "number", "default": 0, "minimum": 0, "maximum": 1}}


def text(default: str | None = None, choices: list[str] | None = None) -> dict[str, Any]:
    given: dict[str, Any] = {"type": "string", "default": default, "enum": choices}
    return {key: value for key, value in given.items() if value is not None}


def jagilley(*own: Fields, picture: str = "image") -> Fields:
    common: Fields = {
        picture: PICTURE,
        "prompt": text(),
        "num_samples": text("1", ["1", "4"]),
        "image_resolution": text("512", ["256", "512", "768"]),
        "ddim_steps": {"type": "integer", "default": 20},
        "scale": SCALE,
        "seed": SEED,
        "eta": ETA,
        "a_prompt": text("best quality, extremely detailed"),
        "n_prompt": text(f"l{NEGATIVE}"),
    }
    for fields in own:
        common |= fields
    return common


ROSSJILLIAN: Fields = {
    "image": PICTURE,
    "prompt": text(),
    "structure": text(choices=["canny", "depth", "hed", "hough", "normal", "pose", "scribble", "seg"]),
    "num_outputs": {"type": "integer", "default": 1, "minimum": 1, "maximum": 4},
    "image_resolution": {"type": "integer", "default": 512, "enum": [256, 512, 768]},
    "scheduler": text(
        "DDIM",
        [
            "DDIM",
            "DPMSolverMultistep",
            "HeunDiscrete",
            "K_EULER_ANCESTRAL",
            "K_EULER",
            "KLMS",
            "PNDM",
            "UniPCMultistep",
        ],
    ),
    "steps": {"type": "integer", "default": 20},
    "scale": SCALE,
    "seed": SEED,
    "eta": ETA,
    "negative_prompt": text(f"L{NEGATIVE}"),
    **THRESHOLDS,
    "return_reference_image": {"type": "boolean", "default": False},
}


def fofr(
    prompt: str, negative: str = "", side: int = 768, steps: int = 30, guidance: float = 7.5, lora: bool = True
) -> Fields:
    share, picture = {"type": "number", "minimum": 0, "maximum": 1}, PICTURE | {"nullable": True}
    kinds = ["edge_canny", "illusion", "depth_leres", "depth_midas", "soft_edge_pidi", "soft_edge_hed"]
    kinds = ["none", *kinds, "lineart", "lineart_anime", "openpose"]
    sizes = ["width_height", "input_image"] + [f"controlnet_{number}_image" for number in (1, 2, 3)] + ["mask_image"]
    samplers = ["DDIM", "DPMSolverMultistep", "HeunDiscrete", "KarrasDPM", "K_EULER_ANCESTRAL", "K_EULER", "PNDM"]
    own = {"lora_scale": share | {"default": 0.6}, "lora_weights": text() | {"nullable": True}} if lora else {}
    fields: Fields = {
        "prompt": text(prompt),
        "negative_prompt": text(negative),
        "image": picture,
        "mask": picture,
        "width": {"type": "integer", "default": side},
        "height": {"type": "integer", "default": side},
        "sizing_strategy": text("width_height", sizes),
        "num_outputs": {"type": "integer", "default": 1, "minimum": 1, "maximum": 4},
        "scheduler": text("K_EULER", samplers),
        "num_inference_steps": {"type": "integer", "default": steps, "minimum": 1, "maximum": 500},
        "guidance_scale": {"type": "number", "default": guidance, "minimum": min(1, int(guidance)), "maximum": 50},
        "prompt_strength": share | {"default": 0.8},
        "seed": SEED,
        "refine": text("no_refiner", ["no_refiner", "base_image_refiner"]),
        "refine_steps": SEED,
        "apply_watermark": {"type": "boolean", "default": True},
        **own,
        "disable_safety_checker": {"type": "boolean", "default": False},
    }
    for name in (f"controlnet_{number}" for number in (1, 2, 3)):
        fields |= {
            name: text("none", kinds),
            f"{name}_image": picture,
            f"{name}_conditioning_scale": {"type": "number", "default": 0.75, "minimum": 0, "maximum": 4},
            f"{name}_start": share | {"default": 0},
            f"{name}_end": share | {"default": 1},
        }
    return fields


LUCATACO: Fields = {
    "image": PICTURE,
    "prompt": text("aerial view, a futuristic research complex in a bright foggy jungle, hard lighting"),
    "negative_prompt": text("low quality, bad quality, sketches"),
    "num_inference_steps": {"type": "integer", "default": 50, "minimum": 1, "maximum": 500},
    "condition_scale": {"type": "number", "default": 0.5, "minimum": 0, "maximum": 1},
    "seed": {"type": "integer", "default": 0},
}
RIDER = "An astronaut riding a rainbow unicorn"
ORIGINALS = {
    "fofr-sdxl": fofr(RIDER),
    "fofr-lcm": fofr(RIDER, steps=4, guidance=1.1),
    "fofr-lightning": fofr(
        "A monkey making latte art", "worst quality, low quality", side=1024, steps=4, guidance=0, lora=False
    ),
    "lucataco": LUCATACO,
    "rossjillian": ROSSJILLIAN,
    "jagilley-canny": jagilley(THRESHOLDS),
    "jagilley-hed": jagilley(DETECT, picture="input_image"),
    "jagilley-hough": jagilley(DETECT, HOUGH),
    "jagilley-depth2img": jagilley(DETECT),
    "jagilley-normal": jagilley(DETECT, BACKGROUND),
    "jagilley-pose": jagilley(DETECT, THRESHOLDS),
    "jagilley-scribble": jagilley(),
    "jagilley-seg": jagilley(DETECT),
}


def test_every_original_has_its_interface() -> None:
    assert interfaces_in(ROOT).keys() == ORIGINALS.keys()


@pytest.mark.parametrize("name", ORIGINALS)
def test_the_inputs_are_those_of_the_original(name: str) -> None:
    schemas = schema_of(ROOT, interfaces_in(ROOT)[name])["components"]["schemas"]
    fields: Fields = {}
    for field, properties in schemas["Input"]["properties"].items():
        properties = {key: value for key, value in properties.items() if value is not None}
        for reference in properties.pop("allOf", []):
            enum = schemas[reference["$ref"].split("/")[-1]]
            properties |= {"type": enum["type"], "enum": enum["enum"]}
        for ours in ("title", "description", "x-order"):
            properties.pop(ours, None)
        fields[field] = properties
    assert fields == ORIGINALS[name]
    required = {field for field, properties in ORIGINALS[name].items() if not {"default", "nullable"} & {*properties}}
    assert set(schemas["Input"].get("required", ())) == required
    output = PICTURE if name == "lucataco" else {"items": PICTURE, "type": "array"}
    assert schemas["Output"] == output | {"title": "Output"}
