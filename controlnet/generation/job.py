"""A job for the generator: everything that the pictures of one request depend on, apart from the bundle."""

from dataclasses import dataclass
from typing import Any

from controlnet.conditioners import ENLARGING
from controlnet.maps.controls import Control
from controlnet.pictures.canvas import InitialPicture, Layout, ReferencePicture
from controlnet.request.request import SEEDS, UPSCALE_STRENGTH, Request, steps_taken
from controlnet.weights.lora_files import Lora


@dataclass(frozen=True)
class Job:
    """What the generator makes pictures from. It is not checked: read_request has refused what cannot be made."""

    prompt: str
    negative_prompt: str
    controls: tuple[Control, ...]
    """At least one; all maps of one size."""
    num_outputs: int
    num_inference_steps: int
    guidance_scale: float
    scheduler: str
    """A key of controlnet.models.schedulers.SCHEDULERS."""
    seed: int
    """0 to 2³² − 1."""
    control_mode: str = "balanced"
    """A key of controlnet.request.modes.CONTROL_MODES."""
    initial: InitialPicture | None = None
    """None means that the pictures begin with noise alone."""
    clip_skip: int = 1
    """Which of the text encoder's layers is used, counted from the last, which is 1."""
    loras: tuple[Lora, ...] = ()
    """LoRAs that the request names. Their order does not matter."""
    go_fast: bool = False
    """Whether the LoRA acts that makes few steps possible. Only if the bundle has one."""
    eta: float = 0.0
    """Noise that DDIM adds at each step, 0–1: η in J. Song et al., "Denoising Diffusion Implicit Models", 2021."""
    upscale: float = 1.0
    """By what factor the pictures are enlarged in a second pass, 1–4. 1 means not at all, without that pass."""
    upscale_strength: float = UPSCALE_STRENGTH
    """Share of the steps that the second pass takes, 0–1."""
    reference: ReferencePicture | None = None
    """None means that the prompt and the controls alone say what to paint."""
    original: InitialPicture | None = None
    """If a part is repainted: `initial` at the size of the enlarged pictures. Outside of its mask they show it."""

    @property
    def guided(self) -> bool:
        """Whether there is an unconditional half: at a guidance scale of 1 or less it would have no weight."""
        return self.guidance_scale > 1

    @property
    def begins_with_noise(self) -> bool:
        """Whether the first latents are noise alone, with nothing of an initial picture in them."""
        return self.initial is None or self.initial.is_overwritten

    @property
    def steps_skipped(self) -> int:
        """How many of num_inference_steps are left out at the beginning."""
        if self.initial is None or self.begins_with_noise:
            return 0
        return self.num_inference_steps - steps_taken(self.num_inference_steps, self.initial.strength)

    @property
    def steps_taken(self) -> int:
        """How many of num_inference_steps are taken."""
        return self.num_inference_steps - self.steps_skipped

    @property
    def conditioners(self) -> tuple[str, ...]:
        """Those whose ControlNets the job needs, each once."""
        names = [control.conditioner for control in self.controls]
        return tuple(dict.fromkeys(names + [ENLARGING] * (self.upscale > 1)))

    def seed_of(self, i: int) -> int:
        """The seed of picture `i`."""
        return (self.seed + i) % SEEDS

    def parameters(self, i: int) -> dict[str, Any]:
        """The parameters that make picture `i` alone, for its file's metadata: plain values, no pictures."""
        begun = {} if self.initial is None else {"prompt_strength": self.initial.strength}
        enlarged = {"upscale": self.upscale, "upscale_strength": self.upscale_strength} if self.upscale > 1 else {}
        return {
            "prompt": self.prompt,
            "negative_prompt": self.negative_prompt,
            "num_inference_steps": self.num_inference_steps,
            "guidance_scale": self.guidance_scale,
            "scheduler": self.scheduler,
            "control_mode": self.control_mode,
            "clip_skip": self.clip_skip,
            **({"eta": self.eta} if self.eta else {}),
            **({"go_fast": True} if self.go_fast else {}),
            **({"loras": [lora.parameters() for lora in self.loras]} if self.loras else {}),
            **begun,
            **enlarged,
            **({"reference": self.reference.parameters()} if self.reference else {}),
            "seed": self.seed_of(i),
            "controls": [control.parameters() for control in self.controls],
        }


def make_job(request: Request, controls: tuple[Control, ...], layout: Layout, loras: tuple[Lora, ...] = ()) -> Job:
    """The job of a request whose control maps are drawn and whose LoRAs are fetched."""
    return Job(
        prompt=request.prompt,
        negative_prompt=request.negative_prompt,
        controls=controls,
        num_outputs=request.num_outputs,
        num_inference_steps=request.num_inference_steps,
        guidance_scale=request.guidance_scale,
        scheduler=request.scheduler,
        seed=request.seed,
        control_mode=request.control_mode,
        clip_skip=request.clip_skip,
        eta=request.eta,
        loras=loras,
        go_fast=request.go_fast,
        initial=layout.initial,
        upscale=request.upscale,
        upscale_strength=request.upscale_strength,
        original=layout.original,
        reference=layout.reference,
    )
