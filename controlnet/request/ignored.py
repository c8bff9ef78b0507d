"""Inputs that have no effect in a request. They are left out before it is served, as if they had not been sent.

A form sends the values that people left in its fields, so these are no reason to refuse. An input is ignored only if
nothing depends on it, and nothing does: its value is not checked against others, and its file is not opened.
"""

from collections.abc import Callable, Iterator, Sequence

from controlnet.conditioners import CONDITIONERS
from controlnet.request.bundle_facts import BundleFacts
from controlnet.request.request import Ignored, Request, RequestedControl

USUAL_ETA = {"DDIM": 0.0, "TCD": 0.3}
"""The schedulers for which eta acts, those whose step() takes it, and its value if a request leaves it out."""
REFERENCE = ("reference_image", "reference_scale", "reference_mode", "reference_mask")
"""The inputs of a reference picture, itself first."""
Rule = Callable[[Request, BundleFacts], Iterator[Ignored]]


def find_ignored(request: Request, bundle: BundleFacts) -> tuple[Ignored, ...]:
    """The inputs that the request sends and that have no effect in it, by reason. Each is named once."""
    left, found = {*request.sent}, dict[str, list[str]]()
    for candidates in (each for rule in RULES for each in rule(request, bundle)):
        names = [name for name in candidates.names if name in left]
        left -= {*names}
        if names:
            found.setdefault(candidates.reason, []).extend(names)
    return tuple(Ignored(tuple(names), reason) for reason, names in found.items())


# Each rule yields inputs that would have no effect, sent or not.


def _absent_controls(request: Request, bundle: BundleFacts) -> Iterator[Ignored]:
    for missing, names in request.orphans:
        yield Ignored(names, f"no {missing}")


def _size(request: Request, bundle: BundleFacts) -> Iterator[Ignored]:
    """width and height are more exact than resolution, so they win."""
    if sides := [name for name in ("width", "height") if name in request.sent]:
        yield Ignored(("resolution",), f"{' and '.join(sides)} {'sets' if len(sides) == 1 else 'set'} the size")


def _map_only(request: Request, bundle: BundleFacts) -> Iterator[Ignored]:
    """What only acts when pictures are made. disable_safety_checker is not here: a refusal of it has no exception."""
    if not request.map_only:
        return
    names = [
        *("negative_prompt", "control_mode", "prompt_strength", "num_outputs", "num_inference_steps"),
        *("guidance_scale", "clip_skip", "scheduler", "eta", "seed", "go_fast"),
        *("lora_weights", "lora_scale", "lora_weights_2", "lora_scale_2"),
        *("upscale", "upscale_strength", *REFERENCE),
    ]
    for control in request.controls:
        names += [control.input(field) for field in ("scale", "start", "end", "mask")]
    if not any(control.made_of == "holes" for control in request.controls):
        names += ["mask", "mask_feather"]
    yield Ignored(tuple(names), "map_only makes no pictures")


def _initial_picture(request: Request, bundle: BundleFacts) -> Iterator[Ignored]:
    if not request.repaints:
        yield Ignored(("mask_feather",), "nothing is repainted")
        if request.init_image is None:
            yield Ignored(("prompt_strength",), "no init_image, mask or outpaint")


def _upscale(request: Request, bundle: BundleFacts) -> Iterator[Ignored]:
    if request.upscale == 1:
        yield Ignored(("upscale_strength",), "upscale is 1")


def _reference(request: Request, bundle: BundleFacts) -> Iterator[Ignored]:
    if request.reference_image is None:
        yield Ignored(REFERENCE[1:], "no reference_image")
    elif request.reference_scale == 0:
        yield Ignored(REFERENCE, "a reference picture of scale 0 changes nothing")


def _guidance(request: Request, bundle: BundleFacts) -> Iterator[Ignored]:
    """Without guidance there is no half of the batch that sees the negative prompt."""
    if request.guidance_scale <= 1:
        yield Ignored(("negative_prompt",), f"no guidance with guidance_scale {request.guidance_scale:g}")


def _sampler(request: Request, bundle: BundleFacts) -> Iterator[Ignored]:
    if request.scheduler not in USUAL_ETA:
        yield Ignored(("eta",), f"only for {' or '.join(USUAL_ETA)}")


def _loras(request: Request, bundle: BundleFacts) -> Iterator[Ignored]:
    for lora in request.loras:
        if not lora.scale:
            yield Ignored((lora.name, lora.scale_name), "a LoRA of scale 0 changes nothing")


def _holes(request: Request, bundle: BundleFacts) -> Iterator[Ignored]:
    """The map of inpaint is the picture itself, with or without preprocess. Web UIs offer it with no preprocessor."""
    for control in (control for control in request.controls if control.made_of == "holes"):
        yield Ignored((control.input("preprocess"),), f"{control.conditioner} has no annotator")


def _poses(request: Request, bundle: BundleFacts) -> Iterator[Ignored]:
    posed = [control for control in request.controls if control.made_of == "poses"]
    if not posed:
        names = " or ".join(conditioner.name for conditioner in CONDITIONERS if conditioner.made_of == "poses")
        yield Ignored(("pose_json", "return_pose_json"), f"only for {names}")
    elif not any(control.drawn for control in posed):
        # A pose_json is refused then: it and the ready-made map are two maps for one control.
        yield Ignored(("return_pose_json",), _ready_made(posed))


def _knobs(request: Request, bundle: BundleFacts) -> Iterator[Ignored]:
    """A knob acts on the maps that are drawn by an annotator that takes it."""
    served = [control for control in request.controls if control.conditioner in bundle.conditioners]
    for knob in request.knobs.sent():
        takers = [name for name in bundle.conditioners if knob in bundle.knobs(name)]
        own = [control for control in served if control.conditioner in takers]
        if not any(control.drawn for control in own):
            only = f"only for {' or '.join(takers)}" if takers else "no annotator of the bundle takes it"
            yield Ignored((knob,), _ready_made(own) if own else only)
    if not any(request.annotates(control) for control in served):
        yield Ignored(("detect_resolution",), "no annotator is used")


def _ready_made(controls: "Sequence[RequestedControl]") -> str:
    return f"{' and '.join(control.input('preprocess') for control in controls)} off"


def _quality(request: Request, bundle: BundleFacts) -> Iterator[Ignored]:
    if request.output_format == "png":
        yield Ignored(("output_quality",), "png is lossless")


RULES: tuple[Rule, ...] = (
    _absent_controls,
    _size,
    _map_only,
    _initial_picture,
    _upscale,
    _reference,
    _guidance,
    _sampler,
    _loras,
    _holes,
    _poses,
    _knobs,
    _quality,
)
