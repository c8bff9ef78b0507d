"""Which inputs go together, and with which bundle. Each rule looks at the whole request and reports its faults.

Every rule runs before any picture is opened. A rule yields Refusals, which end the request, and Notes, which do not.
"""

import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from controlnet.conditioners import CONDITIONERS
from controlnet.request.bundle_facts import BundleFacts
from controlnet.request.modes import CONTROL_MODES

if TYPE_CHECKING:  # ask.py runs the rules, and so imports this module
    from controlnet.request.ask import Ask, AskedControl

FORBID_UNSAFE = "CONTROLNET_FORBID_UNSAFE"
"""Environment variable of the container: if it is 1, no request may skip the safety checker."""
POSE_INPUTS = ("pose_json", "pose_parts", "return_pose_json")
"""Inputs that only have a meaning for a conditioner whose maps are made of poses."""


class RequestError(ValueError):
    """Inputs that are each allowed but do not go together, or not with this bundle; the message says what to change."""


@dataclass(frozen=True)
class Refusal:
    """A sentence that says why the request cannot be served, and what to change."""

    text: str


@dataclass(frozen=True)
class Note:
    """A sentence about an input that the request can be served without."""

    text: str


Rule = Callable[["Ask", BundleFacts], Iterator[Refusal | Note]]


def check_combinations(ask: "Ask", bundle: BundleFacts) -> tuple[str, ...]:
    """The notes of all rules. Raises RequestError with one sentence for each refusal."""
    findings = [finding for rule in RULES for finding in rule(ask, bundle)]
    if refusals := [finding.text for finding in findings if isinstance(finding, Refusal)]:
        raise RequestError(" ".join(dict.fromkeys(refusals)))
    return tuple(finding.text for finding in findings)


def _controls_without_conditioner(ask: "Ask", bundle: BundleFacts) -> Iterator[Refusal]:
    for missing, sent in ask.orphans:
        yield Refusal(f"{_listed(sent)} without {missing}: choose one, or leave {_these(sent)} out.")


def _conditioners(ask: "Ask", bundle: BundleFacts) -> Iterator[Refusal]:
    for control in ask.controls:
        if control.conditioner not in bundle.conditioners:
            yield Refusal(
                f"The bundle in use has no {control.conditioner} conditioner. It has {', '.join(bundle.conditioners)}: "
                "choose one of these, or run a bundle that has it (CONTROLNET_BUNDLE=sd15 has all)."
            )


def _sizes(ask: "Ask", bundle: BundleFacts) -> Iterator[Refusal]:
    sides = [name for name in ("width", "height") if name in ask.sent]
    if sides and "resolution" in ask.sent:
        yield Refusal(f"resolution and {_listed(sides)} both set the size: send one of them.")


def _strength_without_picture(ask: "Ask", bundle: BundleFacts) -> Iterator[Refusal]:
    if "prompt_strength" in ask.sent and ask.init_image is None and not ask.repaints:
        yield Refusal(
            "prompt_strength says how much of an initial picture is changed, and there is none: send init_image, a "
            "mask or an outpaint margin with it, or leave prompt_strength out."
        )


def _maps_with_holes(ask: "Ask", bundle: BundleFacts) -> Iterator[Refusal]:
    """A map with holes shows the initial picture, so it needs a part to repaint and takes no other picture."""
    for control in (control for control in ask.controls if control.made_of == "holes"):
        conditioner, preprocess = f"The {control.conditioner} conditioner", control.input("preprocess")
        if not ask.repaints:
            yield Refusal(f"{conditioner} needs to know what to repaint: send a mask, or an outpaint margin.")
        if control.suffix == "" and ask.init_image is not None:
            yield Refusal(f"{conditioner} repaints image itself: send that picture as image, without init_image.")
        if not control.preprocess:
            yield Refusal(f"{conditioner} always makes its map from picture and mask: leave {preprocess} on.")
        if control.has_own_image:
            name = control.input("image")
            yield Refusal(f"{conditioner} takes its map from the picture that is repainted: leave {name} out.")


def _repainting_a_map(ask: "Ask", bundle: BundleFacts) -> Iterator[Refusal]:
    first = ask.controls[0]
    ready_made = not first.preprocess and first.made_of != "holes"
    if ready_made and ask.repaints and ask.init_image is None:
        yield Refusal("With preprocess off, image is a control map: send the picture to repaint as init_image.")


def _mode_without_guidance(ask: "Ask", bundle: BundleFacts) -> Iterator[Refusal]:
    both_sent = {"guidance_scale", "control_mode"} <= {*ask.sent}
    if both_sent and CONTROL_MODES[ask.control_mode].conditional_only and ask.guidance_scale <= 1:
        yield Refusal(
            f"control_mode {ask.control_mode} works through guidance: raise guidance_scale above 1, or choose another "
            "mode."
        )


def _poses(ask: "Ask", bundle: BundleFacts) -> Iterator[Refusal]:
    sent = [name for name in POSE_INPUTS if name in ask.sent]
    if not sent:
        return
    posed = [control for control in ask.controls if control.made_of == "poses"]
    names = " or ".join(conditioner.name for conditioner in CONDITIONERS if conditioner.made_of == "poses")
    if not posed:
        yield Refusal(f"Only for {names}: {_listed(sent)}. Choose that conditioner, or leave {_these(sent)} out.")
    elif len(posed) > 1:
        yield Refusal(f"{_listed(sent)} must apply to one control only: use {names} once.")
    else:
        yield from _poses_of(ask, posed[0], sent)


def _poses_of(ask: "Ask", control: "AskedControl", sent: Sequence[str]) -> Iterator[Refusal]:
    image, preprocess = control.input("image"), control.input("preprocess")
    if ask.pose_json is not None and control.has_own_image:
        yield Refusal(f"pose_json takes the place of {image}: send one of them.")
    if not control.preprocess:
        yield Refusal(f"{_listed(sent)} cannot be used with {preprocess} off, when the map is used as it is.")


def _knobs(ask: "Ask", bundle: BundleFacts) -> Iterator[Refusal]:
    """A knob must apply to a map that is drawn."""
    served = [control for control in ask.controls if control.conditioner in bundle.conditioners]
    if not served:
        return
    # The inputs for poses are checked by _poses.
    for knob in (name for name in ask.knobs.sent() if name not in POSE_INPUTS):
        if not any(knob in bundle.knobs(control.conditioner) for control in served if control.drawn):
            yield Refusal(_useless_knob(knob, served[0], bundle))
    if ask.detect_resolution is not None and not any(control.drawn for control in served):
        yield Refusal(_useless_knob("detect_resolution", served[0], bundle))


def _useless_knob(knob: str, control: "AskedControl", bundle: BundleFacts) -> str:
    if not control.preprocess:
        preprocess = control.input("preprocess")
        return (
            f"{knob} sets how a control map is drawn, but {preprocess} is off: leave {knob} out, or turn "
            f"{preprocess} on."
        )
    if control.made_of == "holes":
        return f"The map of the {control.conditioner} conditioner is the picture itself: leave {knob} out."
    if takers := [name for name in bundle.conditioners if knob in bundle.knobs(name)]:
        choice = " or ".join(takers)
        return f"The conditioner {control.conditioner} takes no {knob}: leave it out, or choose {choice}."
    return f"No conditioner of the bundle in use takes {knob}: leave it out."


def _knob_values(ask: "Ask", bundle: BundleFacts) -> Iterator[Refusal]:
    """Knobs within their ranges may still contradict each other, or ask for more than the annotator can do."""
    sent = ask.knobs.sent()
    for control in ask.controls:
        if not ask.annotates(control) or control.conditioner not in bundle.conditioners:
            continue
        taken = {name: value for name, value in sent.items() if name in bundle.knobs(control.conditioner)}
        if fault := bundle.knob_fault(control.conditioner, taken):
            yield Refusal(fault)


def _prompts(ask: "Ask", bundle: BundleFacts) -> Iterator[Refusal]:
    """The prompts are only used if pictures are made."""
    if not ask.map_only and (fault := bundle.prompt_fault((ask.prompt, ask.negative_prompt), ask.clip_skip)):
        yield Refusal(fault)


def _steps(ask: "Ask", bundle: BundleFacts) -> Iterator[Refusal]:
    """The initial picture must leave a step to take, and each control's window must cover one."""
    for control in ask.controls:
        start, end = control.input("start"), control.input("end")
        if not control.start < control.end:
            yield Refusal(
                f"{start} must be below {end}: got {control.start:g} and {control.end:g}. Lower {start} or raise {end}."
            )
    if ask.steps_taken == 0:
        yield Refusal(
            f"A prompt_strength of {ask.prompt_strength:g} leaves none of the {ask.num_inference_steps} steps to take: "
            f"raise prompt_strength to {math.ceil(100 / ask.num_inference_steps) / 100:g} or more, or raise "
            "num_inference_steps."
        )
        return
    steps = bundle.steps(ask.scheduler, ask.num_inference_steps, ask.num_inference_steps - ask.steps_taken)
    for control in ask.controls:
        if control.start < control.end and not _covers_a_step(control, steps):
            yield Refusal(
                f"Control from {control.start:g} to {control.end:g} covers none of the {steps} steps: widen "
                f"{control.input('start')} and {control.input('end')} or raise num_inference_steps."
            )


def _covers_a_step(control: "AskedControl", steps: int) -> bool:
    """As diffusers decides whether a ControlNet runs at step i."""
    return any(i / steps >= control.start and (i + 1) / steps <= control.end for i in range(steps))


def _safety(ask: "Ask", bundle: BundleFacts) -> Iterator[Refusal]:
    # Every value but an explicit "no" forbids it, so a typing error cannot switch the checker off.
    forbidden = os.environ.get(FORBID_UNSAFE, "").lower() not in ("", "0", "false", "no")
    if ask.disable_safety_checker and forbidden:
        yield Refusal("disable_safety_checker is not allowed here: leave it out or send false.")


RULES: tuple[Rule, ...] = (
    _controls_without_conditioner,
    _conditioners,
    _sizes,
    _strength_without_picture,
    _maps_with_holes,
    _repainting_a_map,
    _mode_without_guidance,
    _poses,
    _knobs,
    _knob_values,
    _prompts,
    _steps,
    _safety,
)


def _listed(names: Sequence[str]) -> str:
    return " and ".join([*filter(None, [", ".join(names[:-1])]), names[-1]])


def _these(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else "these"
