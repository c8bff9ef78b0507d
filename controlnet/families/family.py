"""What a model family has to say, and the list of families."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from transformers import PreTrainedModel

from controlnet.models.lora import Base
from controlnet.weights.toml_table import ManifestError

Embeddings = Mapping[str, torch.Tensor]
"""Of a prompt and of a negative prompt, as the keyword arguments of the family's pipelines that take them. The names of
those of the negative prompt begin with "negative_". All have a batch of 1."""
NAMES = ("sd15", "sdxl")
"""Also the names of their modules."""


@dataclass(frozen=True)
class Family:
    """How the models of a family are put together. Its module in this package defines one as FAMILY."""

    title: str
    """Its name in sentences (script/import-checkpoint)."""
    texts: Mapping[str, type]
    """The classes of its tokenizers and text encoders, by the names of their parts."""
    encode: Callable[[Base, str, str, int], Embeddings]
    """encode(base, prompt, negative prompt, clip_skip)."""
    from_noise: type
    """The pipeline for pictures that begin with noise alone."""
    from_picture: type
    """The pipeline for pictures that begin with an initial picture."""
    without: Mapping[str, Any]
    """Arguments of both that leave out what this project does itself."""
    upcasts_vae: bool
    """Whether its pipelines compute in float32 with a VAE whose configuration says force_upcast."""
    texts_wait: bool
    """Whether in low-memory mode the text encoders, too, are on the GPU only while they are used, and the annotators
    never. With one ControlNet for all conditioners, little else can wait."""
    window: float
    """Sides of the windows in which the UNet sees a large picture, as a multiple of what it was trained on."""

    @property
    def encoders(self) -> list[str]:
        """The names of its text encoders."""
        return [name for name, kind in self.texts.items() if issubclass(kind, PreTrainedModel)]


def family_of(name: str) -> Family:
    """The family that a manifest names. Raises ManifestError for another name."""
    if name not in NAMES:
        raise ManifestError(f"family: expected one of {', '.join(NAMES)}, got {name!r}.")
    return import_module(f"{__package__}.{name}").FAMILY
