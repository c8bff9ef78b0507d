"""Which bundle is at work. Imports no models: the scripts ask before they start anything."""

from collections.abc import Mapping
from pathlib import Path

from controlnet.manifest import WEIGHTS, Manifest
from controlnet.weights import WeightsError, check

BUNDLE = "CONTROLNET_BUNDLE"
"""Environment variable: the bundle's name."""
FULL, EMBEDDED = "sd15", "tiny"


def choose_bundle(environ: Mapping[str, str], root: Path = WEIGHTS) -> tuple[str, str]:
    """The bundle's name, and one line that says why it was chosen; empty where the environment names it."""
    if named := environ.get(BUNDLE):
        return named, ""
    try:
        check(Manifest.read(root / f"{FULL}.toml"), root)
    except WeightsError:
        return EMBEDDED, f"{BUNDLE} is not set and the {FULL} weights are not there: script/download-weights {FULL}"
    return FULL, f"{BUNDLE} is not set and the {FULL} weights are there"
