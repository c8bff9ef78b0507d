"""Prompts as embeddings: long prompts are used to their end, and words can have weights."""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from controlnet.families.family import Embeddings
from controlnet.families.recent import Recent
from controlnet.models.tokens import chunks_of


class RecentEmbeddings:
    """A family's embeddings, with the same models at every call. Recent pairs are not encoded again.

    A prompt is always encoded together with its negative prompt, and kept with it. So its bytes are those of the pair,
    and do not depend on earlier requests. All take 4 MB for Stable Diffusion 1.5 in float32, at most 76 MB if they are
    of the largest length. For Stable Diffusion XL it is 2.7 times as much.
    """

    def __init__(self, encode: Callable[[str, str, int], Embeddings]) -> None:
        self.encode = encode
        self._pairs = Recent[Embeddings]()

    def of(self, prompt: str, negative_prompt: str, clip_skip: int = 1) -> Embeddings:
        """The same tensors for the same pair, so they must not be changed in place."""
        key = prompt, negative_prompt, clip_skip
        return self._pairs.of(key, lambda: self.encode(*key))


def encode_chunks(
    prompts: Sequence[str],
    tokenizer: Any,
    text_encoder: Any,
    read: Callable[[torch.Tensor], torch.Tensor],
) -> list[torch.Tensor]:
    """The embeddings of prompts, each (1, chunks × length, d) with the same number of chunks, in one pass.

    CLIP reads `length` tokens at a time (77 for Stable Diffusion, including the begin and end tokens). A longer prompt
    is cut into chunks of that length. They are encoded in one batch and joined for cross-attention, which takes any
    length. AUTOMATIC1111's web UI introduced this method. A prompt of one chunk without weights gives the same
    embedding as diffusers' pipelines.

    `read` runs the text encoder on all chunks' tokens, (chunks, length), prompt after prompt, and returns the layer
    that counts, (chunks, length, d).

    tokens.weighted_parts explains the weights. Every token's embedding is multiplied by its weight. Then the chunk is
    scaled back to its original mean magnitude, so weights shift the balance of the words but not the strength of the
    whole.

    read_request has already refused prompts that have a tokens.prompt_fault.
    """
    chunks = [chunks_of(text, tokenizer) for text in prompts]
    longest = max(len(own) for own in chunks)
    blank = chunks_of("", tokenizer)
    tokens = [row for own in chunks for row in own + blank * (longest - len(own))]
    ids = torch.tensor([[token for token, _ in row] for row in tokens], device=text_encoder.device)
    weights = torch.tensor([[weight for _, weight in row] for row in tokens], device=text_encoder.device)
    hidden = _weigh(read(ids), weights)
    return [own.reshape(1, -1, hidden.shape[-1]) for own in hidden.chunk(len(prompts))]


def _weigh(hidden: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """`hidden` (chunks, length, d) times `weights` (chunks, length). Chunks whose weights are all 1 stay bit-identical.

    The web UI (modules/sd_emphasis.py) restores the mean instead of the mean magnitude. tiny's embeddings have a mean
    near zero, which makes the quotient of the means noise: −0.1 to 351 for captions with one weighted word. The
    quotient of the mean magnitudes is 0.97 to 1.04. If all tokens have the same mean and magnitude, both quotients are
    the reciprocal of the average weight.
    """
    before = hidden.float()
    after = before * weights.unsqueeze(-1)
    scale = before.abs().mean((1, 2), keepdim=True) / after.abs().mean((1, 2), keepdim=True)
    return (after * scale).to(hidden.dtype)
