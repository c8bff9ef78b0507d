"""Which inputs go together, and with which bundle. Each rule looks at the whole request and reports its faults.

A request is refused only if its inputs contradict each other, if the result would not be what they say, or if the
bundle cannot serve it. Inputs that merely have no effect are left out before (controlnet/request/ignored.py). Every
rule runs before any picture is opened.
"""

import math
from collections.abc import Callable, Iterator

from controlnet.conditioners import ENLARGING
from controlnet.request.bundle_facts import BundleFacts
from controlnet.request.modes import CONTROL_MODES, STYLE
from controlnet.request.request import Request, RequestedControl

DISTILLED, DISTILLED_STEPS = ("LCM", "TCD"), 50
"""Samplers for models that were distilled to few steps, and of how many steps theirs are a choice in diffusers."""


class RequestError(ValueError):
    """Inputs that are each allowed but do not go together, or not with this bundle; the message says what to change."""


Rule = Callable[[Request, BundleFacts], Iterator[str]]
"""rule(request, bundle): sentences that say why the request cannot be served, and what to change."""


def check_combinations(request: Request, bundle: BundleFacts) -> None:
    """Raise RequestError with the sentences of all rules, if there are any. Each is said once."""
    if refusals := [sentence for rule in RULES for sentence in rule(request, bundle)]:
        raise RequestError(" ".join(dict.fromkeys(refusals)))


def _conditioners(request: Request, bundle: BundleFacts) -> Iterator[str]:
    """A control that the bundle has no ControlNet for cannot be served, and the picture would lack it."""
    for control in request.controls:
        if control.conditioner not in bundle.conditioners:
            yield (
                f"The bundle in use has no {control.conditioner} conditioner. It has {', '.join(bundle.conditioners)}: "
                "choose one of these, or run a bundle that has it (CONTROLNET_BUNDLE=sd15 has all)."
            )


def _maps_with_holes(request: Request, bundle: BundleFacts) -> Iterator[str]:
    """A map with holes shows the initial picture, and the holes are what is repainted.

    Without a part to repaint there is nothing to do. A second picture contradicts the first: each would be the one that
    is repainted, and one of them would be in no picture.
    """
    for control in (control for control in request.controls if control.made_of == "holes"):
        conditioner = f"The {control.conditioner} conditioner"
        if not request.repaints:
            yield f"{conditioner} needs to know what to repaint: send a mask, or an outpaint margin."
        if control.suffix == "" and request.init_image is not None:
            yield f"{conditioner} repaints image itself: send that picture as image, without init_image."
        if control.has_own_image:
            name = control.input("image")
            yield f"{conditioner} takes its map from the picture that is repainted: leave {name} out."


def _repainting_a_map(request: Request, bundle: BundleFacts) -> Iterator[str]:
    """image cannot be both a control map and a picture to repaint. The result would show parts of the map."""
    first = request.controls[0]
    ready_made = not first.preprocess and first.made_of != "holes"
    if ready_made and request.repaints and request.init_image is None and not request.map_only:
        yield "With preprocess off, image is a control map: send the picture to repaint as init_image."


def _mode_without_guidance(request: Request, bundle: BundleFacts) -> Iterator[str]:
    """control and unbalanced amplify the map by guidance. Without it "control" acts as "prompt", its opposite.

    A bundle's default mode is no contradiction, because nobody asked for it.
    """
    chosen = "control_mode" in request.sent and ("guidance_scale" in request.sent or request.go_fast)
    if chosen and CONTROL_MODES[request.control_mode].conditional_only and request.guidance_scale <= 1:
        yield (
            f"control_mode {request.control_mode} works through guidance: raise guidance_scale above 1, or choose "
            "another mode."
        )


def _poses(request: Request, bundle: BundleFacts) -> Iterator[str]:
    """A pose_json is the whole map of a control, so a picture or map that is sent for the same control contradicts it.

    The first control's image does not: it has to be sent, and it sets the size.
    """
    for control in (
        control for control in request.controls if control.made_of == "poses" and request.pose_json is not None
    ):
        preprocess = control.input("preprocess")
        if control.has_own_image:
            yield f"pose_json takes the place of {control.input('image')}: send one of them."
        elif not control.preprocess:
            yield f"With {preprocess} off, image is a control map, and pose_json is another: use one of them."


def _knob_values(request: Request, bundle: BundleFacts) -> Iterator[str]:
    """Knobs within their ranges may still contradict each other, or ask for more than the annotator can do.

    Either would give a map without what was asked for, such as people without hands, or OpenCV would change the values.
    """
    sent = request.knobs.sent()
    for control in request.controls:
        if not request.annotates(control) or control.conditioner not in bundle.conditioners:
            continue
        taken = {name: value for name, value in sent.items() if name in bundle.knobs(control.conditioner)}
        if fault := bundle.knob_fault(control.conditioner, taken):
            yield fault


def _prompts(request: Request, bundle: BundleFacts) -> Iterator[str]:
    """The bundle may have fewer layers than clip_skip, or too little room for a prompt. Part of it would be dropped.

    The prompts are only used if pictures are made.
    """
    if not request.map_only and (
        fault := bundle.prompt_fault((request.prompt, request.negative_prompt), request.clip_skip)
    ):
        yield fault


def _steps(request: Request, bundle: BundleFacts) -> Iterator[str]:
    """The initial picture must leave a step to take, and each control's window must cover one.

    Otherwise the result would be the initial picture, or a picture without a control that was asked for.
    """
    for control in request.controls:
        start, end = control.input("start"), control.input("end")
        if not control.start < control.end:
            yield (
                f"{start} must be below {end}: got {control.start:g} and {control.end:g}. Lower {start} or raise {end}."
            )
    if request.steps_taken == 0:
        wanted = request.num_inference_steps
        yield (
            f"A prompt_strength of {request.prompt_strength:g} leaves none of the {wanted} steps to take: raise "
            f"prompt_strength to {math.ceil(100 / wanted) / 100:g} or more, or raise num_inference_steps."
        )
        return
    if _is_too_many(request):
        return
    steps = bundle.unet_calls(
        request.scheduler, request.num_inference_steps, request.num_inference_steps - request.steps_taken
    )
    for control in request.controls:
        if control.start < control.end and not _covers_a_step(control, steps):
            yield (
                f"Control from {control.start:g} to {control.end:g} covers none of the {steps} steps: widen "
                f"{control.input('start')} and {control.input('end')} or raise num_inference_steps."
            )


def _fast(request: Request, bundle: BundleFacts) -> Iterator[str]:
    """Few steps need the sampler, the number of steps and the guidance that the bundle's LoRA was made for.

    With others the picture would be noise or burnt out.
    """
    if not request.go_fast:
        return
    if bundle.fast is None:
        yield "The bundle in use has no go_fast: leave it out, or lower num_inference_steps."
        return
    (fewest, most), (weakest, strongest) = bundle.fast.steps, bundle.fast.guidance
    if not fewest <= request.num_inference_steps <= most:
        yield (
            f"go_fast takes {fewest} to {most} steps: got {request.num_inference_steps}. Leave num_inference_steps out "
            f"for {bundle.fast.num_inference_steps}, or leave go_fast out."
        )
    if not weakest <= request.guidance_scale <= strongest:
        yield (
            f"go_fast takes a guidance_scale of {weakest:g} to {strongest:g}: got {request.guidance_scale:g}. Leave it "
            f"out for {bundle.fast.guidance_scale:g}, or leave go_fast out."
        )
    if request.scheduler != bundle.fast.scheduler:
        yield f"go_fast works with the scheduler {bundle.fast.scheduler} alone: got {request.scheduler}. Leave it out."


def _sampler(request: Request, bundle: BundleFacts) -> Iterator[str]:
    """The base's noise may reach a level that a sampler does not know. The picture would be washed out, or noise.

    LCM and TCD choose their steps among those that they were distilled for.
    """
    if request.scheduler not in bundle.schedulers:
        yield (
            f"The bundle in use was trained to zero SNR, which the scheduler {request.scheduler} does not know: choose "
            f"one of {', '.join(bundle.schedulers)}."
        )
    if _is_too_many(request) and not request.go_fast:
        yield (
            f"The scheduler {request.scheduler} takes at most {DISTILLED_STEPS} steps: got "
            f"{request.num_inference_steps}. It is meant for 2 to 8, with a LoRA that is made for it."
        )


def _is_too_many(request: Request) -> bool:
    return request.scheduler in DISTILLED and request.num_inference_steps > DISTILLED_STEPS


def _covers_a_step(control: RequestedControl, steps: int) -> bool:
    """As diffusers decides whether a ControlNet runs at step i."""
    return any(i / steps >= control.start and (i + 1) / steps <= control.end for i in range(steps))


def _upscale(request: Request, bundle: BundleFacts) -> Iterator[str]:
    """The second pass needs its ControlNet and a step to take. Otherwise the picture would merely be enlarged."""
    if request.upscale == 1:
        return
    if ENLARGING not in bundle.conditioners:
        yield (
            f"The bundle in use has no {ENLARGING} ControlNet, which upscale needs: leave upscale out, or run a bundle "
            "that has it (CONTROLNET_BUNDLE=sd15 does)."
        )
    steps = request.num_inference_steps
    if int(steps * request.upscale_strength) == 0:
        yield (
            f"An upscale_strength of {request.upscale_strength:g} leaves none of the {steps} steps to take: raise it "
            f"to {math.ceil(100 / steps) / 100:g} or more, raise num_inference_steps, or leave upscale out."
        )


def _reference(request: Request, bundle: BundleFacts) -> Iterator[str]:
    """Without the adapter the picture would not act, and without layers for its style all of it would."""
    if request.reference_image is None:
        return
    if bundle.reference is None:
        yield (
            "The bundle in use takes no reference pictures, or they are switched off: leave reference_image out, or "
            "run one that takes them (CONTROLNET_BUNDLE=sd15 with CONTROLNET_REFERENCE=1 does)."
        )
    elif request.reference_mode == STYLE and not bundle.reference.style:
        yield (
            f"The bundle in use has no reference_mode {STYLE}: leave it out, or run a bundle that has it "
            "(CONTROLNET_BUNDLE=sd15 with CONTROLNET_REFERENCE=1 does)."
        )


def _safety(request: Request, bundle: BundleFacts) -> Iterator[str]:
    """Whoever runs the container decides. The request would be served with a checker that it asks to skip."""
    if request.disable_safety_checker and bundle.forbids_unsafe:
        yield "disable_safety_checker is not allowed here: leave it out or send false."


RULES: tuple[Rule, ...] = (
    _conditioners,
    _fast,
    _sampler,
    _maps_with_holes,
    _repainting_a_map,
    _mode_without_guidance,
    _poses,
    _knob_values,
    _prompts,
    _steps,
    _upscale,
    _reference,
    _safety,
)
