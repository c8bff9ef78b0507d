"""Prompts in the syntax of other tools, which is literal text here: found, to tell whoever moves here what to use.

Names of embeddings look like any other word, so they are found only as ComfyUI writes them.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

LONGEST_SHOWN = 40
"""Characters of a prompt that are repeated."""


@dataclass(frozen=True)
class _Mark:
    pattern: str
    """No two repetitions in it match the same characters, or a malicious prompt could take minutes."""
    instead: str
    shouted: bool = False
    """Whether it is a word in capitals, which says nothing in a prompt that is all in capitals."""


_MARKS = (
    _Mark(r"<(?:lora|lyco|hypernet):[^<>]*>", "name its file in lora_weights, and its strength in lora_scale"),
    _Mark(r"\bembedding:[\w./-]+", "there are no embeddings: describe it, or use a LoRA in lora_weights"),
    _Mark(r"\bBREAK\b", "leave it out: a long prompt is cut where it has to be", shouted=True),
    _Mark(r"\bAND\b", "one prompt is for the whole picture: join with commas, weigh as (word:1.3)", shouted=True),
    _Mark(r"(?<!\\)\[[^\[\]]*:\s*+[\d.]++\s*+\]", "the prompt is the same at all steps; (word:0.7) weighs a word less"),
    _Mark(r"(?<!\\)\[[^\[\]|]*\|[^\[\]]*\]", "the prompt is the same at all steps: choose one"),
    _Mark(r"\{[^{}]+\}", "nothing is drawn or weighed: choose one, or write (word:1.3)"),
    _Mark(r"__\w[\w/-]*?__", "wildcards are not filled in: write a word"),
)
"""Of AUTOMATIC1111's web UI, ComfyUI, NovelAI and Dynamic Prompts."""


def literal_marks(prompts: Sequence[str]) -> Iterator[str]:
    """For each kind of mark in the prompts: the first one, and in brackets what to use instead."""
    for mark in _MARKS:
        texts = [text for text in prompts if not mark.shouted or text != text.upper()]
        if found := next(filter(None, (re.search(mark.pattern, text) for text in texts)), None):
            text = "".join(letter if letter.isprintable() else " " for letter in found[0])  # on one line
            text = text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}…"
            yield f"{text} ({mark.instead})"
