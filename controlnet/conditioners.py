"""The conditioners: the one list of them, as plain data.

A bundle says which of them it has and which annotator draws each control map (weights/<bundle>.toml). The ControlNet of
a conditioner is the bundle's part controlnet/<name>. Tests hold predict.py's choices and docs/conditioners.md
equal to this list.
"""

from dataclasses import dataclass
from typing import Literal

Form = Literal["lines", "soft_lines", "dense", "labels", "skeletons"]
"""What a control map consists of, which decides how it is resized: a key of controlnet.maps.resizing.FORMS."""
Source = Literal["picture", "poses", "holes"]
"""What a control map is made of. picture: drawn from it by an annotator. poses: drawn from people's poses, which an
annotator finds in the picture, or which the request sends. holes: the initial picture without its masked part.
"""
Colour = tuple[int, int, int]
"""Red, green and blue, 0–255."""
BLACK: Colour = (0, 0, 0)
WHITE: Colour = (255, 255, 255)


@dataclass(frozen=True)
class Conditioner:
    """One way to take structure from an image."""

    name: str
    help: str
    """What it keeps of the image, in a few words."""
    good_for: str
    """When to choose it, in a few words."""
    form: Form = "dense"
    made_of: Source = "picture"
    pooled: bool = False
    """Whether its ControlNet averages each residual over the picture (global_pool_conditions in its config.json)."""
    acts_on_parts: bool = True
    """Whether its map, enlarged, still says what a part of an enlarged picture should be (input upscale)."""
    nothing: Colour = BLACK
    """What means "nothing here" in its maps: what lies under the transparent parts of a ready-made one. Maps that are
    pictures have white there, like all photographs. Lines may be sent dark on white: see maps/transparency.py."""

    @property
    def lines(self) -> bool:
        """Whether the map is white lines on black. A ready-made one that is dark on white is then inverted."""
        return self.form in ("lines", "soft_lines")

    @property
    def blank(self) -> int | None:
        """The grey, 0–255, of the margins that are added to its maps: `nothing`, in maps that mostly show that. None if
        the edges are continued."""
        return self.nothing[0] if self.lines or self.form == "skeletons" else None


CONDITIONERS: tuple[Conditioner, ...] = (
    Conditioner("canny", "hard edges", "objects whose outlines and details should stay", form="lines"),
    Conditioner("hed", "soft edges", "repainting and restyling, with softer detail than canny", form="soft_lines"),
    Conditioner("mlsd", "straight lines", "rooms and buildings", form="lines"),
    Conditioner("depth", "how far away things are", "layouts with a foreground and a background"),
    Conditioner(
        "openpose",
        "the poses of people",
        "people in the same pose, with everything else free",
        form="skeletons",
        made_of="poses",
    ),
    Conditioner("scribble", "rough strokes", "sketches and doodles", form="lines"),
    Conditioner("seg", "what is where, by class", "rearranging scenes by their regions", form="labels"),
    # A surface that faces the camera, as normal_bae.normal_map draws it.
    Conditioner("normal", "which way surfaces face", "relief and lighting of objects", nothing=(127, 127, 255)),
    Conditioner("lineart", "drawn lines", "colouring a drawing, or redrawing a photo line by line", form="soft_lines"),
    Conditioner(
        "lineart_anime", "drawn lines, as in anime", "colouring and redrawing anime and manga", form="soft_lines"
    ),
    Conditioner(
        "shuffle",
        "colours and textures, but not the layout",
        "other scenes in the style of the image",
        pooled=True,
        acts_on_parts=False,
        nothing=WHITE,
    ),
    # Enlarging has its own map for this net: the picture that was made.
    Conditioner(
        "tile",
        "colours and coarse shapes",
        "sharpening and enlarging: details are repainted",
        acts_on_parts=False,
        nothing=WHITE,
    ),
    Conditioner(
        "inpaint",
        "everything but a masked part",
        "repainting a part, and painting beyond the edges",
        made_of="holes",
        acts_on_parts=False,
        nothing=WHITE,
    ),
    # Enlarging follows the picture that was made. This map is the one before the instruction.
    Conditioner(
        "ip2p",
        "the image itself",
        'instructions such as "make it winter"; experimental',
        acts_on_parts=False,
        nothing=WHITE,
    ),
)

BY_NAME: dict[str, Conditioner] = {conditioner.name: conditioner for conditioner in CONDITIONERS}

ENLARGING = "tile"
"""The conditioner whose ControlNet guides the second pass that enlarges a picture (input upscale)."""
