"""Small random bundles of both families with an adapter for reference pictures, in the real file layout."""

import zlib
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from random_bundle import SIZES, write_adapter, write_part
from random_models import build

from controlnet.bundle import Bundle
from controlnet.settings import Settings
from controlnet.weights.manifest import WEIGHTS, Manifest

NETS = tuple(f"controlnet/{name}" for name in ("canny", "scribble", "tile", "union"))


def write(name: str, root: Path, plus: bool = True) -> Manifest:
    """Write the parts that pictures with a reference need, and return their manifest. `plus`: as published."""
    manifest = Manifest.read(WEIGHTS / f"{name}.toml", {}, True)
    for part in manifest.needed_parts:
        if not part.name.startswith(("annotator/", "controlnet/")) or part.name in NETS:
            write_part(part, root / name, SIZES[name][True], zlib.crc32(part.name.encode()))
    if not plus:
        file, sizes = root / name / manifest.part("ip_adapter").paths[0], SIZES[name][True]
        encoder: Any = build("image_encoder", sizes)
        write_adapter(file, build("unet", sizes), encoder.config, 3)
    return manifest


def opened(manifest: Manifest, root: Path, **settings: Any) -> Bundle:
    """It has CUDA graphs if there is a GPU."""
    return _Few(manifest, root, torch.device("cpu"), torch.float32, settings=Settings(**settings), graphs=True)


class _Few(Bundle):
    """With those conditioners alone whose nets are written."""

    @property
    def conditioners(self) -> Any:
        return {name: each for name, each in super().conditioners.items() if each.part in NETS}


def photo(seed: int, size: tuple[int, int] = (90, 60)) -> Image.Image:
    """A picture of coarse squares."""
    noise = torch.randint(0, 256, (3, 5, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    return Image.fromarray(noise.numpy()).resize(size, Image.Resampling.NEAREST)
