"""The generator: one base model, every ControlNet of the bundle, one call per request.

The denoising is diffusers' own pipeline, built per picture around the shared models. Nothing on the generator changes
with a request, so the order of requests never changes a picture.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from diffusers import StableDiffusionControlNetPipeline
from PIL import Image

from controlnet.bundle import Bundle
from controlnet.composite import CompositeControlNet
from controlnet.geometry import SMALLEST
from controlnet.output import PARAMETERS
from controlnet.prompts import encode_prompts
from controlnet.schedulers import make_scheduler
from controlnet.stopwatch import Stopwatch

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

    def parameters(self, i: int) -> dict[str, Any]:
        """What picture `i` alone would be asked for with, for its file's metadata: plain values, no pictures."""
        own = {name: value for name, value in asdict(self).items() if name not in ("controls", "num_outputs")}
        controls = [
            {"conditioner": c.conditioner, "scale": c.scale, "start": c.start, "end": c.end} for c in self.controls
        ]
        return own | {"seed": (self.seed + i) % SEEDS, "controls": controls}


class Generator:
    """Generates pictures with a bundle's base model and ControlNets, loaded once and shared by all requests."""

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle
        self.base = bundle.base()
        self.controlnets = bundle.controlnets()

    def generate(self, request: Request, timed: Stopwatch | None = None) -> list[Image.Image]:
        """The request's pictures, RGB, of the control maps' size. Raises RequestError.

        Each is denoised by itself: picture i is then bit for bit the one that seed + i alone gives, whatever the
        number of outputs. Progress is shown on stderr, one bar per picture. `timed` gets the phases encode, denoise and
        decode.
        """
        for control in request.controls:
            self.check_window(control.start, control.end, request.scheduler, request.num_inference_steps)
        return list(self._pictures(request, timed or Stopwatch()))

    def warm_up(self) -> None:
        """Make the smallest picture in one step, with the bundle's defaults, and throw it away.

        So that what libraries and drivers do once, and the first reading of mapped weights, is not the first request's
        to wait for. It uses nothing that a request reads.
        """
        defaults = self.bundle.manifest.defaults
        black = Image.new("RGB", (SMALLEST, SMALLEST))
        control = Control(next(iter(self.controlnets)), black)
        request = Request("", "", (control,), 1, 1, defaults.guidance_scale, defaults.scheduler, seed=0)
        list(self._pictures(request, Stopwatch(), progress=False))

    def _pictures(self, request: Request, timed: Stopwatch, progress: bool = True) -> Iterator[Image.Image]:
        tokenizer, text_encoder = self.base["tokenizer"], self.base["text_encoder"]
        with timed("encode"):
            prompt, negative = encode_prompts(request.prompt, request.negative_prompt, tokenizer, text_encoder)
        guided = request.guidance_scale > 1
        for i in range(request.num_outputs):
            pipeline = self._pipeline(request, guided)
            name = f"picture {i + 1}/{request.num_outputs}"
            pipeline.set_progress_bar_config(desc=name, leave=True, disable=not progress)
            with timed("denoise"):
                result: Any = pipeline(
                    prompt_embeds=prompt,
                    negative_prompt_embeds=negative if guided else None,
                    image=[control.control_map for control in request.controls],
                    num_inference_steps=request.num_inference_steps,
                    guidance_scale=request.guidance_scale,
                    generator=torch.Generator("cpu").manual_seed((request.seed + i) % SEEDS),
                    controlnet_conditioning_scale=[control.scale for control in request.controls],
                    control_guidance_start=[control.start for control in request.controls],
                    control_guidance_end=[control.end for control in request.controls],
                    output_type="latent",
                )
            with timed("decode"):
                picture = self._decode(result.images, pipeline)
            picture.info[PARAMETERS] = request.parameters(i)
            yield picture

    @torch.no_grad()
    def _decode(self, latents: torch.Tensor, pipeline: StableDiffusionControlNetPipeline) -> Image.Image:
        """As the pipeline itself would; here, so that its time is known apart from the denoising's."""
        vae = self.base["vae"]
        pixels = vae.decode(latents / vae.config.scaling_factor, return_dict=False)[0]
        pictures: Any = pipeline.image_processor.postprocess(pixels, output_type="pil")
        return pictures[0]

    def _pipeline(self, request: Request, guided: bool) -> StableDiffusionControlNetPipeline:
        nets = self.controlnets.together([control.conditioner for control in request.controls])
        # Pictures are checked in controlnet/safety.py, where a flagged one does not blacken others or lose them.
        none: Any = None
        base = {name: part for name, part in self.base.items() if name != "scheduler"}
        return StableDiffusionControlNetPipeline(
            **base,
            controlnet=CompositeControlNet(nets, guided),
            scheduler=make_scheduler(request.scheduler, self.base["scheduler"].config),
            safety_checker=none,
            feature_extractor=none,
            requires_safety_checker=False,
        )

    def check_window(self, start: float, end: float, scheduler: str, num_inference_steps: int) -> None:
        """Raise RequestError where a control's start–end window is empty or covers no step: it would do nothing."""
        if not start < end:
            raise RequestError(
                f"control_start must be below control_end: got {start:g} and {end:g}. "
                "Lower control_start or raise control_end."
            )
        sampler = make_scheduler(scheduler, self.base["scheduler"].config)
        sampler.set_timesteps(num_inference_steps)
        steps = len(sampler.timesteps)  # some samplers take more steps than they are asked for
        if not any(i / steps >= start and (i + 1) / steps <= end for i in range(steps)):
            raise RequestError(
                f"Control from {start:g} to {end:g} covers none of the {steps} steps: "
                "widen control_start and control_end or raise num_inference_steps."
            )
