"""Bundles that extend a small random sd15: how they are opened, and a picture made with one of their ControlNets."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image

from controlnet.bundle import Bundle, open_bundle
from controlnet.generation.generator import Generator
from controlnet.generation.job import Job
from controlnet.maps.controls import Control
from controlnet.settings import Settings


def folder_with(sd15_root: Path, folder: Path) -> Path:
    """A new folder of weights with the small sd15, to which bundles can be added."""
    root = folder / "weights"
    root.mkdir()
    (root / "sd15").symlink_to(sd15_root / "sd15")
    shutil.copy(sd15_root / "sd15.toml", root)
    return root


def opened(root: Path, name: str = "realistic") -> Bundle:
    return open_bundle(Settings(bundle=name), root)


def picture(bundle: Bundle, conditioner: str = "canny") -> bytes:
    """Made in two steps at the bundle's clip_skip. The conditioner's net is the only one that is opened."""
    bundle.manifest = replace(bundle.manifest, conditioners={conditioner: bundle.manifest.conditioners[conditioner]})
    white = Control(conditioner, Image.new("RGB", (64, 64), "white"))
    values: dict[str, Any] = {"num_outputs": 1, "num_inference_steps": 2, "guidance_scale": 3.0, "scheduler": "DDIM"}
    job = Job("a red ball", "", (white,), **values, seed=1, clip_skip=bundle.defaults.clip_skip)
    return Generator(bundle).generate(job)[0].tobytes()
