"""The things in a scene: each is a few coloured solids on the ground (y = 0) at (x, z), and the words for them.

A builder gets the random generator, the place, the size (metres, roughly the height) and the name of a colour.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from tinyworld.shapes import Capsule, Ellipsoid, Frustum, Shape, box, pyramid, roof, turn, vector

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
SKIN = ((0.95, 0.78, 0.65), (0.80, 0.58, 0.42), (0.50, 0.33, 0.22))


@dataclass(frozen=True)
class Solid:
    """One shape with its colour (RGB, 0–1) and the name of what it is ("ball", "door", …)."""

    shape: Shape
    colour: np.ndarray
    label: str


@dataclass(frozen=True)
class Thing:
    """The words of the caption ("red ball"), the colour they name first, and the solids."""

    words: str
    colour: str
    solids: tuple[Solid, ...]
    keypoints: dict[str, np.ndarray] | None = None


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
    width, height, depth = size * rng.uniform(0.9, 1.4), size * rng.uniform(0.55, 0.75), size * rng.uniform(0.7, 1.0)
    yaw = rng.uniform(-0.6, 0.6)
    roof_colour, door_colour = any_colour(rng), any_colour(rng)
    body = box(place + vector(0, height / 2, 0), vector(width, height, depth), yaw)
    top = roof(place + vector(0, height, 0), vector(width * 1.12, size * rng.uniform(0.3, 0.5), depth * 1.15), yaw)

    def on_front(x: float, y: float, w: float, h: float) -> Shape:
        offset = turn(yaw) @ vector(x * width, 0, -depth / 2)
        return box(place + offset + vector(0, y * height, 0), vector(w * width, h * height, 0.06 * size), yaw)

    solids = [
        Solid(body, shade(rng, colour), "house"),
        Solid(top, shade(rng, roof_colour), "roof"),
        Solid(on_front(rng.uniform(-0.1, 0.1), 0.3, 0.18, 0.6), shade(rng, door_colour), "door"),
        Solid(on_front(-0.3, 0.6, 0.2, 0.3), vector(0.65, 0.8, 0.9), "window"),
        Solid(on_front(0.3, 0.6, 0.2, 0.3), vector(0.65, 0.8, 0.9), "window"),
    ]
    return Thing(f"{colour} house with {article(roof_colour)} {roof_colour} roof", colour, tuple(solids))


def tree(rng: Random, place: np.ndarray, size: float, colour: str) -> Thing:
    trunk = Frustum(place, size * 0.5, size * 0.09, size * 0.06)
    crown_base = place + vector(0, size * 0.4, 0)
    if rng.random() < 0.5:
        crown: Shape = Frustum(crown_base, size * 0.9, size * 0.4, 0.0)
    else:
        radii = size * rng.uniform(0.3, 0.45, 3).astype(np.float32)
        crown = Ellipsoid(crown_base + vector(0, radii[1] * 0.9, 0), radii)
    solids = (Solid(trunk, shade(rng, "brown"), "trunk"), Solid(crown, shade(rng, colour), "tree"))
    return Thing(f"{colour} tree", colour, solids)


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


def person(rng: Random, place: np.ndarray, size: float, colour: str) -> Thing:
    """A jointed figure about 1.25 × `size` tall, with a shirt of that colour. Joints have OpenPose's names."""
    trousers = any_colour(rng)
    skin = np.array(SKIN[rng.integers(len(SKIN))], np.float32)
    h = 1.25 * size
    yaw = rng.uniform(-0.8, 0.8)
    side = turn(yaw) @ vector(1, 0, 0)

    def swing(joint: np.ndarray, length: float, low: float, high: float, sign: float) -> np.ndarray:
        angle = rng.uniform(low, high)
        return joint + length * (np.sin(angle) * sign * side + vector(0, -np.cos(angle), 0)).astype(np.float32)

    joints = {"neck": place + vector(0, 0.80 * h, 0), "hip": place + vector(0, 0.48 * h, 0)}
    joints["nose"] = joints["neck"] + vector(0, 0.11 * h, 0)
    for name, sign in (("right", -1.0), ("left", 1.0)):
        joints[f"{name}_shoulder"] = joints["neck"] + sign * 0.10 * h * side
        joints[f"{name}_elbow"] = swing(joints[f"{name}_shoulder"], 0.16 * h, 0.05, 2.2, sign)
        joints[f"{name}_wrist"] = swing(joints[f"{name}_elbow"], 0.16 * h, 0.0, 2.8, sign)
        joints[f"{name}_hip"] = joints["hip"] + sign * 0.06 * h * side
        joints[f"{name}_knee"] = swing(joints[f"{name}_hip"], 0.23 * h, 0.0, 0.5, sign)
        joints[f"{name}_ankle"] = swing(joints[f"{name}_knee"], 0.23 * h, -0.1, 0.3, sign)
    shirt, cloth = shade(rng, colour), shade(rng, trousers)
    solids = [Solid(Ellipsoid(joints["nose"], vector(0.065, 0.085, 0.07) * np.float32(h)), skin, "head")]
    for sign in (-1, 1):
        flank = sign * 0.035 * h * side
        solids.append(Solid(Capsule(joints["neck"] + flank, joints["hip"] + flank, 0.075 * h), shirt, "shirt"))
    for name in ("right", "left"):
        for start, end, radius, paint, label in (
            ("shoulder", "elbow", 0.035, shirt, "shirt"),
            ("elbow", "wrist", 0.03, skin, "arm"),
            ("hip", "knee", 0.05, cloth, "trousers"),
            ("knee", "ankle", 0.042, cloth, "trousers"),
        ):
            limb = Capsule(joints[f"{name}_{start}"], joints[f"{name}_{end}"], radius * h)
            solids.append(Solid(limb, paint, label))
    return Thing(f"person in {article(colour)} {colour} shirt and {trousers} trousers", colour, tuple(solids), joints)


PILE: tuple[Builder, ...] = (ball, block, cone, cylinder, tent)
INDOOR: tuple[Builder, ...] = (*PILE, table, chair, person, person)
OUTDOOR: tuple[Builder, ...] = (*PILE, tree, tree, house, house, person, person)
"""People are twice as likely as most things, since they have the most shapes to learn."""
