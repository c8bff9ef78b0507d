"""Which inputs go together: those that would have no effect beside the others are refused with one sentence each.

Read before defaults are filled in, so that what was sent can be told from what was left out.
"""

from collections.abc import Callable, Mapping
from typing import Any

from controlnet.conditioners import INPAINT, OPENPOSE
from controlnet.generation.job import RequestError
from controlnet.maps.controls import SUFFIXES

Inputs = Mapping[str, Any]
OUTPAINT = ("outpaint_left", "outpaint_right", "outpaint_top", "outpaint_bottom")
OF_A_CONTROL = ("image", "preprocess", "conditioning_scale", "control_start", "control_end", "control_mask")
CONDITIONAL_ONLY = ("control", "unbalanced")


def check_combinations(inputs: dict[str, Any]) -> dict[str, Any]:
    """`inputs`, checked by predict()'s declarations already. Raises RequestError with a sentence for each fault."""
    faults = [fault for rule in RULES for fault in rule(inputs)]
    if faults:
        raise RequestError(" ".join(faults))
    return inputs


def repaints(inputs: Inputs) -> bool:
    """Whether a part of a picture is repainted, or painted outwards from it."""
    return inputs["mask"] is not None or any(inputs[side] for side in OUTPAINT)


def _orphans(inputs: Inputs) -> list[str]:
    faults = []
    for suffix in SUFFIXES[1:]:
        sent = [name + suffix for name in OF_A_CONTROL if inputs[name + suffix] is not None]
        if sent and inputs[f"conditioner{suffix}"] is None:
            faults.append(f"{_listed(sent)} without conditioner{suffix}: choose one, or leave {_these(sent)} out.")
    return faults


def _two_sizes(inputs: Inputs) -> list[str]:
    sent = [name for name in ("width", "height") if inputs[name] is not None]
    if sent and inputs["resolution"] is not None:
        return [f"resolution and {_listed(sent)} both set the size: send one of them."]
    return []


def _strength_of_nothing(inputs: Inputs) -> list[str]:
    if inputs["prompt_strength"] is not None and inputs["init_image"] is None and not repaints(inputs):
        return [
            "prompt_strength says how much of a picture is changed, and none is: send init_image, a mask or an "
            "outpaint margin with it, or leave prompt_strength out."
        ]
    return []


def _inpaint(inputs: Inputs) -> list[str]:
    suffixes = [suffix for suffix in SUFFIXES if inputs[f"conditioner{suffix}"] == INPAINT]
    if not suffixes:
        return []
    faults = []
    if not repaints(inputs):
        faults.append("The inpaint conditioner needs to know what to repaint: send a mask, or an outpaint margin.")
    if inputs["init_image"] is not None and "" in suffixes:
        faults.append("The inpaint conditioner repaints image itself: send that picture as image, without init_image.")
    faults += [
        f"The map of the inpaint conditioner is always made of picture and mask: leave preprocess{suffix} on."
        for suffix in suffixes
        if inputs[f"preprocess{suffix}"] is False
    ]
    faults += [
        f"The inpaint conditioner takes its map from the picture that is repainted: leave image{suffix} out."
        for suffix in suffixes[suffixes[0] == "" :]
        if inputs[f"image{suffix}"] is not None
    ]
    return faults


def _repainting_a_map(inputs: Inputs) -> list[str]:
    ready_made = not inputs["preprocess"] and inputs["conditioner"] != INPAINT
    if ready_made and repaints(inputs) and inputs["init_image"] is None:
        return ["With preprocess off, image is a control map: send the picture to repaint as init_image."]
    return []


def _mode_without_guidance(inputs: Inputs) -> list[str]:
    guidance, mode = inputs["guidance_scale"], inputs["control_mode"]
    if mode in CONDITIONAL_ONLY and guidance is not None and guidance <= 1:
        return [f"control_mode {mode} works through guidance: raise guidance_scale above 1, or choose another mode."]
    return []


def _poses(inputs: Inputs) -> list[str]:
    sent = [name for name in ("pose_json", "pose_parts", "return_pose_json") if inputs[name] not in (None, False)]
    if not sent:
        return []
    suffixes = [suffix for suffix in SUFFIXES if inputs[f"conditioner{suffix}"] == OPENPOSE]
    if not suffixes:
        return [f"For openpose alone: {_listed(sent)}. Choose that conditioner, or leave {_these(sent)} out."]
    if len(suffixes) > 1:
        return [f"{_listed(sent)} needs to know which openpose control is meant: name openpose once."]
    image, preprocess = f"image{suffixes[0]}", f"preprocess{suffixes[0]}"
    faults = []
    if inputs["pose_json"] is not None and suffixes[0] and inputs[image] is not None:
        faults.append(f"pose_json takes the place of {image}: send one of them.")
    if inputs[preprocess] is False:
        faults.append(f"{_listed(sent)} goes with preprocess: with {preprocess} off, the map is used as it is.")
    return faults


RULES: tuple[Callable[[Inputs], list[str]], ...] = (
    _orphans,
    _two_sizes,
    _strength_of_nothing,
    _inpaint,
    _repainting_a_map,
    _mode_without_guidance,
    _poses,
)


def _listed(names: list[str]) -> str:
    return " and ".join([*filter(None, [", ".join(names[:-1])]), names[-1]])


def _these(names: list[str]) -> str:
    return names[0] if len(names) == 1 else "these"
