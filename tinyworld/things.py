"""The things in a scene: each is a few coloured solids on the ground (y = 0) at (x, z), and the words for them.

A builder gets the random generator, the place, the size (metres, roughly the height) and the name of a colour. People
and animals are in creatures.py.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from tinyworld.shapes import Capsule, Ellipsoid, Frustum, Shape, box, polyhedron, pyramid, roof, turn, vector

COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.85, 0.12, 0.12),
    "orange": (0.95, 0.50, 0.08),
    "yellow": (0.95, 0.85, 0.15),
    "green": (0.15, 0.62, 0.22),
    "blue": (0.12, 0.28, 0.85),
    "purple": (0.50, 0.18, 0.70),
    "pink": (0.96, 0.55, 0.72),
    "brown": (0.45, 0.27, 0.13),
    "white": (0.95, 0.95, 0.95),
    "black": (0.08, 0.08, 0.09),
    "grey": (0.50, 0.50, 0.52),
}


@dataclass(frozen=True)
class Solid:
    """One shape with its colour (RGB, 0–1) and the name of what it is ("ball", "door", …)."""

    shape: Shape
    colour: np.ndarray
    label: str
    glows: bool = False
    """True if no light or shadow changes its colour."""


@dataclass(frozen=True)
class Thing:
    """The words of the caption ("red ball"), the colour they name first, and the solids."""

    words: str
    colour: str
    solids: tuple[Solid, ...]
    keypoints: dict[str, np.ndarray] | None = None
    whole: str | None = None
    """The class (truth.CLASSES) of its solids, if they are parts of one thing, like an animal's."""


Random = np.random.Generator
Builder = Callable[[Random, np.ndarray, float, str], Thing]


def shade(rng: Random, name: str) -> np.ndarray:
    """RGB of the named colour, varied a little."""
    return np.clip(np.array(COLOURS[name]) + rng.normal(0, 0.03, 3), 0, 1).astype(np.float32)


def any_colour(rng: Random) -> str:
    return str(rng.choice(list(COLOURS)))


def article(words: str) -> str:
    return "an" if words[0] in "aeiou" else "a"


def ball(rng: Random, place: np.ndarray, size: float, colour: str) -> Thing:
    radius = size / 2
    centre = place + vector(0, radius, 0)
    radii = np.full(3, radius, np.float32)
    return Thing(f"{colour} ball", colour, (Solid(Ellipsoid(centre, radii), shade(rng, colour), "ball"),))


def block(rng: Random, place: np.ndarray, size: float, colour: str) -> Thing:
    edges = size * rng.uniform(0.6, 1.2, 3).astype(np.float32)
    shape = box(place + vector(0, edges[1] / 2, 0), edges, rng.uniform(0, np.pi))
    return Thing(f"{colour} box", colour, (Solid(shape, shade(rng, colour), "box"),))


def cone(rng: Random, place: np.ndarray, size: float, colour: str) -> Thing:
    shape = Frustum(place, size * 1.2, size * rng.uniform(0.35, 0.6), 0.0)
    return Thing(f"{colour} cone", colour, (Solid(shape, shade(rng, colour), "cone"),))


def cylinder(rng: Random, place: np.ndarray, size: float, colour: str) -> Thing:
    radius = size * rng.uniform(0.25, 0.5)
    shape = Frustum(place, size * rng.uniform(0.7, 1.3), radius, radius)
    return Thing(f"{colour} cylinder", colour, (Solid(shape, shade(rng, colour), "cylinder"),))


def tent(rng: Random, place: np.ndarray, size: float, colour: str) -> Thing:
    shape = pyramid(place, np.array([size * 1.2, size, size * 1.2], np.float32), rng.uniform(0, np.pi))
    return Thing(f"{colour} pyramid", colour, (Solid(shape, shade(rng, colour), "pyramid"),))


def house(rng: Random, place: np.ndarray, size: float, colour: str) -> Thing:
    """Its gable is at the front in half of the houses, as in children's drawings, and many face the viewer."""
    width, height, depth = size * rng.uniform(0.9, 1.4), size * rng.uniform(0.55, 0.75), size * rng.uniform(0.7, 1.0)
    yaw = rng.uniform(-0.6, 0.6) if rng.random() < 0.6 else rng.uniform(-0.06, 0.06)
    roof_colour, door_colour = any_colour(rng), any_colour(rng)
    rise, body = size * rng.uniform(0.3, 0.5), vector(width, height, depth)
    top = place + vector(0, height, 0)
    gable = rng.random() < 0.5
    if gable:
        covering = roof(top, vector(depth * 1.15, rise * 1.3, width * 1.15), yaw + np.pi / 2)
    else:
        covering = roof(top, vector(width * 1.12, rise, depth * 1.15), yaw)

    def on_front(x: float, y: float, w: float, h: float) -> Shape:
        offset = turn(yaw) @ vector(x * width, 0, -depth / 2)
        return box(place + offset + vector(0, y * height, 0), vector(w * width, h * height, 0.06 * size), yaw)

    pane = vector(0.65, 0.8, 0.9)
    solids = [
        Solid(box(place + vector(0, height / 2, 0), body, yaw), shade(rng, colour), "house"),
        Solid(covering, shade(rng, roof_colour), "roof"),
        Solid(on_front(rng.uniform(-0.1, 0.1), 0.3, 0.18, 0.6), shade(rng, door_colour), "door"),
        Solid(on_front(-0.3, 0.6, 0.2, 0.3), pane, "window"),
        Solid(on_front(0.3, 0.6, 0.2, 0.3), pane, "window"),
    ]
    if rng.random() < 0.3:
        spot = turn(yaw) @ vector(rng.choice([-1, 1]) * 0.27 * width, 0, 0)
        stack = vector(0.13 * size, rise * 1.1, 0.13 * size)
        bricks = vector(0.55, 0.25, 0.2)
        solids.append(Solid(box(top + spot + vector(0, rise * 0.55, 0), stack, yaw), bricks, "chimney"))
    return Thing(f"{colour} house with {article(roof_colour)} {roof_colour} roof", colour, tuple(solids))


def tree(rng: Random, place: np.ndarray, size: float, colour: str) -> Thing:
    """Most are green, so that a tree of which nothing is said becomes green."""
    colour = "green" if rng.random() < 0.92 else colour
    trunk = Frustum(place, size * 0.5, size * 0.09, size * 0.06)
    crown_base = place + vector(0, size * 0.4, 0)
    if rng.random() < 0.4:
        crown: Shape = Frustum(crown_base, size * 0.9, size * 0.4, 0.0)
    else:
        radii = size * rng.uniform(0.3, 0.45, 3).astype(np.float32)
        crown = Ellipsoid(crown_base + vector(0, radii[1] * 0.9, 0), radii)
    solids = (Solid(trunk, shade(rng, "brown"), "trunk"), Solid(crown, shade(rng, colour), "tree"))
    return Thing(f"{colour} tree", colour, solids)


def cup(rng: Random, place: np.ndarray, size: float, colour: str) -> Thing:
    """A cup of coffee with a handle, half of them on a saucer."""
    paint, yaw = shade(rng, colour), rng.uniform(-0.5, 0.5) + rng.choice([0, np.pi])
    top, height = size * rng.uniform(0.32, 0.42), size * rng.uniform(0.65, 0.85)
    solids = []
    if rng.random() < 0.5:
        solids.append(Solid(Frustum(place, size * 0.07, size * 0.35, size * 0.58), shade(rng, colour), "saucer"))
        place = place + vector(0, size * 0.05, 0)
    solids += [
        Solid(Frustum(place, height, top * rng.uniform(0.65, 1.0), top), paint, "cup"),
        Solid(
            Frustum(place + vector(0, height, 0), size * 0.01, 0.86 * top, 0.86 * top), shade(rng, "brown"), "coffee"
        ),
    ]
    side = turn(yaw) @ vector(1, 0, 0)
    angles = np.linspace(-1.25, 1.25, 6)
    arc = [
        place + side * (0.9 * top + np.cos(a) * 0.22 * size) + vector(0, (0.52 + 0.3 * np.sin(a)) * height, 0)
        for a in angles
    ]
    for start, end in pairwise(arc):
        solids.append(Solid(Capsule(start.astype(np.float32), end.astype(np.float32), 0.045 * size), paint, "cup"))
    return Thing(f"{colour} cup", colour, tuple(solids), whole="cup")


def boat(rng: Random, place: np.ndarray, size: float, colour: str) -> Thing:
    """A sailing boat: a hull that is wider above, a mast, and one or two sails."""
    yaw, sail_colour = rng.uniform(-0.5, 0.5) + rng.choice([0, np.pi]), any_colour(rng)

    def at(x: float, y: float, z: float) -> np.ndarray:
        return place + turn(yaw) @ vector(x, y, z) * np.float32(size)

    deck, keel = rng.uniform(0.2, 0.3), -0.1
    upper = [at(x, deck, z) for x, z in ((-0.55, -0.2), (-0.55, 0.2), (0.4, -0.2), (0.4, 0.2), (0.7, 0.0))]
    lower = [at(x, keel, z) for x, z in ((-0.42, -0.13), (-0.42, 0.13), (0.32, -0.13), (0.32, 0.13), (0.45, 0.0))]
    faces = [(0, 1, 2), (5, 6, 7), (0, 1, 5), (0, 2, 5), (1, 3, 6), (2, 4, 7), (3, 4, 8)]
    hull = polyhedron(np.array([*upper, *lower], np.float32), faces)
    mast = Frustum(at(0, deck - 0.05, 0), size * 1.1, size * 0.03, size * 0.02)
    solids = [Solid(hull, shade(rng, colour), "boat"), Solid(mast, shade(rng, "brown"), "mast")]
    low, tip, cloth = deck + 0.1, deck + rng.uniform(0.85, 1.0), shade(rng, sail_colour)
    for x, foot in ((-0.05, -0.5), (0.06, 0.5))[: rng.integers(1, 3)]:
        corners = [at(a, b, z) for a, b in ((x, low), (x, tip), (foot, low)) for z in (-0.012, 0.012)]
        sides = [(0, 2, 4), (1, 3, 5), (0, 1, 2), (0, 1, 4), (2, 3, 4)]
        solids.append(Solid(polyhedron(np.array(corners, np.float32), sides), cloth, "sail"))
    return Thing(f"{colour} boat with {article(sail_colour)} {sail_colour} sail", colour, tuple(solids), whole="boat")


def table(rng: Random, place: np.ndarray, size: float, colour: str) -> Thing:
    width, height, depth = size * rng.uniform(1.0, 1.6), size * 0.7, size * rng.uniform(0.7, 1.0)
    yaw = rng.uniform(-0.7, 0.7)
    paint = shade(rng, colour)
    return Thing(f"{colour} table", colour, tuple(_slab_on_legs(place, width, height, depth, yaw, paint, "table")))


def chair(rng: Random, place: np.ndarray, size: float, colour: str) -> Thing:
    width, height = size * 0.55, size * 0.5
    yaw = rng.uniform(-1.0, 1.0)
    paint = shade(rng, colour)
    solids = _slab_on_legs(place, width, height, width, yaw, paint, "chair")
    behind = turn(yaw) @ vector(0, 0, width / 2)
    back = box(place + behind + vector(0, height * 1.5, 0), vector(width, height, 0.08 * size), yaw)
    return Thing(f"{colour} chair", colour, (*solids, Solid(back, paint, "chair")))


def _slab_on_legs(
    place: np.ndarray, width: float, height: float, depth: float, yaw: float, paint: np.ndarray, label: str
) -> list[Solid]:
    thick = 0.1 * width
    solids = [Solid(box(place + vector(0, height, 0), vector(width, thick, depth), yaw), paint, label)]
    for sx in (-1, 1):
        for sz in (-1, 1):
            foot = turn(yaw) @ vector(sx * (width - thick) / 2, 0, sz * (depth - thick) / 2)
            leg = box(place + foot + vector(0, height / 2, 0), vector(thick, height, thick), yaw)
            solids.append(Solid(leg, paint, label))
    return solids


def heaven(rng: Random, sky: str) -> Thing:
    """The sun, half of the time with rays as in a child's drawing, or at night the moon: far away and not shaded."""
    far, radius = 40.0, rng.uniform(1.6, 2.6)
    centre = vector(rng.choice([-1, 1]) * rng.uniform(3, 13), rng.uniform(6, 12), far)
    if sky == "black":
        return Thing("moon", "white", (Solid(_disc(centre, radius), vector(0.95, 0.93, 0.80), "moon", glows=True),))
    paint = vector(1.0, 0.88, 0.15)
    solids = [Solid(_disc(centre, radius), paint, "sun", glows=True)]
    if rng.random() < 0.5:
        turned = rng.uniform(0, np.pi)
        for angle in turned + np.arange(8) * np.pi / 4:
            ray = vector(np.cos(angle), np.sin(angle), 0) * np.float32(radius)
            limb = Capsule(centre + 1.35 * ray, centre + 1.9 * ray, 0.1 * radius)
            solids.append(Solid(limb, paint, "sun", glows=True))
    return Thing("sun", "yellow", tuple(solids))


def _disc(centre: np.ndarray, radius: float) -> Ellipsoid:
    return Ellipsoid(centre, np.full(3, radius, np.float32))


PILE: tuple[Builder, ...] = (ball, block, cone, cylinder, tent)
