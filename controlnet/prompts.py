"""Prompts as embeddings, used whole whatever their length."""

import torch
from transformers import CLIPTextModel, CLIPTokenizer

MOST_CHUNKS = 20
"""Longest prompt, in lengths of the text encoder. Every step attends to all of it: one request could hold the GPU."""

LONGEST_TOKEN = 32  # characters; no token of CLIP's is longer


class PromptError(ValueError):
    """A prompt is too long; the message says by how much."""


@torch.no_grad()
def encode_prompts(
    prompt: str, negative_prompt: str, tokenizer: CLIPTokenizer, text_encoder: CLIPTextModel
) -> tuple[torch.Tensor, torch.Tensor]:
    """Embeddings of both prompts, each (1, chunks × length, d), with as many chunks for one as for the other.

    CLIP reads `length` tokens at a time (77 for Stable Diffusion, begin and end marks included). A longer prompt is cut
    into chunks of that length, encoded one by one, and joined again for cross-attention, which takes any length
    (the method that AUTOMATIC1111's web UI introduced). A prompt of one chunk gives what the pipelines compute
    themselves. Raises PromptError beyond MOST_CHUNKS chunks.
    """
    chunks = [_chunks(text, tokenizer) for text in (prompt, negative_prompt)]
    longest = max(len(own) for own in chunks)
    blank = _chunks("", tokenizer)
    embeddings = []
    for own in chunks:
        ids = torch.tensor(own + blank * (longest - len(own)), device=text_encoder.device)
        hidden = text_encoder(ids).last_hidden_state
        embeddings.append(hidden.reshape(1, -1, hidden.shape[-1]))
    return embeddings[0], embeddings[1]


def _chunks(text: str, tokenizer: CLIPTokenizer) -> list[list[int]]:
    """Token ids in rows of the model's length, each with its begin and end mark and padded; at least one row."""
    room = tokenizer.model_max_length - 2
    if len(text) > MOST_CHUNKS * room * LONGEST_TOKEN:
        raise _too_long(f"{len(text)} characters", room)  # not even counted: tokenizing it would take its time too
    # verbose=False: the tokenizer would warn that the text is too long for one row, which is what the rows are for
    ids = tokenizer(text, add_special_tokens=False, verbose=False).input_ids
    if len(ids) > MOST_CHUNKS * room:
        raise _too_long(f"{len(ids)} tokens", room)
    rows = [ids[start : start + room] for start in range(0, max(len(ids), 1), room)]
    marked = [[tokenizer.bos_token_id, *row, tokenizer.eos_token_id] for row in rows]
    return [row + [tokenizer.pad_token_id] * (tokenizer.model_max_length - len(row)) for row in marked]


def _too_long(got: str, room: int) -> PromptError:
    return PromptError(
        f"A prompt may have at most {MOST_CHUNKS * room} tokens (a word is one or two), this one has {got}: shorten it."
    )
