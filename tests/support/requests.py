"""Requests as predict() reads them, for a bundle that has no models, and pictures for them."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import cog
import numpy as np
from PIL import Image

import predict
from controlnet.maps.annotators import ANNOTATORS
from controlnet.models.schedulers import suited_schedulers, unet_calls
from controlnet.pictures.canvas import Layout, lay_out
from controlnet.request.knobs import KnobValue
from controlnet.request.reading import read_request
from controlnet.request.request import Request
from controlnet.settings import Settings
from controlnet.weights.tables import Defaults, Fast, Reference

FILE = cog.Path("picture.png")
"""A file that is sent and never opened."""
ANNOTATOR_OF = {
    "canny": "canny",
    "depth": "depth_anything",
    "hed": "hed",
    "mlsd": "mlsd",
    "openpose": "openpose",
    "inpaint": "raw",
    "tile": "tile",
}
"""The conditioners of FakeBundle, with their annotators."""


class FakeBundle:
    """BundleFacts without files."""

    defaults = Defaults(resolution=64, num_inference_steps=4, guidance_scale=4.0, scheduler="DDIM")
    fast: Fast | None = None
    reference: Reference | None = Reference("ip_adapter", "image_encoder", 0.75, ("up_blocks.1",))
    schedulers: Collection[str] = suited_schedulers({})
    annotator_of: Mapping[str, str] = ANNOTATOR_OF

    @property
    def conditioners(self) -> Collection[str]:
        return self.annotator_of

    def knobs(self, conditioner: str) -> tuple[str, ...]:
        return ANNOTATORS[self.annotator_of[conditioner]].knobs

    def knob_fault(self, conditioner: str, knobs: Mapping[str, KnobValue]) -> str | None:
        return ANNOTATORS[self.annotator_of[conditioner]].fault(knobs)

    def prompt_fault(self, prompts: Sequence[str], clip_skip: int) -> str | None:
        return "clip_skip is too high." if clip_skip > 2 else None

    forbids_unsafe = False
    lora_hosts = Settings().lora_hosts

    def unet_calls(self, scheduler: str, num_inference_steps: int, skipped: int) -> int:
        return unet_calls(scheduler, {}, num_inference_steps, skipped)


def asked(bundle: FakeBundle = FakeBundle(), /, **sent) -> Request:
    """The request with these inputs. Prompt and image are sent if `sent` does not have them."""
    return read_request(predict.Predictor.predict, {"prompt": "a red ball", "image": FILE} | sent, bundle)


def laid_out(folder: Path, pictures: Mapping[str, Image.Image], **sent) -> tuple[Request, Layout]:
    """The request with these pictures, by their inputs, and other inputs, and its layout."""
    files = {name: cog.Path(folder / f"{name}.png") for name in pictures}
    for name, picture in pictures.items():
        picture.save(files[name])
    request = asked(**files, **sent)
    return request, lay_out(request, most_pixels=2**20, most_upscaled=2**22)


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)
