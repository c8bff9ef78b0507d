"""A loaded bundle that answers requests, whoever asks: Cog's server, a program, or a client of another model."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from PIL import Image

from controlnet.bundle import Bundle
from controlnet.generation.generator import Generator
from controlnet.generation.job import make_job
from controlnet.generation.safety import open_safety_checker, withhold
from controlnet.log import say
from controlnet.maps.cache import MapCache
from controlnet.maps.controls import Control, draw_controls, found_poses
from controlnet.models.lora import check_fit
from controlnet.pictures.canvas import lay_out
from controlnet.request.literal import literal_marks
from controlnet.request.request import Request
from controlnet.stopwatch import Stopwatch
from controlnet.weights.lora_files import Lora
from controlnet.weights.lora_store import LoraStore

Record = Callable[[str, Any], None]
"""Takes the name and the value of one metric, like Cog's record_metric."""


@dataclass(frozen=True)
class Answer:
    """What a request returns, before it is written to files."""

    maps: list[Image.Image]
    """The control map of each control, in their order, if the request asks for them. RGB."""
    poses: str | None
    """The poses of the openpose control as OpenPose's JSON, if the request asks for them."""
    pictures: list[Image.Image]
    """The pictures that the safety checker allows, in the order of their seeds. RGB; their parameters are in `info`."""


class Model:
    """Everything that is loaded once: the base model, every ControlNet, every annotator and the safety checker."""

    def __init__(self, bundle: Bundle) -> None:
        """Load all parts of the bundle. The log has a line per part and their sum."""
        self.bundle = bundle
        self.generator = Generator(bundle)
        self.annotators = bundle.annotators()
        self.maps = MapCache()
        self.loras = LoraStore(bundle.settings)
        self.safety_checker = open_safety_checker(bundle)
        bundle.log.summarise()
        self.generator.warm_up()

    def answer(self, request: Request, record: Record) -> Answer:
        """The steps of a request: open its pictures, draw its control maps, generate, check. One request at a time.

        Raises only errors that are written for clients, apart from those that plain_errors() makes plain.
        """
        self.generator.speedups.recover()  # annotators may run on a GPU
        metrics = _Metrics(record, {"bundle": self.bundle.manifest.name, "device": self.bundle.device.type})
        timed = Stopwatch(record)
        metrics.say_ignored(request)
        _say_literal(request)
        loras = self._fetch_loras(request, timed)
        limits = self.bundle.manifest.limits
        layout = lay_out(request, limits.pixels, limits.upscaled_pixels)
        with timed("preprocess"):
            controls = draw_controls(request, layout, self.annotators, self.maps)
        metrics.say_people(request, controls)
        maps, poses = [control.control_map for control in controls], found_poses(controls)
        if request.map_only:
            return Answer(maps, poses, [])

        width, height = layout.size
        say(f"seed: {request.seed}")
        self._say_large(layout.canvas.size)
        if loras:
            metrics.put(lora_sha256=[lora.sha256 for lora in loras])
        metrics.put(seed=request.seed, steps=request.num_inference_steps, width=width, height=height)
        pictures = self.generator.generate(make_job(request, controls, layout, loras), timed)
        with timed("safety"):
            allowed = withhold(pictures, self.safety_checker, request.disable_safety_checker)
        metrics.put(withheld=len(pictures) - len(allowed))
        return Answer(maps if request.return_control_map else [], poses, allowed)

    def _say_large(self, size: tuple[int, int]) -> None:
        """Say in the log if a picture of this width and height, not yet enlarged, is above the bundle's size."""
        trained, (width, height) = self.bundle.defaults.resolution, size
        if min(size) > trained:
            say(
                f"size: {width}×{height} is above the short side of {trained} that {self.bundle.manifest.name} was "
                f"trained for, so things may blur or repeat: upscale paints a picture of {trained} larger"
            )

    def _fetch_loras(self, request: Request, timed: Stopwatch) -> tuple[Lora, ...]:
        """The files of the request's LoRAs. Raises LoraError, which names the input."""
        check, fetched = partial(check_fit, self.generator.base), []
        for asked in request.loras:
            with timed("lora_fetch"):
                fetched.append(self.loras.fetch(asked.source, asked.name, asked.scale, check))
        return tuple(fetched)


def _say_literal(request: Request) -> None:
    """Say in the log which marks of other tools are in the prompts, if the prompts are used."""
    if not request.map_only and (marks := [*literal_marks([request.prompt, request.negative_prompt])]):
        say(f"literal text: {'; '.join(marks)}")


@dataclass(frozen=True)
class _Metrics:
    """Puts figures of one request into the metrics of its response, and what a person should know into the log."""

    record: Record
    about: dict[str, str]
    """The bundle and the device, which every response names."""

    def put(self, **figures: int | list[str]) -> None:
        for name, value in (self.about | figures).items():
            self.record(name, value)

    def say_ignored(self, request: Request) -> None:
        """Name the inputs that have no effect: in one line of the log with the reasons, and in the metrics."""
        if request.ignored:
            say(f"ignored: {'; '.join(map(str, request.ignored))}")
        self.put(ignored=[name for each in request.ignored for name in each.names])

    def say_people(self, request: Request, controls: tuple[Control, ...]) -> None:
        """Record how many people each openpose map shows, and say in the log if it lacks some or shows none."""
        for asked, control in zip(request.controls, controls, strict=True):
            if control.people is None:
                continue
            self.put(**{f"people{asked.suffix}": control.people})
            picture = asked.input("image") if asked.has_own_image else "image"
            source = picture if request.pose_json is None else "pose_json"
            if control.outside:
                everybody = control.people + control.outside
                say(f"{asked.conditioner}: {control.outside} of {everybody} people in {source} are beyond the canvas")
            if control.people == 0:
                nobody = "nobody on the canvas" if control.outside else f"nobody in {source}"
                say(f"{asked.conditioner}: {nobody}, so its control map is empty")
