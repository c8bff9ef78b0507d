"""The tables of the README and of docs/ are those that script/write-tables writes, and all links lead somewhere."""

import re
from pathlib import Path

import pytest
from strip import LORA_PROMPT, REFERENCE_PROMPT, STRIPS, UNCONVINCING
from support import ROOT
from tables import PAGES, TABLES, with_tables

from controlnet.serving.schema import openapi_schema

FIRST_SCREEN = 350
"""Words before the second heading of the README: more than that is scrolled past."""


def test_the_tables_are_current_and_each_is_in_one_page() -> None:
    texts = [page.read_text(encoding="utf-8") for page in PAGES]
    assert [with_tables(text) for text in texts] == texts, "run script/write-tables"
    for name, make in TABLES.items():
        assert "".join(texts).count(f"<!-- {name}:begin -->") == 1, name
        assert make().count("\n") >= 3 and make() in "".join(texts)


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CONTRIBUTING.md"], ids=lambda page: page.name)
def test_links_lead_to_files(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for link in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", text):
        assert link.startswith("https://") or (page.parent / link).exists(), link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_strip_stands_beside_its_prompts_and_its_command(page: Path) -> None:
    text = " ".join(page.read_text(encoding="utf-8").split())
    for name in re.findall(r"examples/strip-(\w+)\.jpg", text):
        assert name not in UNCONVINCING
        if name != "upscale":  # an example of inputs.md, below its command
            special = {"night": (LORA_PROMPT,), "reference": (REFERENCE_PROMPT,)}
            prompts = special[name] if name in special else STRIPS[name][1]
            assert all(prompt in text for prompt in prompts) and f"`script/make-strip {name}`" in text, name


def test_every_page_is_linked_from_the_readme() -> None:
    readme = PAGES[0].read_text(encoding="utf-8")
    assert [page.name for page in PAGES[1:] if f"(docs/{page.name})" not in readme] == []


def test_every_input_has_its_section() -> None:
    headings = re.findall(r"^### (.*)$", (ROOT / "docs/inputs.md").read_text(encoding="utf-8"), re.MULTILINE)
    described = [name for heading in headings for name in re.findall(r"`(\w+)`", heading)]
    properties = openapi_schema((ROOT / "predict.py").read_text())["components"]["schemas"]["Input"]["properties"]
    assert sorted(described) == sorted(properties)


def test_the_first_screen_is_short() -> None:
    first = PAGES[0].read_text(encoding="utf-8").split("\n## ")[:2]
    assert len(" ".join(first).split()) <= FIRST_SCREEN
