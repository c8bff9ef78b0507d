"""The second pass of a job that enlarges its pictures: img2img at the larger size, under the tile ControlNet.

The tile net sees the picture of the first pass, enlarged, and keeps its colours and shapes while details are repainted
(github.com/lllyasviel/ControlNet-v1-1-nightly). The controls of the first pass act again where they can, and so does
its reference picture.
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace

from PIL import Image

from controlnet.conditioners import BY_NAME, ENLARGING
from controlnet.generation.job import Job
from controlnet.maps.controls import Control
from controlnet.maps.resizing import resize_map
from controlnet.pictures.canvas import InitialPicture
from controlnet.pictures.geometry import fit, upscaled_size
from controlnet.request.request import steps_taken


class Upscale:
    """The second passes of a job's pictures. They share the control maps of the first pass, enlarged."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.size = upscaled_size(job.controls[0].control_map.size, job.upscale)
        self.steps_taken = steps_taken(job.num_inference_steps, job.upscale_strength)
        self.controls = tuple(self._enlarged(job.controls))
        self.reference = job.reference and replace(job.reference, mask=self._enlarged_region(job.reference.mask))

    def of(self, i: int, picture: Image.Image) -> Job:
        """The job that makes the final picture i from that of the first pass."""
        enlarged, mask = fit(picture, self.size, Image.Resampling.LANCZOS), None
        if self.job.original is not None:
            mask = self.job.original.mask
            enlarged = self.job.original.restore(enlarged)
        return replace(
            self.job,
            seed=self.job.seed_of(i),
            num_outputs=1,
            controls=(*self.controls, Control(ENLARGING, enlarged)),
            initial=InitialPicture(enlarged, self.job.upscale_strength, mask),
            reference=self.reference,
            upscale=1.0,
        )

    def _enlarged(self, controls: Iterable[Control]) -> Iterator[Control]:
        """The controls that act in the second pass too, with larger maps."""
        for control in controls:
            conditioner, window = BY_NAME[control.conditioner], self._window(control)
            if not conditioner.acts_on_parts or window is None or control.scale == 0:
                continue
            yield replace(
                control,
                control_map=resize_map(control.control_map, self.size, conditioner.form),
                region=self._enlarged_region(control.region),
                start=window[0],
                end=window[1],
            )

    def _enlarged_region(self, region: Image.Image | None) -> Image.Image | None:
        return None if region is None else fit(region, self.size, Image.Resampling.BICUBIC)

    def _window(self, control: Control) -> tuple[float, float] | None:
        """The control's window as shares of the steps that the second pass takes, which are the last of all steps."""
        share = self.steps_taken / self.job.num_inference_steps
        start, end = (max(0.0, min(1.0, 1 - (1 - place) / share)) for place in (control.start, control.end))
        return (start, end) if start < end else None
