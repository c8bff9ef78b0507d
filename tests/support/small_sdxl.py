"""A small random Stable Diffusion XL in the files of the bundle sdxl, without annotators and with a further net."""

import zlib
from dataclasses import replace
from pathlib import Path

import torch
from random_bundle import SIZES, write_part

from controlnet.bundle import Bundle
from controlnet.settings import Settings
from controlnet.weights.manifest import WEIGHTS, Manifest

SINGLE = "scribble"
"""The conditioner whose net is a ControlNet of its own. All others share the union."""


def write(root: Path) -> Manifest:
    """Write the parts, and return their manifest."""
    manifest = Manifest.read(WEIGHTS / "sdxl.toml", {})
    union = manifest.part("controlnet/union")
    single = replace(union, name=f"controlnet/{SINGLE}")
    entries = manifest.conditioners
    entry = replace(entries[SINGLE], net=SINGLE, type=None)
    manifest = replace(manifest, parts=(*manifest.parts, single), conditioners=entries | {SINGLE: entry})
    for part in manifest.needed_parts:
        if not part.name.startswith("annotator/"):
            write_part(part, root / manifest.name, SIZES["sdxl"][True], zlib.crc32(part.name.encode()))
    return manifest


def opened(manifest: Manifest, root: Path, settings: Settings = Settings()) -> Bundle:
    """It has CUDA graphs if there is a GPU."""
    return Bundle(manifest, root, torch.device("cpu"), torch.float32, settings=settings, graphs=True)
