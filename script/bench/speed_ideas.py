"""Each of the exact speedups alone, for script/bench/speed: the others are switched off for a run."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

from diffusers.models.attention import BasicTransformerBlock, FeedForward
from diffusers.models.attention_processor import Attention
from diffusers.models.controlnets.controlnet import ControlNetConditioningEmbedding
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.upsampling import Upsample2D

from controlnet.generation.generator import Generator
from controlnet.generation.prompts import encode_prompts
from controlnet.models import exact
from controlnet.speedups.replaced import FOR_ONE_HALF, FORMS


@dataclass(frozen=True)
class Idea:
    """Work that is left out."""

    name: str
    classes: tuple[type, ...] = ()
    """Layers of diffusers that get their exact form."""
    hints: bool = False
    """Whether the composite gives a net the same tensor at every step."""
    prompts: bool = False
    """Whether the embeddings of recent prompts are kept."""


IDEAS = (
    Idea("none"),
    Idea("recent prompts kept", prompts=True),
    Idea("control map embedded once", (ControlNetConditioningEmbedding,), hints=True),
    Idea("keys and values of the prompts once", (Attention,)),
    Idea("the same, and what precedes them once for both halves", FOR_ONE_HALF),
    Idea("ResNet layers: no divisions by 1, one activation of the time, sums in place", (ResnetBlock2D,)),
    Idea("transformer blocks: sums in place", (BasicTransformerBlock,)),
    Idea("feed-forward layers some rows at a time", (FeedForward,)),
    Idea("upsampling in four phases", (Upsample2D,)),
    Idea("all", tuple(FORMS), hints=True, prompts=True),
)


@contextmanager
def only(generator: Generator, idea: Idea) -> Iterator[None]:
    """Inside the block, the generator's requests leave out the work of this idea and no other."""
    pipeline, embeddings = generator._pipeline, generator._embeddings

    def piped(job: Any, nets: Any, hints: Any, one_half: bool, base: Any) -> Any:
        return pipeline(job, nets, hints if idea.hints else None, one_half, base)

    def embedded(job: Any, base: Any) -> Any:
        if idea.prompts:
            return embeddings(job, base)
        return encode_prompts(job.prompt, job.negative_prompt, *generator._recent.models, job.clip_skip)

    with ExitStack() as patches:
        patches.enter_context(patch.object(exact, "FORMS", {own: FORMS[own] for own in idea.classes}))
        patches.enter_context(patch.object(generator, "_pipeline", piped))
        patches.enter_context(patch.object(generator, "_embeddings", embedded))
        yield
