"""What a generator makes before it is decoded."""

from typing import Any
from unittest import mock

import torch
from PIL import Image

from controlnet.generation import painting
from controlnet.generation.generator import Generator
from controlnet.generation.job import Job


def latents(generator: Generator, asked: Job, first: Image.Image | None = None) -> list[torch.Tensor]:
    """The final latents of each picture; with a second pass, those of both. The picture `first` replaces the first."""
    made: list[torch.Tensor] = []
    decode = painting.decode

    def watched(given: torch.Tensor, *others: Any) -> Image.Image:
        made.append(given)
        return first if first is not None and len(made) == 1 else decode(given, *others)

    with mock.patch.object(painting, "decode", watched):
        generator.generate(asked)
    return made


def pipeline_for(generator: Generator, asked: Job) -> Any:
    """The pipeline that paints a job."""
    bundle = generator.bundle
    nets = {net: generator.controlnets[net] for net in (bundle.conditioners[name].net for name in asked.conditioners)}
    with generator.speedups.lent(generator.base, nets, asked.guided) as models:
        return painting._Pass(asked, bundle.family, bundle.conditioners, models, {}).pipeline()
