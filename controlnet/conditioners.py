"""The conditioners: the one list of them, and how an image becomes a control map.

A bundle says which of them it has and which annotator draws each map (weights/<bundle>.toml); the ControlNet of a
conditioner is the bundle's part controlnet/<name>. predict.py's choices and the README's table are checked against
this.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from PIL import Image

from controlnet.annotators import Annotator
from controlnet.geometry import fit
from controlnet.images import white_on_black
from controlnet.map_resizing import resize_map


class ConditionerError(ValueError):
    """The bundle at work does not have the conditioner that was asked for."""


@dataclass(frozen=True)
class Conditioner:
    """One way to take structure from an image."""

    name: str
    help: str
    """What it keeps of the image, in a few words."""
    good_for: str
    """When to choose it, in a few words."""
    kind: str = "dense"
    """What its map consists of, which is how it is brought to another size: a key of controlnet.map_resizing.KINDS."""

    @property
    def lines(self) -> bool:
        """The map is white lines on black: a ready-made one that is dark on white is inverted."""
        return self.kind in ("lines", "soft_lines")


CONDITIONERS: tuple[Conditioner, ...] = (
    Conditioner("canny", "hard edges", "objects whose outlines and details should stay", kind="lines"),
    Conditioner("hed", "soft edges", "repainting and restyling, with softer detail than canny", kind="soft_lines"),
    Conditioner("mlsd", "straight lines", "rooms and buildings", kind="lines"),
    Conditioner("depth", "how far away things are", "layouts with a foreground and a background"),
    Conditioner(
        "openpose", "the poses of people", "people in the same pose, with everything else free", kind="skeletons"
    ),
    Conditioner("scribble", "rough strokes", "sketches and doodles", kind="lines"),
    Conditioner("seg", "what is where, by class", "rearranging scenes by their regions", kind="labels"),
    Conditioner("normal", "which way surfaces face", "relief and lighting of objects"),
    Conditioner("lineart", "drawn lines", "colouring a drawing, or redrawing a photo line by line", kind="soft_lines"),
    Conditioner(
        "lineart_anime", "drawn lines, as in anime", "colouring and redrawing anime and manga", kind="soft_lines"
    ),
    Conditioner("shuffle", "colours and textures, but not the layout", "other scenes in the style of the image"),
    Conditioner("tile", "colours and coarse shapes", "sharpening and enlarging: details are painted anew"),
    Conditioner("ip2p", "the image itself", 'instructions such as "make it winter"; experimental'),
)

BY_NAME: dict[str, Conditioner] = {conditioner.name: conditioner for conditioner in CONDITIONERS}


def draw_control_map(
    name: str, picture: Image.Image, size: tuple[int, int], preprocess: bool, annotators: Mapping[str, Annotator]
) -> Image.Image:
    """The control map of conditioner `name`, RGB, of exactly `size` (width, height).

    With `preprocess` the bundle's annotator draws it from `picture`; without, `picture` already is one and is only
    brought to size (and inverted where lines must be white on black and are not). `annotators` are the bundle's, by
    conditioner. Raises ConditionerError where the bundle has no such conditioner.
    """
    conditioner = BY_NAME[check_conditioner(name, annotators)]
    if preprocess:
        return annotators[name](fit(picture, size, Image.Resampling.LANCZOS))
    control_map = white_on_black(picture) if conditioner.lines else picture
    return resize_map(control_map, size, conditioner.kind)


def check_conditioner(name: str, annotators: Mapping[str, Annotator]) -> str:
    """`name`, if the bundle whose annotators these are has that conditioner. Raises ConditionerError."""
    if name not in annotators:
        raise ConditionerError(
            f"The bundle at work has no {name} conditioner; it has {', '.join(annotators)}. "
            "Choose one of these, or run a bundle that has it (CONTROLNET_BUNDLE=sd15 has all)."
        )
    return name
