"""The generator: one base model, every ControlNet of the bundle, one call per job.

The denoising is diffusers' own pipeline, built for each picture around the shared models. The order of requests never
changes a picture: a request leaves nothing but the embeddings of its prompts, which are those that it would get again.
For the time of a request, the models leave out work that diffusers repeats (controlnet/models/exact).
"""

import os
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from diffusers import ControlNetModel
from PIL import Image

from controlnet.bundle import Bundle
from controlnet.generation.composite import CompositeControlNet
from controlnet.generation.decoding import NotFinite, decode
from controlnet.generation.job import Job
from controlnet.generation.pipelines import FromNoise, FromPicture
from controlnet.generation.progress import PictureBar
from controlnet.generation.prompts import Embeddings, RecentEmbeddings, encode_prompts
from controlnet.generation.repaint import Repainting
from controlnet.generation.upscale import Upscale
from controlnet.generation.windowed import WindowedControlNet, WindowedUNet, WindowedVae, unet_windows
from controlnet.log import say
from controlnet.maps.controls import Control
from controlnet.models.cuda.graphs import open_graphs
from controlnet.models.exact import exact_speedups, removed_from, scale_one_half
from controlnet.models.lora import AdaptedBase, Base
from controlnet.models.schedulers import keep_times_in_main_memory, make_scheduler
from controlnet.models.switch import BATCH_OUTPUTS, is_on
from controlnet.pictures.geometry import SMALLEST, STEP
from controlnet.pictures.output import PARAMETERS
from controlnet.request.modes import CONTROL_MODES
from controlnet.stopwatch import Stopwatch
from controlnet.weights.lora_files import LoraError


class Generator:
    """Generates pictures with a bundle's base model and ControlNets, loaded once and shared by all requests."""

    def __init__(self, bundle: Bundle, environ: Mapping[str, str] = os.environ) -> None:
        """Raises SwitchError for a value of an environment variable that is not 1 or 0."""
        self.exact = exact_speedups(environ)
        self.together = is_on(BATCH_OUTPUTS, environ, default=False)
        self.bundle = bundle
        self.base = bundle.base()
        self.controlnets = bundle.controlnets()
        self._adapted = AdaptedBase(self.base)
        self._fast_lora = bundle.fast_lora(self.base["unet"].config.cross_attention_dim)
        self._recent = RecentEmbeddings(self.base["tokenizer"], self.base["text_encoder"])
        self._graphs = open_graphs(self.base["unet"].device, environ) if bundle.graphs else None

    def generate(self, job: Job, timed: Stopwatch | None = None) -> list[Image.Image]:
        """The job's pictures, RGB, of the control maps' size, or as much larger as the job says.

        Each is denoised separately: picture i is then bit for bit the one that seed + i alone gives, for any number of
        outputs. With CONTROLNET_BATCH_OUTPUTS=1 it is that one up to rounding, because products of larger matrices add
        up in another order. Requests with an initial picture or a second pass stay as they are.

        Progress is shown on stderr, one bar per picture or batch. `timed` gets the phases encode, denoise and decode,
        and upscale for all of the second pass.

        Raises LoraError for a LoRA that does not fit, and NotFinite if no picture can be made of the networks' numbers,
        or LoraError in its place if LoRAs of the request may be why.
        """
        try:
            return list(self._pictures(job, timed or Stopwatch()))
        except NotFinite as error:
            if acting := [lora.name for lora in job.loras if lora.scale]:
                raise LoraError(
                    f"{' and '.join(acting)}: with it, the networks gave numbers of which no picture can be made "
                    "(infinite, or none at all). Lower its scale, or send another LoRA."
                ) from error
            raise

    def warm_up(self) -> None:
        """Make a picture in one step, with the bundle's defaults, and throw it away.

        So the first request does not wait for one-time work of libraries and drivers, or for the first read of mapped
        weights. It changes nothing that a request reads. It is the smallest picture, but on a GPU with CUDA graphs one
        of the bundle's usual size, whose graphs most requests use.
        """
        defaults = self.bundle.manifest.defaults
        side = SMALLEST if self._graphs is None else defaults.resolution
        control = Control(next(iter(self.controlnets)), Image.new("RGB", (side, side)))
        job = Job(
            prompt="",
            negative_prompt="",
            controls=(control,),
            num_outputs=1,
            num_inference_steps=1,
            guidance_scale=defaults.guidance_scale,
            scheduler=defaults.scheduler,
            seed=0,
        )
        try:
            list(self._pictures(job, Stopwatch(), progress=False))
        except NotFinite as error:  # a request may be of other numbers
            say(f"warning: {error}")

    def _pictures(self, job: Job, timed: Stopwatch, progress: bool = True) -> Iterator[Image.Image]:
        if self._graphs is not None:
            self._graphs.begin()
        base = self._base(job, timed)
        with timed("encode"):
            embeddings = self._embeddings(job, base)
        nets = self._nets(job, timed)
        models, coder = ([base["unet"], *nets.values()], [self.base["vae"]]) if self.exact else ([], [])
        hints: dict[int, torch.Tensor] | None = {} if self.exact else None
        upscale = Upscale(job) if job.upscale > 1 else None
        if self._graphs is not None:
            base = {**base, "unet": self._graphs.of(base["unet"])}
        with removed_from(models) as complete, removed_from(coder):
            one_half = self.exact and complete and job.guided
            for numbers in self._batches(job):
                with self._bar(job, numbers, upscale, progress) as bar:
                    # A batch of several pictures takes whole batches of latents.
                    pipeline = self._pipeline(job, nets, hints, one_half and len(numbers) == 1, base)
                    pipeline.progress_bar = bar.of_pass()
                    pictures = self._batch(job, numbers, pipeline, embeddings, timed)
                    if upscale is not None:
                        with timed("upscale"):
                            again = upscale.of(numbers[0], pictures[0])
                            pictures = [self._upscaled(again, nets, embeddings, one_half, bar, base)]
                for i, picture in zip(numbers, pictures, strict=True):
                    picture.info[PARAMETERS] = job.parameters(i)
                    yield picture

    def _batches(self, job: Job) -> list[range]:
        """The numbers of the pictures that are denoised together."""
        if self.together and job.initial is None and job.upscale == 1:
            return [range(job.num_outputs)]
        return [range(i, i + 1) for i in range(job.num_outputs)]

    def _bar(self, job: Job, numbers: range, upscale: Upscale | None, shown: bool) -> PictureBar:
        """The bar of a batch. A step of the second pass counts as often as the UNet sees windows in it."""
        steps = job.steps_taken
        if upscale is not None:
            steps += upscale.steps_taken * self._windows(upscale.size)
        name = f"picture {numbers[0] + 1}" if len(numbers) == 1 else f"pictures {numbers[0] + 1} to {numbers[-1] + 1}"
        return PictureBar(f"{name}/{job.num_outputs}", steps, shown)

    def _windows(self, size: tuple[int, int]) -> int:
        """In how many windows the UNet sees a picture of (width, height) `size` in the second pass."""
        return len(unet_windows(self.base["unet"], (size[1] // STEP, size[0] // STEP)))

    def _upscaled(
        self,
        job: Job,
        nets: Mapping[str, ControlNetModel],
        embeddings: Embeddings,
        one_half: bool,
        bar: PictureBar,
        base: Base,
    ) -> Image.Image:
        """The picture of the second pass. `job` is that of the pass."""
        # Without hints: an embedded map for each window and net would take memory in proportion to the picture.
        pipeline = self._pipeline(job, nets, one_half=one_half, base=base, windowed=True)
        pipeline.progress_bar = bar.of_pass(self._windows(job.controls[-1].control_map.size))
        return self._batch(job, range(1), pipeline, embeddings, Stopwatch())[0]

    def _batch(
        self, job: Job, numbers: range, pipeline: Any, embeddings: Embeddings, timed: Stopwatch
    ) -> list[Image.Image]:
        """The pictures of these numbers, denoised together. Only a single one can begin with an initial picture."""
        prompt, negative = embeddings
        with timed("denoise"):
            result: Any = pipeline(
                prompt_embeds=prompt,
                negative_prompt_embeds=negative if job.guided else None,
                num_inference_steps=job.num_inference_steps,
                guidance_scale=job.guidance_scale,
                eta=job.eta,
                num_images_per_prompt=len(numbers),
                controlnet_conditioning_scale=[control.scale for control in job.controls],
                control_guidance_start=[control.start for control in job.controls],
                control_guidance_end=[control.end for control in job.controls],
                output_type="latent",
                **self._beginning(job, [job.seed_of(i) for i in numbers], pipeline.vae),
            )
        with timed("decode"):
            pictures = [self._decode(latents, pipeline) for latents in result.images.split(1)]
        return pictures if job.initial is None else [job.initial.restore(picture) for picture in pictures]

    def _beginning(self, job: Job, seeds: list[int], vae: Any) -> dict[str, Any]:
        """Arguments of the pipeline that depend on how the job begins: noise, initial picture, control images."""
        hints, initial = _hints(job), job.initial
        if initial is None:
            return {"image": hints, "generator": [torch.Generator("cpu").manual_seed(seed) for seed in seeds]}
        (seed,) = seeds
        generator = torch.Generator("cpu").manual_seed(seed)
        repainting: Any = {}
        if initial.mask is not None:
            drawing = torch.Generator("cpu").manual_seed(seed)
            kept = Repainting(initial, vae, drawing)
            repainting = {"callback_on_step_end": kept, "callback_on_step_end_tensor_inputs": ["latents"]}
            if initial.is_overwritten:
                # Samplers that add noise at each step continue with the generator that drew the first latents.
                return {"image": hints, "latents": kept.noise, "generator": drawing} | repainting
        # With the untouched generator, the pipeline draws the same latents and noise as Repainting has drawn.
        changing = {"image": initial.picture, "control_image": hints, "strength": initial.strength}
        return changing | {"generator": generator} | repainting

    def _decode(self, latents: torch.Tensor, pipeline: Any) -> Image.Image:
        """Not by the pipeline, to measure its time apart from the denoising. Raises NotFinite."""
        return decode(latents, pipeline.vae, pipeline.image_processor)

    def _base(self, job: Job, timed: Stopwatch) -> Base:
        """The base model with the job's LoRAs. Raises LoraError if one does not fit it."""
        loras = (*job.loras, *([self._fast_lora] if job.go_fast and self._fast_lora else []))
        if not loras:
            return self.base
        with timed("lora"):
            return self._adapted.of(loras)

    def _embeddings(self, job: Job, base: Base) -> Embeddings:
        if self.exact and base is self.base:
            return self._recent.of(job.prompt, job.negative_prompt, job.clip_skip)
        models = base["tokenizer"], base["text_encoder"]
        return encode_prompts(job.prompt, job.negative_prompt, *models, job.clip_skip)

    def _nets(self, job: Job, timed: Stopwatch | None = None) -> dict[str, ControlNetModel]:
        """The nets of all passes, by conditioner. Together, since any other set would free some of them."""
        return dict(zip(job.conditioners, self.controlnets.together(job.conditioners, timed), strict=True))

    def _pipeline(
        self,
        job: Job,
        nets: Mapping[str, ControlNetModel] | None = None,
        hints: dict[int, torch.Tensor] | None = None,
        one_half: bool = False,
        base: Base | None = None,
        windowed: bool = False,
    ) -> Any:
        """For one picture, with the networks of `base`.

        `hints` is the composite's, `one_half` whether the models get one half of the latents. `windowed`: the models
        see the picture window by window (windowed.py).
        """
        nets = nets or self._nets(job)
        own: list[Any] = [nets[control.conditioner] for control in job.controls]
        if self._graphs is not None:
            own = [self._graphs.of(net, own[:i].count(net)) for i, net in enumerate(own)]
        regions = [_region(control.region, self.base["text_encoder"].device) for control in job.controls]
        pipeline = FromNoise if job.begins_with_noise else FromPicture
        scheduler = make_scheduler(job.scheduler, self.base["scheduler"].config, job.steps_skipped)
        if one_half:
            scale_one_half(scheduler)
        if self._graphs is not None:
            keep_times_in_main_memory(scheduler)
        # safety.py checks the pictures instead: there a flagged one does not affect the others.
        none: Any = None
        parts = {name: part for name, part in (base or self.base).items() if name != "scheduler"}
        if windowed:
            parts |= {"unet": WindowedUNet(parts["unet"]), "vae": WindowedVae(parts["vae"])}
        composite = WindowedControlNet if windowed else CompositeControlNet
        made = pipeline(
            **parts,
            controlnet=composite(own, job.guided, CONTROL_MODES[job.control_mode], regions, hints),
            scheduler=scheduler,
            safety_checker=none,
            feature_extractor=none,
            requires_safety_checker=False,
        )
        made.control_image_processor.register_to_config(do_resize=False)  # the control maps have the pictures' size
        return made


def _hints(job: Job) -> list[torch.Tensor]:
    """The control maps as the nets see them, each (1, 3, H, W), 0 to 1, or -1 in the holes."""
    hints = []
    for control in job.controls:
        pixels = np.asarray(control.control_map.convert("RGB"), np.float32) / 255
        if control.holes is not None:
            pixels[np.asarray(control.holes) > 0] = -1
        hints.append(torch.from_numpy(pixels).permute(2, 0, 1)[None])
    return hints


def _region(region: Image.Image | None, device: torch.device) -> torch.Tensor | None:
    """(1, 1, H, W), 0 to 1."""
    return None if region is None else torch.from_numpy(np.array(region, np.float32) / 255)[None, None].to(device)
