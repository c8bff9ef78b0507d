"""The code in README.md and docs/."""

import re
from dataclasses import dataclass

from support import ROOT

PAGES = ("README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")))


@dataclass(frozen=True)
class Block:
    """A block of code in a page."""

    page: str
    """Such as "docs/usage.md"."""
    language: str
    mark: str
    """What follows the language, which no page shows: see tests/product/test_snippets.py. "" for most."""
    text: str


def blocks(*pages: str) -> list[Block]:
    """The blocks of code in these pages, in their order."""
    found = []
    for page in pages:
        text = (ROOT / page).read_text(encoding="utf-8")
        for language, mark, code in re.findall(r"^```(\w*) ?([^\n]*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
            found.append(Block(page, language, mark, code))
    return found


def snippet(page: str, language: str, word: str) -> str:
    """The only block of code in a page that is in `language` and contains `word`."""
    (found,) = (block.text for block in blocks(page) if block.language == language and word in block.text)
    return found
