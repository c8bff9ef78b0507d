"""The conditioners: the one list of them, and how an image becomes a control map.

A bundle says which of them it has and which annotator draws each map (weights/<bundle>.toml); the ControlNet of a
conditioner is the bundle's part controlnet/<name>. predict.py's choices and the README's table are checked against
this.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from PIL import Image

from controlnet.maps.annotators import SHORT_SIDE, Annotator, knobs_of
from controlnet.maps.cache import MapCache, digest
from controlnet.maps.resizing import resize_map
from controlnet.pictures.geometry import fit
from controlnet.pictures.images import white_on_black

DETECT_RESOLUTION = "detect_resolution"
DETECT_SIDES = (64, 2048)
"""Pixels: the short sides that may be asked for."""
DETECT_PIXELS = 2048 * 2048
"""The largest picture that an annotator is shown."""


class ConditionerError(ValueError):
    """The bundle at work does not have the conditioner that was asked for."""


class KnobError(ValueError):
    """A setting for drawing the control map has no effect, or a value out of range; the message says what to do."""


@dataclass(frozen=True)
class Conditioner:
    """One way to take structure from an image."""

    name: str
    help: str
    """What it keeps of the image, in a few words."""
    good_for: str
    """When to choose it, in a few words."""
    kind: str = "dense"
    """What its map consists of, which is how it is brought to another size: a key of controlnet.maps.resizing.KINDS."""

    @property
    def lines(self) -> bool:
        """The map is white lines on black: a ready-made one that is dark on white is inverted."""
        return self.kind in ("lines", "soft_lines")

    @property
    def blank(self) -> int | None:
        """The grey, 0–255, of a map where there is nothing; None where a map has something everywhere."""
        return 0 if self.lines or self.kind == "skeletons" else None


OPENPOSE = "openpose"
"""The one whose map can be sent and returned as poses."""
INPAINT = "inpaint"
"""The one whose map is not drawn from its image alone: the mask's holes are in it."""

CONDITIONERS: tuple[Conditioner, ...] = (
    Conditioner("canny", "hard edges", "objects whose outlines and details should stay", kind="lines"),
    Conditioner("hed", "soft edges", "repainting and restyling, with softer detail than canny", kind="soft_lines"),
    Conditioner("mlsd", "straight lines", "rooms and buildings", kind="lines"),
    Conditioner("depth", "how far away things are", "layouts with a foreground and a background"),
    Conditioner(
        OPENPOSE, "the poses of people", "people in the same pose, with everything else free", kind="skeletons"
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
    Conditioner(INPAINT, "everything but a masked part", "repainting a part, and painting beyond the edges"),
    Conditioner("ip2p", "the image itself", 'instructions such as "make it winter"; experimental'),
)

BY_NAME: dict[str, Conditioner] = {conditioner.name: conditioner for conditioner in CONDITIONERS}


def draw_control_map(
    name: str,
    picture: Image.Image,
    size: tuple[int, int],
    preprocess: bool,
    annotators: Mapping[str, Annotator],
    knobs: Mapping[str, Any] = {},
    detect_resolution: int | None = None,
    cache: MapCache | None = None,
) -> Image.Image:
    """The control map of conditioner `name`, RGB, of exactly `size` (width, height).

    With `preprocess` the bundle's annotator draws it from `picture`, at detect_size; without, `picture` already is one
    and is only brought to size (and inverted where lines must be white on black and are not). `annotators` are the
    bundle's, by conditioner. `knobs` are for the annotator; None stands for its own default. Maps are taken from
    `cache`, where they are in it, and kept there.

    Raises ConditionerError where the bundle has no such conditioner, KnobError as check_knobs and detect_size do, and
    AnnotatorError where a knob has a value that the annotator cannot work with.
    """
    conditioner = BY_NAME[check_conditioner(name, annotators)]
    check_knobs(name, {**knobs, DETECT_RESOLUTION: detect_resolution}, annotators, preprocess)
    annotator = annotators[name]
    settings = {knob: value for knob, value in knobs.items() if value is not None}
    if detect_resolution is not None and SHORT_SIDE in knobs_of(annotator):
        settings[SHORT_SIDE] = detect_resolution
    if preprocess:
        picture = fit(picture, detect_size(size, detect_resolution), Image.Resampling.LANCZOS)

    def draw() -> Image.Image:
        if preprocess:
            control_map = annotator(picture, **settings)
        else:
            control_map = white_on_black(picture) if conditioner.lines else picture
        return resize_map(control_map, size, conditioner.kind)

    if cache is None:
        return draw()
    # repr, because a knob's value may be a list.
    return cache.fetch((name, preprocess, size, repr(sorted(settings.items())), digest(picture)), draw)


def check_conditioner(name: str, annotators: Mapping[str, Annotator]) -> str:
    """`name`, if the bundle whose annotators these are has that conditioner. Raises ConditionerError."""
    if name not in annotators:
        raise ConditionerError(
            f"The bundle at work has no {name} conditioner; it has {', '.join(annotators)}. "
            "Choose one of these, or run a bundle that has it (CONTROLNET_BUNDLE=sd15 has all)."
        )
    return name


def check_knobs(
    name: str, knobs: Mapping[str, Any], annotators: Mapping[str, Annotator], preprocess: bool = True
) -> None:
    """Raise KnobError if a knob is not None and conditioner `name` does not take it, or nothing is drawn at all.

    Every annotator takes detect_resolution.
    """
    for knob in (knob for knob, value in knobs.items() if value is not None):
        if not preprocess:
            raise KnobError(
                f"{knob} says how a control map is drawn, and with preprocess off none is: "
                f"leave {knob} out, or turn preprocess on."
            )
        if name == INPAINT:
            raise KnobError(f"The map of the inpaint conditioner is the picture itself: leave {knob} out.")
        if knob == DETECT_RESOLUTION or knob in knobs_of(annotators[name]):
            continue
        takers = [other for other, annotator in annotators.items() if knob in knobs_of(annotator)]
        raise KnobError(
            f"The conditioner {name} takes no {knob}: leave it out, or choose {' or '.join(takers)}, which takes it."
            if takers
            else f"The conditioner {name} takes no {knob}, and no other conditioner of this bundle does: leave it out."
        )


def detect_size(size: tuple[int, int], detect_resolution: int | None) -> tuple[int, int]:
    """The (width, height) at which an annotator sees the picture of a canvas of `size`: the canvas' own, or its aspect
    ratio with a short side of detect_resolution pixels.

    Raises KnobError where that is not within DETECT_SIDES, or where the whole is more than DETECT_PIXELS.
    """
    if detect_resolution is None:
        return size
    least, most = DETECT_SIDES
    if not least <= detect_resolution <= most:
        raise KnobError(f"detect_resolution is {detect_resolution}: expected a number from {least} to {most}, or none.")
    seen = _with_short_side(size, detect_resolution)
    if seen[0] * seen[1] <= DETECT_PIXELS:
        return seen
    largest = detect_resolution
    while math.prod(_with_short_side(size, largest)) > DETECT_PIXELS:
        largest -= 1
    raise KnobError(
        f"At detect_resolution {detect_resolution} this picture has {seen[0]}×{seen[1]} pixels, more than the "
        f"{DETECT_PIXELS} that an annotator takes: lower it to {largest}."
    )


def _with_short_side(size: tuple[int, int], short_side: int) -> tuple[int, int]:
    """The size in the aspect ratio of `size` with that short side, up to a pixel."""
    width, height = ((2 * short_side * side + min(size)) // (2 * min(size)) for side in size)
    return width, height
