"""Jobs for the generator in tests, with control maps that need no annotator."""

import torch
from PIL import Image

from controlnet.generation.job import Job
from controlnet.maps.controls import Control


def hint(seed: int) -> Image.Image:
    """A control map of coarse squares, 64×64."""
    noise = torch.randint(0, 256, (4, 4, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    return Image.fromarray(noise.numpy()).resize((64, 64), Image.Resampling.NEAREST)


def job(**changes) -> Job:
    control = {"conditioner": "canny", "control_map": hint(1)} | changes.pop("control", {})
    values = {
        "prompt": "a red ball",
        "negative_prompt": "",
        "num_outputs": 1,
        "num_inference_steps": 3,
        "guidance_scale": 4.0,
        "scheduler": "DDIM",
        "seed": 5,
    }
    return Job(**(values | changes), controls=(Control(**control),))


def pixels(images: list[Image.Image]) -> list[bytes]:
    return [image.tobytes() for image in images]
