"""Which bundle is at work. Imports no models: the scripts ask before they start anything."""

from collections.abc import Mapping
from pathlib import Path

from controlnet.weights.manifest import WEIGHTS, Manifest

BUNDLE = "CONTROLNET_BUNDLE"
"""Environment variable: the bundle's name."""
FULL, EMBEDDED = "sd15", "tiny"


def choose_bundle(environ: Mapping[str, str], root: Path = WEIGHTS) -> tuple[str, str]:
    """The bundle's name, and one line that says why it was chosen; empty where the environment names it."""
    if named := environ.get(BUNDLE):
        return named, ""
    full = Manifest.read(root / f"{FULL}.toml")
    # One file is enough: if others are missing or wrong, that is said at the start, not passed over by taking tiny.
    if not any((root / FULL / path).exists() for path in full.paths):
        return EMBEDDED, f"{BUNDLE} is not set and the {FULL} weights are not there: script/download-weights {FULL}"
    return FULL, f"{BUNDLE} is not set and the {FULL} weights are there"
