"""Contact sheets: the input, the control map, and the pictures for several prompts."""

from itertools import islice

import numpy as np
from PIL import Image, ImageDraw

from tinyworld.cases import SUBJECTS, held_out, shows_anything
from tinyworld.painter import Painter
from tinyworld.scene import recoloured

TILE = 192
CAPTION = 70
"""Pixels below each row for its prompts."""
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
