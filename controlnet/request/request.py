"""A request as a typed value, which reading.py makes of the arguments of predict()."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from controlnet.conditioners import BY_NAME, Source
from controlnet.request.knobs import Knobs
from controlnet.request.loras import RequestedLora
from controlnet.request.pose import SentPoses

SUFFIXES = ("", "_2", "_3")
"""The endings of the input names of the first, second and third control."""
CONTROL_INPUTS: Mapping[str, str] = {
    "conditioner": "conditioner",
    "image": "image",
    "preprocess": "preprocess",
    "scale": "conditioning_scale",
    "start": "control_start",
    "end": "control_end",
    "mask": "control_mask",
}
"""For each field of RequestedControl that comes from an input, the name of that input, without its suffix."""
SEEDS = 2**32
"""Seeds are 0 to 2³² − 1. The one after the last is 0."""
INITIAL_STRENGTH = 0.8
"""Default of prompt_strength if only init_image is sent: the picture keeps its layout, and much else changes."""
UPSCALE_STRENGTH = 0.4
"""Default of upscale_strength."""


@dataclass(frozen=True)
class Ignored:
    """Inputs that have no effect, all for one reason."""

    names: tuple[str, ...]
    reason: str
    """A few words for the log, such as "only for canny"."""

    def __str__(self) -> str:
        return f"{', '.join(self.names)} ({self.reason})"


@dataclass(frozen=True)
class RequestedControl:
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
class Request:
    """A whole request. Each field has the name of its input; `controls` and `knobs` group the inputs that they hold."""

    prompt: str
    """What the picture should show; may hold weights such as (word:1.3)."""
    negative_prompt: str
    """What it should not show. Empty means nothing in particular."""
    controls: tuple[RequestedControl, ...]
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
    reference_image: Path | None
    """The file of the picture that those to be made shall be like."""
    reference_scale: float
    """How strongly it acts, 0–1.5."""
    reference_mode: str
    """What of it acts: one of controlnet.request.modes.REFERENCE_MODES."""
    reference_mask: Path | None
    """The file of the picture that is white where the reference picture acts. None means everywhere."""
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
    loras: tuple[RequestedLora, ...]
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

    def annotates(self, control: RequestedControl) -> bool:
        """Whether an annotator sees the control's picture: not if its map is ready-made, or made of what is sent."""
        return control.drawn and not (control.made_of == "poses" and self.pose_json is not None)

    @property
    def files(self) -> tuple[Path, ...]:
        """The files of all pictures of the request, some of them twice if controls share one."""
        files = [self.init_image, self.mask, self.reference_image, self.reference_mask]
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
