"""The pictures of one job, painted with the networks that are lent to its request.

The denoising is diffusers' own pipeline, built for each picture and pass around the shared networks.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from controlnet.families.family import Embeddings, Family
from controlnet.generation.composite import Acting, CompositeControlNet
from controlnet.generation.decoding import decode
from controlnet.generation.job import Job
from controlnet.generation.progress import PictureBar
from controlnet.generation.repaint import Repainting
from controlnet.generation.upscale import Upscale
from controlnet.generation.windowed import WindowedControlNet, WindowedUNet, WindowedVae, unet_windows
from controlnet.models.reference import Seen
from controlnet.models.schedulers import make_scheduler
from controlnet.pictures.canvas import ReferencePicture
from controlnet.pictures.geometry import STEP
from controlnet.pictures.output import PARAMETERS
from controlnet.request.modes import CONTROL_MODES, STYLE
from controlnet.speedups import Lent
from controlnet.stopwatch import Stopwatch
from controlnet.weights.entries import ConditionerEntry


@dataclass(frozen=True)
class Painting:
    """A job at work."""

    job: Job
    family: Family
    entries: Mapping[str, ConditionerEntry]
    """The bundle's conditioners."""
    models: Lent
    embeddings: Embeddings
    timed: Stopwatch
    tokens: torch.Tensor | None = None
    """The tokens of the job's reference picture, (1, tokens, d), or with those of no picture first, (2, …)."""
    batch_outputs: bool = False
    """Whether the outputs are denoised as one batch, if they begin with noise and are not enlarged."""

    def pictures(self, progress: bool = True) -> Iterator[Image.Image]:
        """RGB, in the order of their seeds, each with its parameters in its info. Raises NotFinite."""
        upscale = Upscale(self.job) if self.job.upscale > 1 else None
        for numbers in self._batches():
            with self._bar(numbers, upscale, progress) as bar:
                pictures = self._pass(self.job).paint(numbers, bar.of_pass(), self.timed)
                if upscale is not None:
                    with self.timed("upscale"):
                        job = upscale.of(numbers[0], pictures[0])
                        again = self._pass(job, windowed=True)
                        pictures = again.paint(range(1), bar.of_pass(self._windows(upscale)), Stopwatch())
            for i, picture in zip(numbers, pictures, strict=True):
                picture.info[PARAMETERS] = self.job.parameters(i)
                yield picture

    def _pass(self, job: Job, windowed: bool = False) -> "_Pass":
        return _Pass(job, self.family, self.entries, self.models, self.embeddings, self.tokens, windowed)

    def _batches(self) -> list[range]:
        """The numbers of the pictures that are denoised together."""
        if self.batch_outputs and self.job.initial is None and self.job.upscale == 1:
            return [range(self.job.num_outputs)]
        return [range(i, i + 1) for i in range(self.job.num_outputs)]

    def _bar(self, numbers: range, upscale: Upscale | None, shown: bool) -> PictureBar:
        """The bar of a batch. A step of the second pass counts as often as the UNet sees windows in it."""
        steps = self.job.steps_taken
        if upscale is not None:
            steps += upscale.steps_taken * self._windows(upscale)
        name = f"picture {numbers[0] + 1}" if len(numbers) == 1 else f"pictures {numbers[0] + 1} to {numbers[-1] + 1}"
        return PictureBar(f"{name}/{self.job.num_outputs}", steps, shown)

    def _windows(self, upscale: Upscale) -> int:
        """In how many windows the UNet sees a picture of the second pass."""
        width, height = upscale.size
        return len(unet_windows(self.models.base["unet"], (height // STEP, width // STEP), self.family.window))


@dataclass(frozen=True)
class _Pass:
    """One run of a pipeline for each batch of a job."""

    job: Job
    family: Family
    entries: Mapping[str, ConditionerEntry]
    models: Lent
    embeddings: Embeddings
    tokens: torch.Tensor | None = None
    windowed: bool = False
    """Whether the networks see the picture window by window (windowed.py)."""

    def paint(self, numbers: range, progress_bar: Any, timed: Stopwatch) -> list[Image.Image]:
        """The pictures of these numbers, denoised together. Only a single one can begin with an initial picture."""
        job, pipeline = self.job, self.pipeline(len(numbers))
        pipeline.progress_bar = progress_bar
        words = {
            name: tensor for name, tensor in self.embeddings.items() if job.guided or not name.startswith("negative_")
        }
        with timed("denoise"):
            result: Any = pipeline(
                **words,
                num_inference_steps=job.num_inference_steps,
                guidance_scale=job.guidance_scale,
                eta=job.eta,
                num_images_per_prompt=len(numbers),
                controlnet_conditioning_scale=[control.scale for control in job.controls],
                control_guidance_start=[control.start for control in job.controls],
                control_guidance_end=[control.end for control in job.controls],
                output_type="latent",
                **self._beginning([job.seed_of(i) for i in numbers], pipeline.vae),
            )
        with timed("decode"):  # not by the pipeline, to measure its time apart from the denoising
            pictures = [decode(latents, pipeline.vae, pipeline.image_processor) for latents in result.images.split(1)]
        return pictures if job.initial is None else [job.initial.restore(picture) for picture in pictures]

    def pipeline(self, outputs: int = 1) -> Any:
        """diffusers' pipeline for so many outputs at once."""
        job, parts = self.job, {name: part for name, part in self.models.base.items() if name != "scheduler"}
        if self.windowed:
            parts |= {"unet": WindowedUNet(parts["unet"], self.family.window), "vae": WindowedVae(parts["vae"])}
        if job.reference is not None and self.tokens is not None:
            parts["unet"] = SeeingUNet(parts["unet"], job.reference, self.tokens, outputs)
        scheduler = make_scheduler(job.scheduler, self.models.base["scheduler"].config, job.steps_skipped)
        self.models.adapt(scheduler, outputs)  # from here the networks may get one half of the latents
        kind: Any = self.family.from_noise if job.begins_with_noise else self.family.from_picture
        composite = self._composite(next(parts["unet"].parameters()).device)
        made = kind(**parts, controlnet=composite, scheduler=scheduler, **self.family.without)
        made.control_image_processor.register_to_config(do_resize=False)  # the control maps have the pictures' size
        return made

    def _composite(self, device: torch.device) -> CompositeControlNet:
        controls = self.job.controls
        entries = [self.entries[control.conditioner] for control in controls]
        calls = _calls(self.job, entries)
        nets = self.models.nets([entries[numbers[0]].net for numbers in calls])
        acting = [
            Acting(
                net,
                numbers,
                tuple(kind for number in numbers if (kind := entries[number].type) is not None),
                _region(controls[numbers[0]].region, device),
            )
            for net, numbers in zip(nets, calls, strict=True)
        ]
        mode = CONTROL_MODES[self.job.control_mode]
        if self.windowed:  # kept maps of each window and net would take memory with the picture
            return WindowedControlNet(acting, self.job.guided, mode)
        return CompositeControlNet(acting, self.job.guided, mode, self.models.control_maps)

    def _beginning(self, seeds: Sequence[int], vae: Any) -> dict[str, Any]:
        """Arguments of the pipeline that depend on how the job begins: noise, initial picture, control images."""
        control_maps, initial = _control_maps(self.job, self.entries), self.job.initial
        if initial is None:
            return {"image": control_maps, "generator": [torch.Generator("cpu").manual_seed(seed) for seed in seeds]}
        (seed,) = seeds
        generator = torch.Generator("cpu").manual_seed(seed)
        repainting: Any = {}
        if initial.mask is not None:
            noise_generator = torch.Generator("cpu").manual_seed(seed)
            repaint = Repainting(initial, vae, noise_generator)
            repainting = {"callback_on_step_end": repaint, "callback_on_step_end_tensor_inputs": ["latents"]}
            if initial.is_overwritten:
                # Samplers that add noise at each step continue with the generator that drew the first latents.
                return {"image": control_maps, "latents": repaint.noise, "generator": noise_generator} | repainting
        # With the untouched generator, the pipeline draws the same latents and noise as Repainting has drawn.
        changing = {"image": initial.picture, "control_image": control_maps, "strength": initial.strength}
        return changing | {"generator": generator} | repainting


class SeeingUNet:
    """A UNet with ReferenceProcessors (controlnet/models/reference.py) that sees a reference picture at each call."""

    def __init__(self, unet: Any, reference: ReferencePicture, tokens: torch.Tensor, outputs: int = 1) -> None:
        """`unet` may be a WindowedUNet of one. `tokens` are as for Painting, for so many `outputs` at once."""
        self._unet = unet
        others = 0.0 if reference.mode == STYLE else reference.scale
        # A copy, because layers keep what they compute of it with it, and `tokens` are kept for the next requests.
        self._tokens = tokens.repeat_interleave(outputs, 0)
        self._scales = torch.tensor([[reference.scale, others]], device=tokens.device)
        self._mask = _region(reference.mask, tokens.device)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._unet, name)

    def __call__(self, sample: Any, timestep: Any, *, encoder_hidden_states: torch.Tensor, **others: Any) -> Any:
        """As the UNet, with the prompts' embeddings."""
        seen = Seen(encoder_hidden_states, self._tokens, self._scales, self._mask)
        return self._unet(sample, timestep, encoder_hidden_states=seen, **others)


def _calls(job: Job, entries: Sequence[ConditionerEntry]) -> list[tuple[int, ...]]:
    """The numbers of the controls that each call of a net serves: all those of a union that act everywhere."""
    calls: dict[Any, tuple[int, ...]] = {}
    for number, (control, entry) in enumerate(zip(job.controls, entries, strict=True)):
        alone = entry.type is None or control.region is not None
        key = number if alone else entry.net
        calls[key] = (*calls.get(key, ()), number)
    return list(calls.values())


def _control_maps(job: Job, entries: Mapping[str, ConditionerEntry]) -> list[torch.Tensor]:
    """The control maps as the nets see them, each (1, 3, H, W), 0 to 1, or the net's value in the holes."""
    control_maps = []
    for control in job.controls:
        pixels = np.asarray(control.control_map.convert("RGB"), np.float32) / 255
        if control.holes is not None:
            pixels[np.asarray(control.holes) > 0] = entries[control.conditioner].hole
        control_maps.append(torch.from_numpy(pixels).permute(2, 0, 1)[None])
    return control_maps


def _region(region: Image.Image | None, device: torch.device) -> torch.Tensor | None:
    """(1, 1, H, W), 0 to 1."""
    return None if region is None else torch.from_numpy(np.array(region, np.float32) / 255)[None, None].to(device)
