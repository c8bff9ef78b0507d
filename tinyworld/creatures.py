"""People and animals, built like the things of things.py."""

from itertools import pairwise

import numpy as np

from tinyworld.shapes import Capsule, Ellipsoid, Frustum, turn, vector
from tinyworld.things import Random, Solid, Thing, any_colour, article, shade

SKIN = ((0.95, 0.78, 0.65), (0.80, 0.58, 0.42), (0.50, 0.33, 0.22))
HAIR = ((0.12, 0.09, 0.08), (0.36, 0.20, 0.10), (0.85, 0.68, 0.30), (0.62, 0.28, 0.12), (0.75, 0.74, 0.73))
DARK = vector(0.06, 0.06, 0.07)
FUR = ("black", "white", "grey", "orange", "brown")
FEATHERS = ("brown", "grey", "white", "orange")
AS_IN_NATURE = 0.5
"""Share of animals with a colour that such animals have. The others have any colour, as all things."""


def of_wing(down: np.ndarray) -> np.ndarray:
    """The colour of an owl's wings."""
    return 0.7 * down


def of_belly(down: np.ndarray) -> np.ndarray:
    return 0.5 * down + 0.5 * vector(0.95, 0.9, 0.8)


def person(rng: Random, place: np.ndarray, size: float, colour: str) -> Thing:
    """A jointed figure about 1.25 × `size` tall, with a shirt of that colour. Joints have OpenPose's names."""
    trousers, hair = any_colour(rng), HAIR[rng.integers(len(HAIR))]
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
        joints[f"{name}_knee"] = swing(joints[f"{name}_hip"], 0.23 * h, 0.0, 0.8, sign)
        joints[f"{name}_ankle"] = swing(joints[f"{name}_knee"], 0.23 * h, -0.5, 0.4, sign)
    shirt, cloth = shade(rng, colour), shade(rng, trousers)
    front = turn(yaw) @ vector(0, 0, -1)

    def lump(centre: np.ndarray, radii: np.ndarray, paint: np.ndarray, label: str) -> Solid:
        return Solid(Ellipsoid(centre.astype(np.float32), radii * np.float32(h)), paint, label)

    solids = [lump(joints["nose"], vector(0.065, 0.085, 0.07), skin, "head")]
    crown = joints["nose"] + (0.03 * vector(0, 1, 0) - 0.022 * front) * h
    solids.append(lump(crown, vector(0.07, 0.075, 0.07), np.array(hair, np.float32), "hair"))
    for sign in (-1, 1):
        eye = joints["nose"] + (0.012 * vector(0, 1, 0) + 0.058 * front + sign * 0.025 * side) * h
        solids.append(lump(eye, vector(0.011, 0.013, 0.011), vector(0.08, 0.08, 0.1), "eye"))
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
        solids.append(lump(joints[f"{name}_wrist"], vector(0.034, 0.038, 0.034), skin, "hand"))
        shoe = joints[f"{name}_ankle"] + (0.03 * front - 0.01 * vector(0, 1, 0)) * h
        solids.append(lump(shoe, vector(0.045, 0.032, 0.06), vector(0.15, 0.12, 0.12), "shoe"))
    return Thing(
        f"person in {article(colour)} {colour} shirt and {trousers} trousers", colour, tuple(solids), joints, "person"
    )


def cat(rng: Random, place: np.ndarray, size: float, colour: str) -> Thing:
    """A cat that sits and looks at the viewer, or stands sideways, with pointed ears, a white muzzle and a tail."""
    colour = str(rng.choice(FUR)) if rng.random() < AS_IN_NATURE else colour
    build = _sitting_cat if rng.random() < 0.65 else _standing_cat
    return Thing(f"{colour} cat", colour, tuple(build(rng, place, size, shade(rng, colour))), whole="animal")


def _sitting_cat(rng: Random, place: np.ndarray, size: float, fur: np.ndarray) -> list[Solid]:
    body = _Body(place, size, rng.uniform(-0.4, 0.4))
    lean, way = rng.uniform(-0.05, 0.05), float(rng.choice([-1, 1]))
    solids = [body.lump((0, 0.33, 0), (0.2, 0.32, 0.2), fur, "cat")]
    for sign in (-1, 1):
        solids += [
            body.lump((sign * 0.17, 0.14, 0.02), (0.12, 0.15, 0.16), fur, "cat"),
            body.limb((sign * 0.08, 0.4, -0.14), (sign * 0.08, 0.05, -0.2), 0.055, fur, "cat"),
        ]
    tail = [(way * 0.16, 0.06, 0.12), (way * 0.38, 0.06, 0.1), (way * 0.5, 0.2, 0.08), (way * 0.47, 0.42, 0.08)]
    solids += [body.limb(start, end, 0.045, fur, "cat") for start, end in pairwise(tail)]
    return solids + _cat_head(body, (lean, 0.78, -0.1), fur)


def _standing_cat(rng: Random, place: np.ndarray, size: float, fur: np.ndarray) -> list[Solid]:
    way = float(rng.choice([-1, 1]))
    body = _Body(place, size * 0.95, rng.uniform(-0.3, 0.3))
    solids = [body.limb((-way * 0.3, 0.48, 0), (way * 0.3, 0.5, 0), 0.17, fur, "cat")]
    for x in (-0.34, -0.22, 0.2, 0.32):
        stride, z = rng.uniform(-0.06, 0.06), 0.07 if x in (-0.22, 0.32) else -0.09
        solids.append(body.limb((way * x, 0.45, z), (way * x + stride, 0.05, z), 0.055, fur, "cat"))
    tail = [(-way * 0.42, 0.52, 0), (-way * 0.58, 0.7, 0), (-way * 0.56, 0.95, 0)]
    solids += [body.limb(start, end, 0.045, fur, "cat") for start, end in pairwise(tail)]
    return solids + _cat_head(body, (way * 0.5, 0.74, -0.1), fur)


def _cat_head(body: "_Body", middle: tuple[float, float, float], fur: np.ndarray) -> list[Solid]:
    x, y, z = middle
    solids = [
        body.lump((x, y, z), (0.2, 0.165, 0.16), fur, "cat"),
        body.lump((x, y - 0.07, z - 0.11), (0.085, 0.055, 0.07), vector(0.95, 0.93, 0.9), "muzzle"),
        body.lump((x, y - 0.045, z - 0.175), (0.025, 0.018, 0.02), vector(0.9, 0.5, 0.55), "nose"),
    ]
    for sign in (-1, 1):
        solids += [
            body.spike((x + sign * 0.125, y + 0.08, z), 0.2, 0.085, fur, "cat"),
            body.lump((x + sign * 0.08, y + 0.03, z - 0.13), (0.042, 0.045, 0.03), vector(0.75, 0.85, 0.25), "eye"),
            body.lump((x + sign * 0.08, y + 0.03, z - 0.155), (0.018, 0.036, 0.02), DARK, "pupil"),
        ]
    return solids


def owl(rng: Random, place: np.ndarray, size: float, colour: str) -> Thing:
    """An owl that sits on the ground or on a stump: large eyes, ear tufts, wings, a light belly."""
    colour = str(rng.choice(FEATHERS)) if rng.random() < AS_IN_NATURE else colour
    down, solids = shade(rng, colour), []
    if rng.random() < 0.4:
        stump, size = size * 0.25, size * 0.75
        solids.append(Solid(Frustum(place, stump, size * 0.3, size * 0.27), shade(rng, "brown"), "stump"))
        place = place + vector(0, stump, 0)
    body = _Body(place, size * 0.95, rng.uniform(-0.5, 0.5))
    beak = vector(0.95, 0.65, 0.15)
    solids += [
        body.lump((0, 0.42, 0), (0.29, 0.4, 0.25), down, "owl"),
        body.lump((0, 0.36, -0.08), (0.2, 0.29, 0.19), of_belly(down), "belly"),
        body.lump((0, 0.83, -0.02), (0.27, 0.2, 0.22), down, "owl"),
        body.lump((0, 0.76, -0.24), (0.035, 0.06, 0.04), beak, "beak"),
    ]
    for sign in (-1, 1):
        solids += [
            body.spike((sign * 0.18, 0.93, -0.02), 0.16, 0.07, down, "owl"),
            body.lump((sign * 0.115, 0.86, -0.17), (0.1, 0.1, 0.06), vector(0.97, 0.95, 0.85), "eye"),
            body.lump((sign * 0.115, 0.86, -0.215), (0.048, 0.048, 0.03), DARK, "pupil"),
            body.lump((sign * 0.28, 0.42, 0), (0.09, 0.31, 0.18), of_wing(down), "wing"),
            body.lump((sign * 0.1, 0.02, -0.16), (0.07, 0.04, 0.09), beak, "foot"),
        ]
    return Thing(f"{colour} owl", colour, tuple(solids), whole="animal")


class _Body:
    """Parts placed in units of a creature's size, with x to its left, y up and -z to its front."""

    def __init__(self, place: np.ndarray, size: float, yaw: float) -> None:
        self.place, self.size, self.turned = place, np.float32(size), turn(yaw)

    def at(self, point: tuple[float, float, float]) -> np.ndarray:
        return (self.place + self.turned @ vector(*point) * self.size).astype(np.float32)

    def lump(self, middle: tuple, radii: tuple, paint: np.ndarray, label: str) -> Solid:
        return Solid(Ellipsoid(self.at(middle), vector(*radii) * self.size), paint.astype(np.float32), label)

    def limb(self, start: tuple, end: tuple, radius: float, paint: np.ndarray, label: str) -> Solid:
        return Solid(Capsule(self.at(start), self.at(end), radius * float(self.size)), paint, label)

    def spike(self, foot: tuple, height: float, radius: float, paint: np.ndarray, label: str) -> Solid:
        return Solid(Frustum(self.at(foot), height * float(self.size), radius * float(self.size), 0.0), paint, label)
