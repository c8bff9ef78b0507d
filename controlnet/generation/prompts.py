"""Prompts as embeddings: long prompts are used to their end, and words can have weights."""

import re
from itertools import groupby

import torch
from transformers import CLIPTextModel, CLIPTokenizer

MOST_CHUNKS = 20
"""Longest prompt, in lengths of the text encoder. Every step attends to all of it: a longer one could block the GPU."""

LONGEST_TOKEN = 32  # characters; CLIP has no longer token

HEAVIEST = 3.0
"""Largest weight of a word. A larger number is hardly meant as a weight, such as in (16:9)."""

BRACKETS = {"(": 1.1, "[": 1 / 1.1}
"""For each opening bracket the factor of the weight, unless a number is given."""

OPENING = {")": "(", "]": "["}

# This parser is our own. compel (2.5.1) runs with the pinned versions but reads another syntax, (word)1.2 and word++.
# sd_embed is not on a package index.
#
# MARK matches an escaped mark, a bracket, or a closing bracket with its number. No two repeats can match the same
# characters: otherwise a malicious prompt could take minutes.
MARK = re.compile(r"\\[\\()\[\]] | [()\[\]] | :\s* ([+-]? (?: \d+ (?:\.\d*)? | \.\d+ )) \s*\)", re.VERBOSE)


class PromptError(ValueError):
    """A prompt is too long or its weights are too large, or clip_skip is out of range. The message says by how much."""


@torch.no_grad()
def encode_prompts(
    prompt: str, negative_prompt: str, tokenizer: CLIPTokenizer, text_encoder: CLIPTextModel, clip_skip: int = 1
) -> tuple[torch.Tensor, torch.Tensor]:
    """Embeddings of both prompts, each (1, chunks × length, d), with the same number of chunks.

    CLIP reads `length` tokens at a time (77 for Stable Diffusion, including the begin and end tokens). A longer prompt
    is cut into chunks of that length. They are encoded one by one and joined for cross-attention, which takes any
    length. AUTOMATIC1111's web UI introduced this method. A prompt of one chunk without weights gives the same
    embedding as diffusers' pipelines.

    `weighted_parts` explains the weights. Every token's embedding is multiplied by its weight. Then the chunk is scaled
    back to its original mean magnitude, so weights shift the balance of the words but not the strength of the whole.

    `clip_skip` counts like the web UI: 1 takes the last layer, 2 the one before it, up to the number of layers of the
    encoder. The final layer norm is always applied. (diffusers counts from 0, so its clip_skip=1 is 2 here.) Most anime
    models are trained with 2, and the lineart_anime ControlNet is meant for them.

    Raises PromptError for more than MOST_CHUNKS chunks, for weights outside 0–HEAVIEST, and for a clip_skip beyond the
    layers of the text encoder.
    """
    layers = text_encoder.config.num_hidden_layers
    if clip_skip not in range(1, layers + 1):
        raise PromptError(
            f"clip_skip must be from 1 (the last layer) to {layers}, because this bundle's text encoder has {layers} "
            f"layers, but it is {clip_skip}."
        )
    chunks = [_chunks(text, tokenizer) for text in (prompt, negative_prompt)]
    longest = max(len(own) for own in chunks)
    blank = _chunks("", tokenizer)
    embeddings = []
    for own in chunks:
        tokens = own + blank * (longest - len(own))
        ids = torch.tensor([[token for token, _ in row] for row in tokens], device=text_encoder.device)
        weights = torch.tensor([[weight for _, weight in row] for row in tokens], device=text_encoder.device)
        hidden = _weigh(_hidden(ids, text_encoder, clip_skip), weights)
        embeddings.append(hidden.reshape(1, -1, hidden.shape[-1]))
    return embeddings[0], embeddings[1]


def weighted_parts(prompt: str) -> list[tuple[str, float]]:
    r"""The prompt without its marks, cut at each change of the weight: non-empty texts and their weights.

    The syntax is that of AUTOMATIC1111's web UI (modules/prompt_parser.py there). (word:1.2) has weight 1.2, (word) has
    1.1 and [word] has 1/1.1. Nested weights multiply. \( \) \[ \] \\ stand for the plain characters. Weights are
    rounded to six digits, so (([[word]])) has weight 1 again. There are two differences from the web UI. A bracket
    without its partner is plain text (there, an opening one weights everything after it). And [a:b:0.5], [a|b], AND and
    BREAK have no special meaning.

    Takes time proportional to the length. Raises PromptError for a weight outside 0–HEAVIEST.
    """
    marks = list(MARK.finditer(prompt))
    factors = _factors(marks)
    # One stack for each type of bracket, because they may overlap. The weight is the product of both tops.
    products = {bracket: [1.0] for bracket in BRACKETS}
    pieces: list[tuple[str, float]] = []

    def add(text: str) -> None:
        if text:
            pieces.append((text, round(products["("][-1] * products["["][-1], 6)))

    end = 0
    for i, mark in enumerate(marks):
        add(prompt[end : mark.start()])
        end = mark.end()
        symbol = mark[0][-1]
        if mark[0].startswith("\\"):
            add(symbol)
        elif i not in factors:
            add(mark[0])
        elif symbol in BRACKETS:
            products[symbol].append(products[symbol][-1] * factors[i])
        else:
            products[OPENING[symbol]].pop()
    add(prompt[end:])
    parts = [("".join(text for text, _ in run), weight) for weight, run in groupby(pieces, key=lambda piece: piece[1])]
    for text, weight in parts:
        if not 0 <= weight <= HEAVIEST:
            raise PromptError(
                f'Weights in a prompt must be 0 to {HEAVIEST:g} (nested ones multiply), but "{text.strip()[:30]}" has '
                rf"{weight:g}: choose one in that range, or write \( and \) if the brackets are meant as text."
            )
    return parts


def _factors(marks: list[re.Match[str]]) -> dict[int, float]:
    """Index of the mark → factor of the weight, for all brackets that have a partner."""
    opened: dict[str, list[int]] = {bracket: [] for bracket in BRACKETS}
    factors = {}
    for i, mark in enumerate(marks):
        symbol = mark[0][-1]
        if mark[0].startswith("\\"):
            continue
        if symbol in BRACKETS:
            opened[symbol].append(i)
        elif opened[OPENING[symbol]]:
            factor = float(mark[1]) if mark[1] else BRACKETS[OPENING[symbol]]
            factors[opened[OPENING[symbol]].pop()] = factors[i] = factor
    return factors


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


def _chunks(text: str, tokenizer: CLIPTokenizer) -> list[list[tuple[int, float]]]:
    """Tokens with their weights, in one or more rows of the model's length: begin token, text, end token, padding."""
    room = tokenizer.model_max_length - 2
    if len(text) > MOST_CHUNKS * room * LONGEST_TOKEN:
        raise _too_long(f"{len(text)} characters", room)  # not counted, because tokenizing it would take too long
    tokens = _tokens(text, tokenizer)
    if len(tokens) > MOST_CHUNKS * room:
        raise _too_long(f"{len(tokens)} tokens", room)
    rows = [tokens[start : start + room] for start in range(0, max(len(tokens), 1), room)]
    begin, end, blank = (
        (token, 1.0) for token in (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
    )
    marked = [[begin, *row, end] for row in rows]
    return [row + [blank] * (tokenizer.model_max_length - len(row)) for row in marked]


def _tokens(text: str, tokenizer: CLIPTokenizer) -> list[tuple[int, float]]:
    parts = weighted_parts(text)
    if not parts:
        return []
    # verbose=False, because the tokenizer would warn that the text is too long for one row
    ids = tokenizer([part for part, _ in parts], add_special_tokens=False, verbose=False).input_ids
    return [(token, weight) for own, (_, weight) in zip(ids, parts, strict=True) for token in own]


def _too_long(got: str, room: int) -> PromptError:
    return PromptError(
        f"A prompt may have at most {MOST_CHUNKS * room} tokens (a word is one or two), but it has {got}: shorten it."
    )
