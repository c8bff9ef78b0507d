"""A request as a typed value, read once from the arguments of predict(): checked, with every default filled in."""

import secrets
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

from controlnet.conditioners import BY_NAME, Source
from controlnet.request.bundle_facts import BundleFacts
from controlnet.request.combinations import check_combinations
from controlnet.request.ignored import USUAL_ETA, Ignored, find_ignored
from controlnet.request.inputs import check_inputs, declared_defaults
from controlnet.request.knobs import KNOBS, Knobs
from controlnet.request.loras import LORA_INPUTS, NOWHERE, AskedLora, read_loras
from controlnet.request.pose import SentPoses, read_poses
from controlnet.weights.lora_sources import LoraSource, read_source

SUFFIXES = ("", "_2", "_3")
"""The endings of the input names of the first, second and third control."""
NO_CONDITIONER = "none"
"""The choice of conditioner_2 and conditioner_3 that means the same as leaving them out; a form can send it."""
CONTROL_INPUTS: Mapping[str, str] = {
    "conditioner": "conditioner",
    "image": "image",
    "preprocess": "preprocess",
    "scale": "conditioning_scale",
    "start": "control_start",
    "end": "control_end",
    "mask": "control_mask",
}
"""For each field of AskedControl that comes from an input, the name of that input, without its suffix."""
SEEDS = 2**32
"""Seeds are 0 to 2³² − 1. The one after the last is 0."""
NOBODY = SentPoses((), None)
INITIAL_STRENGTH = 0.8
"""Default of prompt_strength if only init_image is sent: the picture keeps its layout, and much else changes."""
UPSCALE_STRENGTH = 0.4
"""Default of upscale_strength."""


@dataclass(frozen=True)
class AskedControl:
    """One control of a request."""

    conditioner: str
    """Name of a conditioner that the bundle has."""
    image: Path
    """The file of the picture that structure is taken from: its own, or the first control's if it has none."""
    preprocess: bool
    """True if the control map is drawn from the picture, False if the picture already is one."""
    scale: float
    """Strength, 0–2; at 0 the control does nothing."""
    start: float
    """Share of the steps after which the control begins, 0–1, below `end`."""
    end: float
    """Share of the steps after which the control ends, 0–1."""
    mask: Path | None
    """The file of the picture that is white where the control acts. None means everywhere."""
    suffix: str
    """The ending of its input names: one of SUFFIXES."""
    has_own_image: bool
    """Whether `image` was sent for the second or third control. Otherwise it is the first control's."""

    @property
    def made_of(self) -> Source:
        """What its control map is made of."""
        return BY_NAME[self.conditioner].made_of

    @property
    def drawn(self) -> bool:
        """Whether its map is drawn: from its picture by an annotator, or from the poses that the request sends."""
        return self.preprocess and self.made_of != "holes"

    def input(self, field: str) -> str:
        """The name that the client knows a field by: "conditioning_scale_2" for "scale" of the second control."""
        return CONTROL_INPUTS[field] + self.suffix


@dataclass(frozen=True)
class Ask:
    """A whole request. Each field has the name of its input; `controls` and `knobs` group the inputs that they hold."""

    prompt: str
    """What the picture should show; may hold weights such as (word:1.3)."""
    negative_prompt: str
    """What it should not show. Empty means nothing in particular."""
    controls: tuple[AskedControl, ...]
    """One to three, in the order of their inputs. A control without a conditioner is left out."""
    knobs: Knobs
    """Settings for the annotators."""
    detect_resolution: int | None
    """Short side, 64–2048 pixels, at which annotators see the picture. None means that of the canvas."""
    pose_json: SentPoses | None
    """People's poses for the openpose control. None means that the annotator finds them."""
    control_mode: str
    """A key of controlnet.request.modes.CONTROL_MODES."""
    init_image: Path | None
    """The file of the initial picture. None: the first control's picture if it is repainted, else noise alone."""
    prompt_strength: float
    """Share of the steps to take, 0–1. It is 1 if the request begins with noise alone."""
    mask: Path | None
    """The file of the picture that is white where the initial picture is repainted."""
    mask_feather: int
    """Pixels, 0–64, over which the mask's edge is softened to each side; that of the outpainted margins too."""
    outpaint_left: int
    """Pixels to paint beyond the left edge, 0–1024, before rounding up to a multiple of 8."""
    outpaint_right: int
    """As outpaint_left, beyond the right edge."""
    outpaint_top: int
    """As outpaint_left, beyond the top edge."""
    outpaint_bottom: int
    """As outpaint_left, beyond the bottom edge."""
    upscale: float
    """By what factor the pictures are enlarged in a second pass, 1–4. 1 means not at all, without that pass."""
    upscale_strength: float
    """Share of the steps that the second pass takes, 0–1: how much it may change."""
    num_outputs: int
    """How many pictures to make, 1–4."""
    resolution: int
    """Short side of the pictures, 64–2048 pixels, before rounding to a multiple of 8. Not used with width or height."""
    width: int | None
    """Width of the pictures, 64–2048 pixels. None: from height and the aspect ratio, or from resolution."""
    height: int | None
    """Height of the pictures, 64–2048 pixels. None: from width and the aspect ratio, or from resolution."""
    resize_mode: str
    """How a picture of another shape is fitted to the canvas: a key of controlnet.pictures.geometry.RESIZE_MODES."""
    num_inference_steps: int
    """Denoising steps, 1–100, of which `steps_taken` are taken."""
    guidance_scale: float
    """0–30. At 1 or less there is no guidance."""
    clip_skip: int
    """Which layer of the text encoder is read, 1–12, counted from the last, which is 1."""
    scheduler: str
    """A key of controlnet.models.schedulers.SCHEDULERS."""
    eta: float
    """0–1: how much noise DDIM adds at each step. 1 is as much as DDPM, of which it is a generalisation. TCD: γ."""
    go_fast: bool
    """Whether to paint in few steps, as the bundle's Fast says."""
    loras: tuple[AskedLora, ...]
    """Up to two, in the order of their inputs."""
    seed: int
    """0 to 2³² − 1, drawn by the operating system if none is sent. Picture i, counted from 0, has seed + i."""
    map_only: bool
    """Whether only the control maps are returned and nothing is generated."""
    return_control_map: bool
    """Whether the control maps are returned with the pictures."""
    return_pose_json: bool
    """Whether the poses of the openpose control are returned."""
    output_format: str
    """A key of controlnet.pictures.output.OUTPUT_FORMATS."""
    output_quality: int
    """0–100, of webp and jpg pictures."""
    disable_safety_checker: bool
    """Whether the safety checker is skipped."""
    sent: tuple[str, ...]
    """Names of the inputs that have another value than their declared default, in the order of the signature. Those
    in `ignored` are left out."""
    orphans: tuple[tuple[str, tuple[str, ...]], ...]
    """For each conditioner that is missing, the name of its input, and those that were sent although it is. Empty once
    the request is read."""
    ignored: tuple[Ignored, ...] = ()
    """Inputs that were sent and have no effect. All other fields are those of a request without them."""

    @classmethod
    def read(cls, predict: Callable[..., Any], values: Mapping[str, Any], bundle: BundleFacts) -> "Ask":
        """Read a request from `values`, the locals() of `predict`. Checks it against signature, rules and bundle.

        Inputs that have no effect are left out: the result is that of a request without them, apart from `ignored`.
        Raises InputError for values that the signature does not allow, PoseError for a pose_json that cannot be read,
        LoraError for a LoRA named in a form or on a host that is not allowed, and RequestError for inputs that do not
        go together or that the bundle cannot serve. InputError and RequestError name all faults at once. What depends
        on pixels is refused later, when the pictures are opened.
        """
        inputs, declared = check_inputs(predict, values), declared_defaults(predict)
        inputs |= {name: None for suffix in SUFFIXES if inputs[name := f"conditioner{suffix}"] == NO_CONDITIONER}
        inputs |= {name: None for name, _ in LORA_INPUTS if inputs[name] is not None and not inputs[name].strip()}
        # First without reading a pose_json and LoRAs, which may be among the ignored inputs.
        ignored = find_ignored(_fill(inputs, declared, bundle, lambda text: NOBODY, lambda text: NOWHERE), bundle)
        inputs |= {name: declared[name] for each in ignored for name in each.names}
        read_lora = partial(read_source, hosts=bundle.lora_hosts)
        ask = replace(_fill(inputs, declared, bundle, read_poses, read_lora), ignored=ignored)
        check_combinations(ask, bundle)
        return ask

    def annotates(self, control: AskedControl) -> bool:
        """Whether an annotator sees the control's picture: not if its map is ready-made, or made of what is sent."""
        return control.drawn and not (control.made_of == "poses" and self.pose_json is not None)

    @property
    def files(self) -> tuple[Path, ...]:
        """The files of all pictures of the request, some of them twice if controls share one."""
        files = [self.init_image, self.mask]
        for control in self.controls:
            files += [control.image, control.mask]
        return tuple(file for file in files if file is not None)

    @property
    def repaints(self) -> bool:
        """Whether a part of the initial picture is repainted, or painted beyond its edges."""
        margins = (self.outpaint_left, self.outpaint_right, self.outpaint_top, self.outpaint_bottom)
        return self.mask is not None or any(margins)

    @property
    def steps_taken(self) -> int:
        """How many of num_inference_steps are taken, counted as diffusers counts them."""
        return steps_taken(self.num_inference_steps, self.prompt_strength)


def steps_taken(num_inference_steps: int, strength: float) -> int:
    """How many steps are taken if that share of the steps, 0–1, changes an initial picture; as diffusers counts."""
    return min(int(num_inference_steps * strength), num_inference_steps)


def _fill(
    inputs: Mapping[str, Any],
    declared: Mapping[str, Any],
    bundle: BundleFacts,
    read: Callable[[str], SentPoses],
    locate: Callable[[str], LoraSource],
) -> Ask:
    """The request with all defaults. `inputs` already has those that predict() declares; the bundle has the others.

    `read` reads a pose_json, `locate` the text that says where a LoRA is.
    """
    of_bundle = asdict(bundle.defaults)
    if inputs["go_fast"] and bundle.fast:
        of_bundle |= {name: value for name, value in asdict(bundle.fast).items() if name in of_bundle}
    values: dict[str, Any] = {name: of_bundle.get(name) if v is None else v for name, v in inputs.items()}
    values |= {
        "controls": _controls(inputs, declared),
        "knobs": Knobs(**{name: inputs[name] for name in KNOBS}),
        "pose_json": None if inputs["pose_json"] is None else read(inputs["pose_json"]),
        "prompt_strength": 1.0,
        "loras": read_loras(inputs, locate),
        "seed": secrets.randbelow(SEEDS) if inputs["seed"] is None else inputs["seed"],
        "sent": tuple(name for name, value in inputs.items() if value != declared[name]),
        "orphans": _orphans(inputs),
    }
    if values["eta"] is None:
        values["eta"] = USUAL_ETA.get(values["scheduler"], 0.0)
    ask = Ask(**{field.name: values[field.name] for field in fields(Ask) if field.name in values})
    if ask.init_image is None and not ask.repaints:
        return ask
    usual = 1.0 if ask.repaints else INITIAL_STRENGTH
    return replace(ask, prompt_strength=usual if inputs["prompt_strength"] is None else inputs["prompt_strength"])


def _controls(inputs: Mapping[str, Any], declared: Mapping[str, Any]) -> tuple[AskedControl, ...]:
    """The controls that have a conditioner. The second and third have the defaults that the first one declares."""
    controls: list[AskedControl] = []
    for suffix in SUFFIXES:
        sent = {field: inputs[name + suffix] for field, name in CONTROL_INPUTS.items()}
        if sent["conditioner"] is None:
            continue
        usual = {field: declared[name] for field, name in CONTROL_INPUTS.items()} | {"image": inputs["image"]}
        values: dict[str, Any] = usual | {field: value for field, value in sent.items() if value is not None}
        has_own_image = suffix != "" and sent["image"] is not None
        controls.append(AskedControl(**values, suffix=suffix, has_own_image=has_own_image))
    return tuple(controls)


def _orphans(inputs: Mapping[str, Any]) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Inputs of controls that are not there, because their conditioner is not sent."""
    absent = [suffix for suffix in SUFFIXES if inputs[f"conditioner{suffix}"] is None]
    names = [(f"conditioner{suffix}", [name + suffix for name in CONTROL_INPUTS.values()]) for suffix in absent]
    names += [(file, [scale]) for file, scale in LORA_INPUTS if inputs[file] is None]
    found = [(missing, tuple(name for name in own if inputs[name] is not None)) for missing, own in names]
    return tuple((missing, sent) for missing, sent in found if sent)
