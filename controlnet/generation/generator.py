"""The generator: one base model, every ControlNet of the bundle, one call per request.

The denoising is diffusers' own pipeline, built per picture around the shared models. Nothing on the generator changes
with a request, so the order of requests never changes a picture.
"""

import math
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from diffusers import StableDiffusionControlNetImg2ImgPipeline, StableDiffusionControlNetPipeline
from PIL import Image

from controlnet.bundle import Bundle
from controlnet.generation.composite import CONTROL_MODES, CompositeControlNet
from controlnet.generation.job import SEEDS, Control, Request, RequestError
from controlnet.generation.prompts import encode_prompts
from controlnet.generation.repaint import Repainting, Start
from controlnet.models.schedulers import make_scheduler
from controlnet.pictures.geometry import SMALLEST
from controlnet.pictures.output import PARAMETERS
from controlnet.stopwatch import Stopwatch


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
        windows = [(f"_{n}" if n > 1 else "", c.start, c.end) for n, c in enumerate(request.controls, 1)]
        self.check(request.scheduler, request.num_inference_steps, request.start, windows)
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
            prompt, negative = encode_prompts(
                request.prompt, request.negative_prompt, tokenizer, text_encoder, request.clip_skip
            )
        for i in range(request.num_outputs):
            pipeline = self._pipeline(request, timed)
            name = f"picture {i + 1}/{request.num_outputs}"
            pipeline.set_progress_bar_config(desc=name, leave=True, disable=not progress)
            with timed("denoise"):
                result: Any = pipeline(
                    prompt_embeds=prompt,
                    negative_prompt_embeds=negative if request.guided else None,
                    num_inference_steps=request.num_inference_steps,
                    guidance_scale=request.guidance_scale,
                    controlnet_conditioning_scale=[control.scale for control in request.controls],
                    control_guidance_start=[control.start for control in request.controls],
                    control_guidance_end=[control.end for control in request.controls],
                    output_type="latent",
                    **self._beginning(request.start, (request.seed + i) % SEEDS, _hints(request)),
                )
            with timed("decode"):
                picture = self._decode(result.images, pipeline)
            if request.start is not None:
                picture = request.start.restore(picture)
            picture.info[PARAMETERS] = request.parameters(i)
            yield picture

    def _beginning(self, start: Start | None, seed: int, hints: list[torch.Tensor]) -> dict[str, Any]:
        """What the pipeline of this start is called with beside what all are: its noise, start and control images."""
        generator = torch.Generator("cpu").manual_seed(seed)
        if start is None:
            return {"image": hints, "generator": generator}
        repainting: Any = {}
        if start.mask is not None:
            drawing = torch.Generator("cpu").manual_seed(seed)
            kept = Repainting(start, self.base["vae"], drawing)
            repainting = {"callback_on_step_end": kept, "callback_on_step_end_tensor_inputs": ["latents"]}
            if _from_noise(start):
                # Samplers that add noise at each step go on drawing where the first latents ended.
                return {"image": hints, "latents": kept.noise, "generator": drawing} | repainting
        # With the untouched generator, the pipeline draws the very latents and noise again that Repainting has.
        changing = {"image": start.picture, "control_image": hints, "strength": start.strength}
        return changing | {"generator": generator} | repainting

    @torch.no_grad()
    def _decode(self, latents: torch.Tensor, pipeline: Any) -> Image.Image:
        """As the pipeline itself would; here, so that its time is known apart from the denoising's."""
        vae = self.base["vae"]
        pixels = vae.decode(latents / vae.config.scaling_factor, return_dict=False)[0]
        pictures: Any = pipeline.image_processor.postprocess(pixels, output_type="pil")
        return pictures[0]

    def _pipeline(self, request: Request, timed: Stopwatch | None = None) -> Any:
        nets = self.controlnets.together([control.conditioner for control in request.controls], timed)
        regions = [_region(control.region, self.base["unet"].device) for control in request.controls]
        kind = (
            StableDiffusionControlNetPipeline
            if _from_noise(request.start)
            else StableDiffusionControlNetImg2ImgPipeline
        )
        # Pictures are checked in safety.py, where a flagged one does not blacken others or lose them.
        none: Any = None
        base = {name: part for name, part in self.base.items() if name != "scheduler"}
        return kind(
            **base,
            controlnet=CompositeControlNet(nets, request.guided, CONTROL_MODES[request.control_mode], regions),
            scheduler=make_scheduler(request.scheduler, self.base["scheduler"].config),
            safety_checker=none,
            feature_extractor=none,
            requires_safety_checker=False,
        )

    def check(
        self,
        scheduler: str,
        num_inference_steps: int,
        start: Start | None,
        windows: Iterable[tuple[str, float, float]],
    ) -> None:
        """Raise RequestError where the start leaves no step to take, or a control's window covers none of them.

        A window is the suffix of the control's inputs, such as "_2", its start and its end.
        """
        steps = self._steps(scheduler, num_inference_steps, start)
        for suffix, first, last in windows:
            check_window(first, last, steps, suffix)

    def _steps(self, scheduler: str, num_inference_steps: int, start: Start | None) -> int:
        """How often the UNet is called: some samplers take more steps than they are asked for."""
        sampler = make_scheduler(scheduler, self.base["scheduler"].config)
        sampler.set_timesteps(num_inference_steps)
        if _from_noise(start):
            return len(sampler.timesteps)
        assert start is not None
        taken = start.steps(num_inference_steps)
        if taken == 0:
            raise RequestError(
                f"A prompt_strength of {start.strength:g} leaves none of the {num_inference_steps} steps to take: "
                f"raise prompt_strength to {math.ceil(100 / num_inference_steps) / 100:g} or more, "
                "or raise num_inference_steps."
            )
        return len(sampler.timesteps[(num_inference_steps - taken) * sampler.order :])


def check_window(start: float, end: float, steps: int, suffix: str = "") -> None:
    """Raise RequestError where a control's start–end window is empty or covers none of the steps: it would do nothing.

    `suffix` is that of the control's inputs, such as "_2".
    """
    if not start < end:
        raise RequestError(
            f"control_start{suffix} must be below control_end{suffix}: got {start:g} and {end:g}. "
            f"Lower control_start{suffix} or raise control_end{suffix}."
        )
    if not any(i / steps >= start and (i + 1) / steps <= end for i in range(steps)):
        raise RequestError(
            f"Control from {start:g} to {end:g} covers none of the {steps} steps: "
            f"widen control_start{suffix} and control_end{suffix} or raise num_inference_steps."
        )


def _from_noise(start: Start | None) -> bool:
    """Whether nothing of the start is in the first latents: without one, and where a hole is repainted wholly."""
    return start is None or (start.mask is not None and start.strength == 1)


def _hints(request: Request) -> list[torch.Tensor]:
    """The control maps as the nets see them, each (1, 3, H, W), 0 to 1, or -1 in the holes."""
    hints = []
    for control in request.controls:
        pixels = np.asarray(control.control_map.convert("RGB"), np.float32) / 255
        if control.holes is not None:
            pixels[np.asarray(control.holes) > 0] = -1
        hints.append(torch.from_numpy(pixels).permute(2, 0, 1)[None])
    return hints


def _region(region: Image.Image | None, device: torch.device) -> torch.Tensor | None:
    """(1, 1, H, W), 0 to 1."""
    return None if region is None else torch.from_numpy(np.array(region, np.float32) / 255)[None, None].to(device)
