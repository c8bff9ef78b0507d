"""The generator: one base model, every ControlNet of the bundle, one call per job.

The order of requests never changes a picture: what a request leaves, such as embeddings, networks with LoRAs and CUDA
graphs, is what a later one would make again. painting.py paints the pictures. controlnet/speedups makes the networks
fast.
"""

from functools import partial

import torch
from PIL import Image

from controlnet.bundle import Bundle
from controlnet.families.family import Embeddings
from controlnet.families.prompts import RecentEmbeddings
from controlnet.families.recent import Recent
from controlnet.generation.decoding import NotFinite
from controlnet.generation.job import Job
from controlnet.generation.painting import Painting
from controlnet.log import say
from controlnet.maps.cache import digest
from controlnet.maps.controls import Control
from controlnet.models.lora import AdaptedBase, Base
from controlnet.pictures.geometry import SMALLEST
from controlnet.speedups import Speedups
from controlnet.stopwatch import Stopwatch
from controlnet.weights.lora_files import LoraError


class Generator:
    """Generates pictures with a bundle's base model and ControlNets, loaded once and shared by all requests."""

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle
        self.base = bundle.base()
        self.controlnets = bundle.controlnets()
        self.speedups = Speedups(self.base["unet"].device, bundle.settings.speedups, bundle.graphs)
        self.references = bundle.references(self.base["unet"])
        self._adapted = AdaptedBase(self.base)
        self._fast_lora = bundle.fast_lora(self.base["unet"])
        self._recent = RecentEmbeddings(partial(bundle.encode, self.base))
        self._recent_tokens = Recent[torch.Tensor]()

    def generate(self, job: Job, timed: Stopwatch | None = None) -> list[Image.Image]:
        """The job's pictures, RGB, of the control maps' size, or as much larger as the job says.

        Each is denoised separately: picture i is then bit for bit the one that seed + i alone gives, for any number of
        outputs. With CONTROLNET_BATCH_OUTPUTS=1 it is that one up to rounding, because products of larger matrices add
        up in another order. Requests with an initial picture or a second pass stay as they are.

        Progress is shown on stderr, one bar per picture or batch. `timed` gets the phases lora, encode, swap, denoise
        and decode, and upscale for all of the second pass.

        Raises LoraError for a LoRA that does not fit, and NotFinite if no picture can be made of the networks' numbers,
        or LoraError in its place if LoRAs of the request may be why.
        """
        try:
            return self._pictures(job, timed or Stopwatch())
        except NotFinite as error:
            if acting := [lora.name for lora in job.loras if lora.scale]:
                raise LoraError(
                    f"{' and '.join(acting)}: with it, the networks gave numbers of which no picture can be made "
                    "(infinite or NaN). Lower its scale, or send another LoRA."
                ) from error
            raise

    def warm_up(self) -> None:
        """Make a picture in one step, with the bundle's defaults, and throw it away.

        So the first request does not wait for one-time work of libraries and drivers, or for the first read of mapped
        weights. It changes nothing that a request reads. It is the smallest picture, but on a GPU with CUDA graphs one
        of the bundle's usual size, whose graphs most requests use.
        """
        defaults = self.bundle.manifest.defaults
        side = self.speedups.warm_up_side(SMALLEST, defaults.resolution)
        control = Control(next(iter(self.bundle.conditioners)), Image.new("RGB", (side, side)))
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
            self._pictures(job, Stopwatch(), progress=False)
        except NotFinite as error:  # real requests may still work
            say(f"warning: {error}")

    def _pictures(self, job: Job, timed: Stopwatch, progress: bool = True) -> list[Image.Image]:
        self.speedups.begin()
        base = self._base(job, timed)
        with timed("encode"):
            embeddings = self._embeddings(job, base)
            tokens = self._tokens(job)
        if self.references is not None and tokens is not None:
            base = {**base, "unet": self.references.of(base["unet"])}
        # The nets of all passes at once, since prepare() frees copies of those that it is not asked for.
        names = list(dict.fromkeys(self.bundle.conditioners[name].net for name in job.conditioners))
        nets = dict(zip(names, self.controlnets.prepare(names, timed), strict=True))
        with self.speedups.lent(base, nets, job.guided) as models:
            painting = Painting(
                job=job,
                family=self.bundle.family,
                entries=self.bundle.conditioners,
                models=models,
                embeddings=embeddings,
                timed=timed,
                tokens=tokens,
                batch_outputs=self.bundle.settings.batch_outputs,
            )
            return list(painting.pictures(progress))

    def _base(self, job: Job, timed: Stopwatch) -> Base:
        """The base model with the job's LoRAs. Raises LoraError if one does not fit it."""
        loras = (*job.loras, *([self._fast_lora] if job.go_fast and self._fast_lora else []))
        if not loras:
            return self.base
        with timed("lora"):
            return self._adapted.of(loras)

    def _embeddings(self, job: Job, base: Base) -> Embeddings:
        if base is self.base:  # a LoRA may change the text encoder too
            return self._recent.of(job.prompt, job.negative_prompt, job.clip_skip)
        return self.bundle.encode(base, job.prompt, job.negative_prompt, job.clip_skip)

    def _tokens(self, job: Job) -> torch.Tensor | None:
        """The tokens of the job's reference picture. None if it has none."""
        if job.reference is None or self.references is None:
            return None
        picture, references = job.reference.picture, self.references
        return self._recent_tokens.of((digest(picture), job.guided), lambda: references.tokens(picture, job.guided))
