"""A request as the generator takes it: everything that its pictures depend on, beside the bundle."""

from dataclasses import dataclass
from typing import Any

from PIL import Image

from controlnet.generation.repaint import Start

SEEDS = 2**32  # seeds are 0 to 2³² − 1; the one after the last is 0


class RequestError(ValueError):
    """Inputs that are each allowed but do not go together; the message says what to change."""


@dataclass(frozen=True)
class Control:
    """One control map and how it acts."""

    conditioner: str
    control_map: Image.Image
    """RGB, of the size of the pictures to be made."""
    scale: float = 1.0
    """Strength, 0–2."""
    start: float = 0.0
    end: float = 1.0
    """The share of the steps after which control begins and ends, 0 ≤ start < end ≤ 1."""
    region: Image.Image | None = None
    """Where it acts: of mode L and the map's size, 255 where it does in full, 0 where not at all. None: everywhere."""
    holes: Image.Image | None = None
    """Of mode L and the map's size: where it is not 0 the net sees −1 in place of a colour, which inpaint's net takes
    for what is to be painted."""

    pose_json: str | None = None
    """The people of an openpose map as OpenPose's JSON; None where it is not asked for."""

    def parameters(self) -> dict[str, Any]:
        """Its plain values, without pictures."""
        return {"conditioner": self.conditioner, "scale": self.scale, "start": self.start, "end": self.end}


@dataclass(frozen=True)
class Request:
    """Everything that the pictures of one request depend on, beside the bundle."""

    prompt: str
    negative_prompt: str
    controls: tuple[Control, ...]
    """At least one; all maps of one size."""
    num_outputs: int
    num_inference_steps: int
    guidance_scale: float
    scheduler: str
    seed: int
    control_mode: str = "balanced"
    """A key of composite.CONTROL_MODES."""
    start: Start | None = None
    """None: from noise alone."""
    clip_skip: int = 1
    """Which of the text encoder's layers is used, counted from the last, which is 1."""

    @property
    def guided(self) -> bool:
        """Whether there is an unconditional half: at a guidance scale of 1 or less it would have no weight."""
        return self.guidance_scale > 1

    def parameters(self, i: int) -> dict[str, Any]:
        """What picture `i` alone would be asked for with, for its file's metadata: plain values, no pictures."""
        plain = ("prompt", "negative_prompt", "num_inference_steps", "guidance_scale", "scheduler", "control_mode")
        own = {name: getattr(self, name) for name in (*plain, "clip_skip")}
        started = {} if self.start is None else {"prompt_strength": self.start.strength}
        controls = [control.parameters() for control in self.controls]
        return own | started | {"seed": (self.seed + i) % SEEDS, "controls": controls}
