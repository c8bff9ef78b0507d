"""What a generator makes before it is decoded."""

from typing import Any

import torch

from controlnet.generation.generator import Generator
from controlnet.generation.job import Job


def latents(generator: Generator, asked: Job) -> list[torch.Tensor]:
    """The final latents of each picture; with a second pass, those of both."""
    made: list[torch.Tensor] = []
    decode: Any = generator._decode
    generator._decode = lambda given, pipeline: made.append(given) or decode(given, pipeline)  # type: ignore[method-assign]
    try:
        generator.generate(asked)
    finally:
        del generator._decode
    return made
