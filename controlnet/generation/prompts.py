"""Prompts as embeddings: long prompts are used to their end, and words can have weights."""

from typing import Any

import torch
from transformers import CLIPTextModel, CLIPTokenizer

from controlnet.models.tokens import chunks_of

Embeddings = tuple[torch.Tensor, torch.Tensor]
"""Of a prompt and of a negative prompt, each (1, chunks × length, d), with the same number of chunks."""
RECENT = 8
"""How many pairs of prompts RecentEmbeddings keeps: 4 MB for Stable Diffusion in float32, at most 76 MB if all are of
the largest length."""


class RecentEmbeddings:
    """encode_prompts() for the same models at every call. The pairs of the last RECENT calls are not encoded again.

    A prompt is always encoded together with its negative prompt, and kept with it. So its bytes are those of the pair,
    and do not depend on earlier requests. Only complete pairs are kept, so a cancelled request cannot leave a part.
    """

    def __init__(self, tokenizer: CLIPTokenizer, text_encoder: CLIPTextModel) -> None:
        self.models = tokenizer, text_encoder
        self._pairs: dict[Any, Embeddings] = {}

    def of(self, prompt: str, negative_prompt: str, clip_skip: int = 1) -> Embeddings:
        """The same tensors for the same pair, so they must not be changed in place."""
        key = prompt, negative_prompt, clip_skip
        pair = self._pairs.pop(key, None) or encode_prompts(prompt, negative_prompt, *self.models, clip_skip)
        self._pairs[key] = pair  # the newest is the last
        for oldest in list(self._pairs)[:-RECENT]:
            del self._pairs[oldest]
        return pair


@torch.no_grad()
def encode_prompts(
    prompt: str, negative_prompt: str, tokenizer: CLIPTokenizer, text_encoder: CLIPTextModel, clip_skip: int = 1
) -> Embeddings:
    """Embeddings of both prompts, in one pass of the text encoder.

    CLIP reads `length` tokens at a time (77 for Stable Diffusion, including the begin and end tokens). A longer prompt
    is cut into chunks of that length. They are encoded in one batch and joined for cross-attention, which takes any
    length. AUTOMATIC1111's web UI introduced this method. A prompt of one chunk without weights gives the same
    embedding as diffusers' pipelines.

    tokens.weighted_parts explains the weights. Every token's embedding is multiplied by its weight. Then the chunk is
    scaled back to its original mean magnitude, so weights shift the balance of the words but not the strength of the
    whole.

    `clip_skip` counts like the web UI: 1 takes the last layer, 2 the one before it, up to the number of layers of the
    encoder. The final layer norm is always applied. (diffusers counts from 0, so its clip_skip=1 is 2 here.) Most anime
    models are trained with 2, and the lineart_anime ControlNet is meant for them.

    read_request has already refused prompts and values of clip_skip that have a tokens.prompt_fault.
    """
    chunks = [chunks_of(text, tokenizer) for text in (prompt, negative_prompt)]
    longest = max(len(own) for own in chunks)
    blank = chunks_of("", tokenizer)
    tokens = [row for own in chunks for row in own + blank * (longest - len(own))]
    ids = torch.tensor([[token for token, _ in row] for row in tokens], device=text_encoder.device)
    weights = torch.tensor([[weight for _, weight in row] for row in tokens], device=text_encoder.device)
    hidden = _weigh(_hidden(ids, text_encoder, clip_skip), weights)
    positive, negative = hidden.chunk(2)
    return positive.reshape(1, -1, hidden.shape[-1]), negative.reshape(1, -1, hidden.shape[-1])


def _hidden(ids: torch.Tensor, text_encoder: CLIPTextModel, clip_skip: int) -> torch.Tensor:
    if clip_skip == 1:
        return text_encoder(ids).last_hidden_state
    states = text_encoder(ids, output_hidden_states=True).hidden_states
    return text_encoder.final_layer_norm(states[-clip_skip])


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
