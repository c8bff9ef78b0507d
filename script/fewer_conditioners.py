"""A manifest with some of its conditioners, for a bundle that is smaller on disk (script/make-random-bundle)."""

import re
import tomllib
from collections.abc import Collection

from controlnet.maps.annotators import ANNOTATORS
from controlnet.weights.manifest import Manifest

_HEADER = re.compile(r"^(?=\[)", re.MULTILINE)


def parts_of_others(manifest: Manifest, conditioners: Collection[str]) -> set[str]:
    """Names of the parts that only other conditioners need. Raises ValueError for one that the bundle does not have."""
    if unknown := [name for name in conditioners if name not in manifest.conditioners]:
        raise ValueError(f"--conditioners: expected some of {', '.join(manifest.conditioners)}; got {unknown[0]}.")
    needed, others = set[str](), set[str]()
    for name, entry in manifest.conditioners.items():
        parts = {part for kind in entry.annotators.values() for part in ANNOTATORS[kind].parts}
        (needed if name in conditioners else others).update(parts, {entry.part})
    return others - needed


def without(text: str, parts: Collection[str], conditioners: Collection[str]) -> str:
    """The text of a manifest without some parts and conditioners. They are written as in weights/*.toml.

    That is, [[parts]] with a name, and either [conditioners.<name>] or a line each in [conditioners].
    """
    kept = []
    for block in _HEADER.split(text):
        table = tomllib.loads(block)
        if any(part["name"] in parts for part in table.get("parts", [])):
            continue
        if block.startswith("[conditioners]"):
            block = "".join(line for line in block.splitlines(keepends=True) if _key(line) not in conditioners)
        elif any(name in conditioners for name in table.get("conditioners", {})):
            continue
        kept.append(block)
    return "".join(kept)


def _key(line: str) -> str:
    return line.partition("=")[0].strip()
