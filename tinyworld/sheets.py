"""Contact sheets: the input, the control map, and the pictures for several prompts."""

from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from controlnet.maps.drawing import draw_control_map
from controlnet.pictures.geometry import canvas_size
from controlnet.pictures.images import open_image
from tinyworld.cases import SUBJECTS, held_out, shows_anything
from tinyworld.painter import Painter
from tinyworld.scene import recoloured

TILE = 192
CAPTION = 54
"""Pixels below each row for its prompts."""
EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
PHOTOGRAPHS = {
    "astronaut.jpg": (
        "a person in an orange shirt and white trousers on a blue background",
        "many red and blue things",
    ),
    "cat.jpg": ("a brown ball on grass under a blue sky", "many orange and white things in a purple room"),
    "coffee.jpg": ("a white cylinder on a red table in a yellow room", "a blue ball on sand under an orange sky"),
}
PHOTOGRAPH_CONDITIONERS = ("canny", "hed", "scribble", "depth")
Row = list[tuple[Image.Image, str]]
"""Pictures from left to right, each with the text below it."""


def scenes(painter: Painter, conditioners: list[str]) -> Image.Image:
    """One row per conditioner: a held-out scene, its map, and pictures for its caption and for two in other colours."""
    rows = []
    for number, name in enumerate(conditioners):
        fits = SUBJECTS.get(name, shows_anything)
        case = next(islice(held_out(painter.size[0], fits), number, None))
        control_map = painter.control_map(name, case)
        rng = np.random.default_rng(number)
        prompts = [case.scene.caption, *(recoloured(case.scene.caption, rng) for _ in range(2))]
        row: Row = [(case.picture, "scene"), (control_map, name)]
        rows.append(row + [(painter.paint(name, control_map, prompt, i), prompt) for i, prompt in enumerate(prompts)])
    return sheet(rows)


def photographs(painter: Painter, conditioners: list[str]) -> Image.Image:
    """Two rows per photograph, one for each prompt: the photograph, then map and picture of each conditioner."""
    rows = []
    for file, prompts in PHOTOGRAPHS.items():
        picture = open_image(EXAMPLES / file)
        size = canvas_size(picture.size, painter.size[0])
        for seed, prompt in enumerate(prompts):
            row: Row = [(picture, prompt)]
            for name in PHOTOGRAPH_CONDITIONERS:
                if name in conditioners:
                    control_map = draw_control_map(name, picture, size, True, painter.annotators)
                    row += [(control_map, name), (painter.paint(name, control_map, prompt, seed), "")]
            rows.append(row)
    return sheet(rows)


def sheet(rows: list[Row]) -> Image.Image:
    """The rows below each other, every picture cut to a square of TILE pixels."""
    made = Image.new("RGB", (TILE * max(map(len, rows)), (TILE + CAPTION) * len(rows)), "white")
    pen = ImageDraw.Draw(made)
    for y, row in enumerate(rows):
        for x, (picture, words) in enumerate(row):
            corner = (x * TILE, y * (TILE + CAPTION))
            made.paste(square(picture), corner)
            pen.text((corner[0] + 4, corner[1] + TILE + 2), wrapped(words, pen), fill="black")
    return made


def square(picture: Image.Image, side: int = TILE) -> Image.Image:
    """The picture's middle as a square of `side` pixels."""
    edge = min(picture.size)
    left, top = (picture.width - edge) // 2, (picture.height - edge) // 2
    return picture.crop((left, top, left + edge, top + edge)).resize((side, side), Image.Resampling.LANCZOS)


def wrapped(words: str, pen: ImageDraw.ImageDraw) -> str:
    """The words in lines as wide as a tile."""
    lines = [""]
    for word in words.split():
        longer = f"{lines[-1]} {word}".strip()
        if pen.textlength(longer) > TILE - 8:
            lines.append(word)
        else:
            lines[-1] = longer
    return "\n".join(lines)
