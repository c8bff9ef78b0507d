"""The bundle under test, in this process: draws control maps and generates pictures."""

import io
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

from PIL import Image

from controlnet.bundle import open_bundle
from controlnet.generation.generator import Generator
from controlnet.generation.job import Job
from controlnet.maps.controls import Control
from controlnet.maps.drawing import draw_control_map
from controlnet.settings import Settings
from controlnet.weights.manifest import WEIGHTS
from tinyworld.cases import Case
from tinyworld.dataset import sample_of
from tinyworld.hints import HINTS, draw_from_truth


class Painter:
    """The bundle under test, used as a request with default inputs would use it."""

    def __init__(self, bundle_name: str, maps: str, weights: Path = WEIGHTS, go_fast: bool = False) -> None:
        """`maps`: "drawn", by the bundle's annotators from the scene's picture, or "truth", by the renderer.

        `go_fast`: in few steps, as a request with go_fast. Raises ValueError if the bundle has no LoRA for it.
        """
        self.bundle = open_bundle(Settings(bundle=bundle_name), weights)
        self.generator = Generator(self.bundle)
        self.annotators = self.bundle.annotators()
        self.maps = maps
        if go_fast and self.bundle.fast is None:
            raise ValueError(f"The bundle {bundle_name} has no go_fast.")
        self.fast = self.bundle.fast if go_fast else None
        self.size = (self.bundle.manifest.defaults.resolution,) * 2

    def control_map(self, conditioner: str, case: Case) -> Image.Image:
        # canny and scribble have no truth: an annotator draws their maps from a picture.
        if self.maps == "drawn" or HINTS[conditioner].from_picture is None:
            return draw_control_map(conditioner, case.picture, self.size, True, self.annotators)
        ready = draw_from_truth(HINTS[conditioner], sample_of(case.scene, self.size[0]))
        return draw_control_map(conditioner, ready, self.size, False, self.annotators)

    def paint(self, conditioner: str, control_map: Image.Image, prompt: str, seed: int) -> Image.Image:
        return self.paint_with((Control(conditioner, control_map),), prompt, seed)

    def paint_with(self, controls: tuple[Control, ...], prompt: str, seed: int, **more: Any) -> Image.Image:
        """`more` is what else the job has: its upscale and upscale_strength, or its reference."""
        defaults = self.bundle.manifest.defaults
        usual = self.fast or defaults
        job = Job(
            prompt=prompt,
            negative_prompt="",
            controls=controls,
            num_outputs=1,
            num_inference_steps=usual.num_inference_steps,
            guidance_scale=usual.guidance_scale,
            scheduler=usual.scheduler,
            go_fast=self.fast is not None,
            control_mode=defaults.control_mode,
            seed=seed,
            **more,
        )
        with redirect_stderr(io.StringIO()):  # no progress bar for each of hundreds of pictures
            return self.generator.generate(job)[0]
