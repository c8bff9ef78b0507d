"""What fofr's multi-controlnet models have in common with their relatives: inputs that mean the same.

They may have no control at all. Ours has at least one, so theirs is then a control of scale 0, which is not run, with
an empty map.
"""

from collections.abc import Callable
from typing import Any

from cog import Path

from controlnet.log import say
from controlnet.model import Record
from controlnet.pictures.geometry import LARGEST, canvas_size
from controlnet.pictures.images import ImageError, sent_size
from controlnet.request.combinations import RequestError
from controlnet.request.request import SUFFIXES
from controlnet.weights.manifest import Manifest
from interfaces.adapter import Adapter, Named

CONDITIONERS = {
    "edge_canny": "canny",
    "depth_leres": "depth",
    "depth_midas": "depth",
    "soft_edge_pidi": "hed",
    "soft_edge_hed": "hed",
    "lineart": "lineart",
    "lineart_anime": "lineart_anime",
    "openpose": "openpose",
}
"""Our names of what a controlnet_N chooses, but for "none" and ILLUSION."""
OTHER_ANNOTATORS = ("depth_leres", "depth_midas", "soft_edge_pidi")
"""Those that name an annotator which is not here."""
ILLUSION = "illusion"
"""A ControlNet that sees the picture itself: monster-labs' QR Code Monster."""
NUMBERS = (1, 2, 3)
OF_A_CONTROL = {
    "conditioning_scale": "conditioning_scale",
    "control_start": "start",
    "control_end": "end",
    "image": "image",
}
"""For inputs of ours that a control has, what follows controlnet_N_ in theirs."""
WIDTH = 1024
"""Pixels: the width of a picture that has the shape of another one. There, its height was then a multiple of 64."""
BLANK = Path(__file__).with_name("blank.png")
"""An empty control map."""


class Fofr(Adapter):
    """Serves requests of one of them."""

    def __init__(self, record: Record, few_steps: bool = False) -> None:
        """`few_steps`: its checkpoint was made for few steps."""
        super().__init__(record)
        self.few_steps = few_steps

    def predict(self, predict: Callable[..., Any], values: dict[str, Any]) -> list[Path]:
        """Answer a request that has arrived at `predict`: its locals(), since the signature is the only list of inputs."""

        def named(inputs: dict[str, Any]) -> Named:
            for number in _controls(inputs):
                if (choice := inputs[f"controlnet_{number}"]) in OTHER_ANNOTATORS:
                    say(f"controlnet_{number}: {choice} is drawn by the bundle's annotator of {CONDITIONERS[choice]}")
            return asked(inputs, self.model.bundle.manifest, self.few_steps)

        return self.answer(
            predict,
            values,
            named,
            without_effect=lambda inputs: without_effect(inputs, self.model.bundle.manifest, self.few_steps),
        )


def asked(inputs: dict[str, Any], manifest: Manifest, few_steps: bool) -> Named:
    """Our inputs for a request of theirs. Raises RequestError or ImageError for a picture that is missing or none."""
    width, height = _size(inputs)
    names = ("prompt", "negative_prompt", "num_outputs", "num_inference_steps", "prompt_strength", "seed")
    names += ("disable_safety_checker", *(name for name in ("lora_scale", "lora_weights") if name in inputs))
    scheduler = "DPMSolverMultistepKarras" if inputs["scheduler"] == "KarrasDPM" else inputs["scheduler"]
    controls = _controls(inputs)
    named: dict[str, tuple[str | None, Any]] = {name: (name, inputs[name]) for name in names}
    named |= {
        "width": ("width", width),
        "height": ("height", height),
        "init_image": ("image", inputs["image"]),
        "mask": ("mask", inputs["mask"] if inputs["image"] else None),
        "guidance_scale": ("guidance_scale", inputs["guidance_scale"]),
        "return_control_map": (None, bool(controls)),
        "output_format": (None, "png"),
    }
    if (guidance := _fast_guidance(inputs, manifest, few_steps)) is None:
        named["scheduler"] = ("scheduler", scheduler)
    else:
        named |= {"go_fast": (None, True), "guidance_scale": ("guidance_scale", guidance)}
    for suffix, number in zip(SUFFIXES, controls, strict=False):
        name = f"controlnet_{number}"
        if inputs[f"{name}_image"] is None:
            raise RequestError(f"{name} {inputs[name]} needs a picture: send {name}_image, or leave {name} out.")
        named[f"conditioner{suffix}"] = (name, _conditioner(name, inputs[name], manifest))
        named |= {f"{ours}{suffix}": (f"{name}_{end}", inputs[f"{name}_{end}"]) for ours, end in OF_A_CONTROL.items()}
    if not controls:
        first = next(iter(manifest.conditioners))
        blank = {"image": BLANK, "conditioner": first, "preprocess": False, "conditioning_scale": 0.0}
        named |= {ours: (None, value) for ours, value in blank.items()}
    return named


def without_effect(inputs: dict[str, Any], manifest: Manifest, few_steps: bool) -> dict[str, str]:
    """Their inputs that do nothing in this request, if they are sent, each with the reason."""
    sized_by = inputs["sizing_strategy"]
    found = {"refine": "no refiner", "refine_steps": "no refiner", "apply_watermark": "no watermark"}
    if sized_by != "width_height":
        found |= dict.fromkeys(("width", "height"), f"{sized_by} sets the size")
    if inputs["image"] is None and sized_by != "mask_image":
        found["mask"] = "no image"
    if (guidance := _fast_guidance(inputs, manifest, few_steps)) is not None:
        found["scheduler"] = "few steps have one of their own"
        if guidance != inputs["guidance_scale"]:
            found["guidance_scale"] = f"few steps take {guidance:g}"
    for name in (f"controlnet_{number}" for number in NUMBERS if number not in _controls(inputs)):
        ends = [end for end in OF_A_CONTROL.values() if f"{name}_{end}" != sized_by]
        found |= {f"{name}_{end}": f"no {name}" for end in ends}
    return found


def _controls(inputs: dict[str, Any]) -> list[int]:
    """The numbers of the controls that are there."""
    return [number for number in NUMBERS if inputs[f"controlnet_{number}"] != "none"]


def _size(inputs: dict[str, Any]) -> tuple[int, int]:
    """(width, height) of the pictures. Raises RequestError or ImageError."""
    strategy = inputs["sizing_strategy"]
    if strategy == "width_height":
        return inputs["width"], inputs["height"]
    name = {"input_image": "image", "mask_image": "mask"}.get(strategy, strategy)
    if inputs[name] is None:
        raise RequestError(f"sizing_strategy {strategy} takes the size from {name}: send it, or width_height.")
    try:
        size = sent_size(inputs[name])
    except ImageError as error:
        raise ImageError(f"{name}: {error}") from None
    width, height = canvas_size(size, 0, WIDTH)
    return width, min(height, LARGEST)


def _fast_guidance(inputs: dict[str, Any], manifest: Manifest, few_steps: bool) -> float | None:
    """The guidance scale for the bundle's few steps. None if it has none, or more steps are asked for.

    Raises RequestError for fewer steps than it can do.
    """
    steps, fast = inputs["num_inference_steps"], manifest.fast
    if not few_steps or fast is None or steps > fast.steps[1]:
        return None
    if steps < fast.steps[0]:
        raise RequestError(f"num_inference_steps: expected at least {fast.steps[0]} with this bundle; got {steps}.")
    weakest, strongest = fast.guidance
    return min(max(inputs["guidance_scale"], weakest), strongest)


def _conditioner(name: str, choice: str, manifest: Manifest) -> str:
    """Our name of the conditioner that `choice` means. Raises RequestError if there can be none."""
    if choice != ILLUSION:
        return CONDITIONERS[choice]
    for conditioner, entry in manifest.conditioners.items():
        if "qr" in f"{entry.net} {manifest.part(entry.part).repo}".lower():
            return conditioner
    raise RequestError(
        f"{name} {ILLUSION} needs the ControlNet QR Code Monster, which the bundle in use does not have: choose another, "
        "or run a bundle that has it (docs/bring-your-own.md)."
    )
