"""What lies under the transparent parts of a picture that a control map is made of."""

import numpy as np
from PIL import Image

from controlnet.conditioners import BLACK, WHITE, Colour, Conditioner
from controlnet.pictures.colours import lay_on

SOLID = 0.75
"""Of the picture's highest opacity. Pixels below it are edges, which some programs mix with the colour behind them."""
ONE_TONE = 1 / 500
"""If at most this share of what is solid differs from the rest, as light from dark, all of it is ink."""


def opaque(picture: Image.Image, conditioner: Conditioner, drawn: bool) -> Image.Image:
    """An RGB or RGBA picture as RGB: its transparent parts become what means "nothing here" to the conditioner.

    With `drawn` an annotator draws the map: it is shown photographs on white, and light ink for maps of lines on black.
    Otherwise the picture is a ready-made map. A map of lines may be dark on white, so its ground is the one that its
    ink is not. An RGB picture is returned as it is.
    """
    if picture.mode == "RGB":
        return picture
    mixed = drawn or conditioner.form != "labels"  # a mixture of labels is no label
    return lay_on(picture, _ground(picture, conditioner, drawn), mixed)


def _ground(picture: Image.Image, conditioner: Conditioner, drawn: bool) -> Colour:
    if not conditioner.lines:
        return WHITE if drawn else conditioner.nothing
    light = light_share(picture)
    if drawn:
        return BLACK if light >= 1 - ONE_TONE else WHITE
    if ONE_TONE < light < 1 - ONE_TONE:  # ink on a ground of its own, which is most of it and goes on
        return WHITE if light > 0.5 else BLACK
    return BLACK if light > 0.5 else WHITE


def light_share(picture: Image.Image) -> float:
    """The share of an RGBA picture's solid pixels that are nearer to white than to black. 0 if nothing is visible."""
    alpha = np.asarray(picture.getchannel("A"))
    solid = alpha >= max(1, SOLID * alpha.max())
    return float((np.asarray(picture.convert("L"))[solid] >= 128).mean()) if solid.any() else 0.0
