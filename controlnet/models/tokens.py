"""Prompts as weighted tokens: the syntax of weights, chunks of the text encoder's length, and their limits."""

import re
from collections.abc import Sequence
from itertools import groupby

from transformers import CLIPTokenizer

MOST_CHUNKS = 20
"""Longest prompt, in lengths of the text encoder. Every step attends to all of it: a longer one could block the GPU."""

LONGEST_TOKEN = 32  # characters; CLIP has no longer token

HEAVIEST = 3.0
"""Largest weight of a word. A larger number is probably not meant as a weight, as in (16:9)."""

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
    """A prompt is too long or its weights are too large; the message says by how much."""


def prompt_fault(prompts: Sequence[str], clip_skip: int, tokenizer: CLIPTokenizer, layers: int) -> str | None:
    """A sentence that says why these prompts or this clip_skip cannot be used, and what to do; None if they can.

    `layers` is how many the text encoder has. clip_skip is from 1, the last layer, to that number.
    """
    if clip_skip not in range(1, layers + 1):
        return (
            f"clip_skip must be from 1 (the last layer) to {layers}, because this bundle's text encoder has {layers} "
            f"layers, but it is {clip_skip}."
        )
    try:
        for text in prompts:
            chunks_of(text, tokenizer)
    except PromptError as error:
        return str(error)
    return None


def chunks_of(text: str, tokenizer: CLIPTokenizer) -> list[list[tuple[int, float]]]:
    """Tokens with their weights, in one or more rows of the model's length: begin token, text, end token, padding.

    Raises PromptError for more than MOST_CHUNKS rows, and for weights outside 0–HEAVIEST.
    """
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
