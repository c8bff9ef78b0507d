"""Measures pictures that a second pass enlarges (input upscale) against the same pictures, merely enlarged.

Held-out scenes with their own canny maps and captions. Sharper edges, the same structure, and no trace of the windows
in which the networks saw the picture are what is wanted.
"""

from dataclasses import asdict, dataclass
from itertools import islice

import cv2
import numpy as np
from PIL import Image

from controlnet.generation.windowed import unet_windows
from controlnet.maps.controls import Control
from controlnet.pictures.geometry import STEP
from tinyworld.cases import held_out
from tinyworld.evaluate import OTHERS, arguments_of, open_all
from tinyworld.painter import Painter
from tinyworld.scoring import edge_f1

THRESHOLDS = (30, 60)
"""Of the canny edges that are compared. At 100 and 200, a picture that is merely enlarged has next to none."""
NEAR = 2
"""Pixels to each side of a window's edge."""


@dataclass(frozen=True)
class Enlarged:
    """Means over the scenes."""

    strength: float
    """upscale_strength."""
    steepness: float
    """That of the pictures' edges: see steepness()."""
    before: float
    """That of the pictures that are merely enlarged."""
    f1: float
    """F1 of the canny edges of both, 0 to 1: see structure()."""
    floor: float
    """The same against other scenes' pictures."""
    seams: float
    """See seams()."""
    seams_before: float
    """That of the pictures that are merely enlarged, which have no windows: what the scenes themselves have there."""


def steepness(picture: Image.Image) -> float:
    """Grey levels per pixel at the steepest hundredth of a picture's pixels."""
    grey = np.asarray(picture.convert("L"), np.float32)
    return float(np.percentile(np.hypot(*np.gradient(grey)), 99))


def structure(picture: Image.Image, wanted: Image.Image, upscale: float) -> float:
    """F1 of both pictures' canny edges, within a pixel of the picture before it was enlarged."""
    drawn, asked = (cv2.Canny(np.asarray(each.convert("L")), *THRESHOLDS) > 0 for each in (picture, wanted))
    return edge_f1(drawn, asked, round(upscale))


def seams(picture: Image.Image, places: list[int]) -> float:
    """The mean change from column to column near the columns `places`, as a share of that elsewhere."""
    change = np.abs(np.diff(np.asarray(picture, np.float32), axis=1)).mean((0, 2))
    near = np.zeros(len(change), bool)
    for place in places:
        near[place - NEAR : place + NEAR] = True
    return float(change[near].mean() / change[~near].mean())


def edges_of_windows(painter: Painter, size: tuple[int, int]) -> list[int]:
    """The columns at which a window of the UNet begins or ends within a picture of (width, height) `size`."""
    parts = unet_windows(painter.generator.base["unet"], (size[1] // STEP, size[0] // STEP))
    columns = {place * STEP for part in parts for place in (part.columns.start, part.columns.end)}
    return sorted(columns - {0, size[0]})


def measure(painter: Painter, count: int, upscale: float, strength: float) -> Enlarged:
    """The means of `count` scenes; picture i has seed i."""
    before, after = [], []
    for i, case in enumerate(islice(held_out(painter.size[0]), count)):
        controls = (Control("canny", painter.control_map("canny", case)),)
        after.append(painter.paint_with(controls, case.scene.caption, i, upscale=upscale, upscale_strength=strength))
        first = painter.paint_with(controls, case.scene.caption, i)
        before.append(first.resize(after[-1].size, Image.Resampling.LANCZOS))
    others = range(1, min(OTHERS, count - 1) + 1)
    places = edges_of_windows(painter, after[0].size)
    return Enlarged(
        strength,
        float(np.mean([steepness(picture) for picture in after])),
        float(np.mean([steepness(picture) for picture in before])),
        float(np.mean([structure(*both, upscale) for both in zip(after, before, strict=True)])),
        float(np.mean([structure(after[i], before[(i + k) % count], upscale) for i in range(count) for k in others])),
        *(float(np.mean([seams(picture, places) for picture in pictures])) for pictures in (after, before)),
    )


def as_toml(measured: list[Enlarged], count: int, upscale: float) -> str:
    """The figures as TOML for the manifest, from which the table in docs/quality.md is made."""
    lines = ["[made.enlarged]", f"scenes = {count}", f"upscale = {upscale:g}", ""]
    for one in measured:
        figures = ", ".join(f"{name} = {value:.3f}" for name, value in asdict(one).items() if name != "strength")
        lines.append(f"{round(100 * one.strength)} = {{ {figures} }}")
    return "\n".join(lines)


def main() -> None:
    parser = arguments_of("script/evaluate-upscale", __doc__.partition("\n")[0])
    parser.add_argument("--upscale", type=float, default=4.0, help="how many times as wide and high")
    parser.add_argument("--strength", type=float, nargs="+", default=[0.3, 0.4, 0.5], help="upscale_strength")
    arguments = parser.parse_args()
    painter, _, folder = open_all(parser, arguments)
    measured = [measure(painter, arguments.scenes, arguments.upscale, one) for one in arguments.strength]
    figures = as_toml(measured, arguments.scenes, arguments.upscale)
    (folder / "enlarged.toml").write_text(figures, encoding="utf-8")
    print(f"{figures}\nIn {folder}/: enlarged.toml")


if __name__ == "__main__":
    main()
