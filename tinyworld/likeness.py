"""Measures how far a picture takes the colours of its reference picture, and whether it still obeys its control map.

Map and reference are of different held-out scenes, and the prompt, the map's scene's own, names no colour.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import islice

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from scipy.spatial.distance import cdist
from skimage.color import rgb2lab

from controlnet.families.family import Embeddings
from controlnet.generation.job import Job
from controlnet.models.lora import Base
from tinyworld import evaluate
from tinyworld.cases import held_out
from tinyworld.evaluate import OTHERS, arguments_of, open_all, small
from tinyworld.judge import Judge
from tinyworld.painter import Painter
from tinyworld.scene import colourless

SIDE = 32
"""Pixels to a side of the pictures whose palettes are compared: smaller differences than these are no colours."""


@dataclass(frozen=True)
class Likeness:
    """Means over the scenes."""

    nearer: float
    """Share of comparisons in which a picture's palette is nearer to its reference's than to another scene's."""
    share: float
    """How well the control map is obeyed: see evaluate.Quality."""


def palette_distance(one: Image.Image, other: Image.Image) -> float:
    """How far the colours of two pictures are from each other, in CIELAB's units: 0 if both have the same ones.

    The chamfer distance (H. Barrow et al., "Parametric Correspondence and Chamfer Matching", IJCAI 1977): the mean
    distance from each pixel's colour to the nearest colour in the other picture. Where a colour is, and on how large a
    part, does not matter, since that is what the control map decides.
    """
    colours = [
        rgb2lab(np.asarray(each.resize((SIDE, SIDE), Image.Resampling.BOX))).reshape(-1, 3) for each in (one, other)
    ]
    away = cdist(*colours)
    return float((away.min(0).mean() + away.min(1).mean()) / 2)


def nearer(pictures: Sequence[Image.Image], references: Sequence[Image.Image]) -> float:
    """The share of comparisons in which picture i is nearer to reference i than to one of the next OTHERS."""
    count = len(pictures)
    others = range(1, min(OTHERS, count - 1) + 1)
    wins = [
        palette_distance(picture, references[i]) < palette_distance(picture, references[(i + step) % count])
        for i, picture in enumerate(pictures)
        for step in others
    ]
    return float(np.mean(wins))


class Referring:
    """A painter whose picture of seed i has reference i, and a prompt without the words for colours."""

    def __init__(self, painter: Painter, references: Sequence[Image.Image]) -> None:
        """Puts the bundle's adapter on the painter's UNet, with diffusers' own loader."""
        self.size, self.references, self.painter = painter.size, references, painter
        self.control_map = painter.control_map
        self.made: list[Image.Image] = []
        self.pipeline = StableDiffusionPipeline(
            **painter.generator.base, safety_checker=None, feature_extractor=None, requires_safety_checker=False
        )
        self.pipeline.load_ip_adapter(
            painter.bundle.folder("unet").parent,
            subfolder="ip_adapter",
            weight_name="ip_adapter.safetensors",
            image_encoder_folder="./image_encoder",
            local_files_only=True,
        )
        self.embeddings = painter.generator._embeddings
        painter.generator._embeddings = self._with_reference

    def paint(self, conditioner: str, control_map: Image.Image, prompt: str, seed: int) -> Image.Image:
        self.seed = seed
        self.made.append(self.painter.paint(conditioner, control_map, colourless(prompt), seed))
        return self.made[-1]

    def _with_reference(self, job: Job, base: Base) -> Embeddings:
        seen, nothing = self.pipeline.encode_image(self.references[self.seed], self.pipeline.device, 1)
        halves = torch.cat([nothing, seen] if job.guided else [seen])[:, None]
        return {**self.embeddings(job, base), "ip_adapter_image_embeds": [halves]}


def measure(
    conditioner: str, painter: Painter, judge: Judge, count: int, scales: Sequence[float]
) -> dict[float, Likeness]:
    """The figures of `count` pictures at each scale of the reference; picture i has seed i."""
    cases = islice(held_out(painter.size[0]), count, 2 * count)
    references = [case.picture for case in cases]
    referring = Referring(painter, references)
    figures = {}
    for scale in scales:
        referring.pipeline.set_ip_adapter_scale(scale)
        referring.made.clear()
        obeyed = evaluate.measure(conditioner, referring, judge, count)
        pictures = [small(picture) for picture in referring.made]
        figures[scale] = Likeness(nearer(pictures, [small(each) for each in references]), obeyed.share)
    return figures


def as_toml(measured: dict[float, Likeness], count: int, conditioner: str) -> str:
    """The figures as TOML for the manifest, from which the table in docs/quality.md is made."""
    lines = ["[made.reference]", f"scenes = {count}", f'conditioner = "{conditioner}"', ""]
    for scale, one in measured.items():
        figures = ", ".join(f"{name} = {value:.3f}" for name, value in asdict(one).items())
        lines.append(f"{round(100 * scale)} = {{ {figures} }}")
    return "\n".join(lines)


def main() -> None:
    parser = arguments_of("script/evaluate-reference", __doc__.partition("\n")[0])
    parser.add_argument("--conditioner", default="canny", help="whose control maps")
    parser.add_argument("--scale", type=float, nargs="+", default=[0.0, 0.5, 1.0], help="of the reference picture")
    arguments = parser.parse_args()
    painter, judge, folder = open_all(parser, arguments)
    measured = measure(arguments.conditioner, painter, judge, arguments.scenes, arguments.scale)
    figures = as_toml(measured, arguments.scenes, arguments.conditioner)
    (folder / "reference.toml").write_text(figures, encoding="utf-8")
    print(f"{figures}\nIn {folder}/: reference.toml")


if __name__ == "__main__":
    main()
