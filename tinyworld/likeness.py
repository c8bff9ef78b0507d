"""Measures how far a picture takes the colours of its reference picture, and whether it still obeys its control map.

Map and reference are of different held-out scenes, and the prompt, the map's scene's own, names no colour.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import islice

import numpy as np
from PIL import Image
from scipy.spatial.distance import cdist
from skimage.color import rgb2lab

from controlnet.maps.controls import Control
from controlnet.pictures.canvas import ReferencePicture
from tinyworld import evaluate
from tinyworld.cases import held_out
from tinyworld.evaluate import OTHERS, arguments_of, open_all
from tinyworld.judge import MEASURED, READINGS, Judge, wanted
from tinyworld.painter import Painter
from tinyworld.palettes import in_colours_of
from tinyworld.render import render
from tinyworld.scene import Scene, without_paint

SIDE = 32
"""Pixels to a side of the pictures whose palettes are compared: smaller differences than these are no colours."""


@dataclass(frozen=True)
class Likeness:
    """Means over the scenes."""

    nearer: float
    """Share of comparisons in which a picture's palette is nearer to its reference's than to another scene's."""
    share: float
    """How well the control map is obeyed: see evaluate.Quality."""
    rendered: float
    """The share that the map's own scene reaches, rendered in the colours of the reference. It obeys the map entirely,
    but the evaluation network has learnt from usual colours, and reads others less well."""


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

    def __init__(self, painter: Painter, references: Sequence[Image.Image], scale: float) -> None:
        """`scale` is that of the references. 0 means none."""
        self.size, self.control_map = painter.size, painter.control_map
        self.painter, self.references, self.scale = painter, references, scale
        self.made: list[Image.Image] = []

    def paint(self, conditioner: str, control_map: Image.Image, prompt: str, seed: int) -> Image.Image:
        reference = ReferencePicture(self.references[seed], self.scale, "all") if self.scale else None
        controls = (Control(conditioner, control_map),)
        self.made.append(self.painter.paint_with(controls, without_paint(prompt), seed, reference=reference))
        return self.made[-1]


def measure(
    conditioner: str, painter: Painter, judge: Judge, count: int, scales: Sequence[float]
) -> dict[float, Likeness]:
    """The figures of `count` pictures at each scale of their references; picture i has seed i."""
    others = [*islice(held_out(painter.size[0]), count, 2 * count)]
    references = [case.picture for case in others]
    score = _score_in_colours_of([case.scene for case in others], conditioner, painter, judge)
    figures = {}
    for scale in scales:
        referring = Referring(painter, references, scale)
        obeyed = evaluate.measure(conditioner, referring, judge, count)[conditioner]
        like = nearer(referring.made, references)
        rendered = (score - obeyed.floor) / (obeyed.ceiling - obeyed.floor) if scale else 1.0
        figures[scale] = Likeness(like, obeyed.share, rendered)
    return figures


def _score_in_colours_of(references: Sequence[Scene], conditioner: str, painter: Painter, judge: Judge) -> float:
    """The mean score of the scenes that are measured, if each is rendered in the colours of its reference."""
    scores = []
    for case, reference in zip(evaluate.cases_of(conditioner, painter), references, strict=False):
        asked = wanted(conditioner, painter.control_map(conditioner, case), case.sample.people)
        picture = Image.fromarray(render(in_colours_of(reference, case.scene), painter.size[0]).picture)
        scores.append(READINGS[conditioner].compare(judge.found(conditioner, picture), asked)[1])
    return float(np.mean(scores))


def as_toml(measured: dict[str, dict[float, Likeness]], count: int) -> str:
    """The figures by conditioner as TOML for the manifest, from which the table in docs/quality.md is made."""
    lines = ["[made.reference]", f"scenes = {count}"]
    for conditioner, by_scale in measured.items():
        lines += ["", f"[made.reference.{conditioner}]"]
        for scale, one in by_scale.items():
            figures = ", ".join(f"{name} = {value:.3f}" for name, value in asdict(one).items())
            lines.append(f"{round(100 * scale)} = {{ {figures} }}")
    return "\n".join(lines)


def main() -> None:
    parser = arguments_of("script/evaluate-reference", __doc__.partition("\n")[0])
    usual = ["canny", "scribble", "depth"]
    parser.add_argument("--conditioner", nargs="+", default=usual, choices=MEASURED, help="whose control maps")
    parser.add_argument("--scale", type=float, nargs="+", default=[0.0, 0.5, 1.0], help="of the reference picture")
    arguments = parser.parse_args()
    painter, judge, folder = open_all(parser, arguments)
    count, scales = arguments.scenes, arguments.scale
    measured = {name: measure(name, painter, judge, count, scales) for name in arguments.conditioner}
    figures = as_toml(measured, arguments.scenes)
    (folder / "reference.toml").write_text(figures, encoding="utf-8")
    print(f"{figures}\nIn {folder}/: reference.toml")


if __name__ == "__main__":
    main()
