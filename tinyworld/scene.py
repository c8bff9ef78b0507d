"""A scene: a place, one to three things or a pile, a camera, and the caption of all this, from one seed."""

import re
from dataclasses import dataclass

import numpy as np

from tinyworld.shapes import vector
from tinyworld.things import COLOURS, INDOOR, OUTDOOR, PILE, Random, Thing, any_colour, article, shade

GROUNDS = {
    "grass": (0.30, 0.58, 0.20),
    "sand": (0.88, 0.76, 0.50),
    "snow": (0.93, 0.95, 0.98),
    "asphalt": (0.35, 0.35, 0.38),
}
SKIES = {
    "blue": (0.45, 0.70, 0.95),
    "grey": (0.70, 0.72, 0.75),
    "orange": (0.98, 0.62, 0.35),
    "black": (0.06, 0.07, 0.15),
}
PILE_SHARE = 0.12
"""Share of scenes with a pile of many things, as cluttered as photographs: nets must also learn their edges."""


@dataclass(frozen=True)
class Camera:
    """Looks along +z from `eye`, tilted down by `pitch` radians; `focal` is in units of half the picture's side."""

    eye: np.ndarray
    pitch: float
    focal: float


@dataclass(frozen=True)
class Surround:
    """Ground, and a sky or a back wall (at z = `wall`) with side walls at x = ± `half_width`. RGB is from 0 to 1."""

    words: str
    ground_name: str
    """One of GROUNDS, or "floor" indoors."""
    ground: np.ndarray
    above: np.ndarray
    wall: float | None = None
    half_width: float | None = None
    tiles: float = 0.0
    """Edge length of the pattern of tiles, planks or bricks on walls and ground. 0 means no pattern."""


@dataclass(frozen=True)
class Scene:
    things: tuple[Thing, ...]
    surround: Surround
    camera: Camera
    light: np.ndarray
    """Unit vector towards the light."""
    caption: str


def make_scene(seed: int) -> Scene:
    """The scene of this seed: the same for the same seed, on every machine with the same numpy."""
    rng = np.random.default_rng(seed)
    indoors = rng.random() < 0.55
    surround = _room(rng) if indoors else _landscape(rng)
    if rng.random() < PILE_SHARE:
        things, words = _pile(rng)
    else:
        count = int(rng.choice([1, 2, 3], p=[0.5, 0.35, 0.15]))
        things = tuple(_things(rng, INDOOR if indoors else OUTDOOR, count))
        words = _names(rng, things)
    eye = vector(rng.uniform(-0.4, 0.4), rng.uniform(0.9, 2.2), 0)
    pitch = float(np.arctan2(eye[1] - rng.uniform(0.6, 1.0), 5.5))
    light = vector(rng.uniform(-0.8, 0.8), rng.uniform(0.7, 1.2), rng.uniform(-0.9, -0.3))
    camera = Camera(eye, pitch, rng.uniform(1.9, 2.6))
    return Scene(things, surround, camera, light / np.linalg.norm(light), f"{words} {surround.words}")


def _room(rng: Random) -> Surround:
    wall_name = any_colour(rng)
    wall = shade(rng, wall_name)
    tiles = rng.choice([0.0, 0.0, 0.5, 1.0])
    if rng.random() < 0.3:
        return Surround(
            f"on {article(wall_name)} {wall_name} background", "floor", wall * 0.95, wall, rng.uniform(8, 11), None, 0.0
        )
    floor_name = str(rng.choice([name for name in COLOURS if name != wall_name]))
    half_width = rng.uniform(2.8, 4.5) if rng.random() < 0.6 else None
    words = f"in {article(wall_name)} {wall_name} room with {article(floor_name)} {floor_name} floor"
    return Surround(words, "floor", shade(rng, floor_name), wall, rng.uniform(7.5, 10), half_width, tiles)


def _landscape(rng: Random) -> Surround:
    ground_name, sky_name = str(rng.choice(list(GROUNDS))), str(rng.choice(list(SKIES)))
    ground = np.clip(np.array(GROUNDS[ground_name]) + rng.normal(0, 0.03, 3), 0, 1)
    sky = np.clip(np.array(SKIES[sky_name]) + rng.normal(0, 0.03, 3), 0, 1)
    words = f"on {ground_name} under {article(sky_name)} {sky_name} sky"
    return Surround(words, ground_name, ground.astype(np.float32), sky.astype(np.float32))


def _things(rng: Random, builders: tuple, count: int) -> list[Thing]:
    """Things from left to right, each in a separate slot, so none hides another completely."""
    slots = {1: [0.0], 2: [-0.9, 0.9], 3: [-1.5, 0.0, 1.5]}[count]
    largest = {1: 2.8, 2: 2.0, 3: 1.5}[count]
    things = []
    for slot in slots:
        place = vector(slot + rng.uniform(-0.25, 0.25), 0, rng.uniform(4.6, 6.6))
        build = builders[rng.integers(len(builders))]
        things.append(build(rng, place, rng.uniform(0.65, 1.0) * largest, any_colour(rng)))
    return things


def _pile(rng: Random) -> tuple[tuple[Thing, ...], str]:
    """Six to twelve things of up to three colours, at any height and depth, and the words for them."""
    colours = [str(name) for name in rng.choice(list(COLOURS), rng.integers(1, 4), replace=False)]
    things = []
    for i in range(rng.integers(6, 13)):
        place = vector(rng.uniform(-2.2, 2.2), rng.uniform(0, 2.2), rng.uniform(4, 7.5))
        build = PILE[rng.integers(len(PILE))]
        things.append(build(rng, place, rng.uniform(0.25, 1.3), colours[i % len(colours)]))
    return tuple(things), f"many {_listed(colours)} things"


def _names(rng: Random, things: tuple[Thing, ...]) -> str:
    words = [f"{article(thing.words)} {thing.words}" for thing in things]
    if len(words) == 2:
        return f"{words[0]} {rng.choice(['and', 'beside', 'next to'])} {words[1]}"
    return _listed(words)


def _listed(words: list[str]) -> str:
    return " and ".join([*filter(None, [", ".join(words[:-1])]), words[-1]])


def recoloured(caption: str, rng: Random, first: str | None = None, only_first: bool = False) -> str:
    """The caption with other colours: first `first`, or a random one if that is None, then random ones."""

    def another(found: re.Match) -> str:
        old, place = found["colour"], found["place"] or ""
        names = [name for name in (SKIES if place else COLOURS) if name != old]
        new = first if first is not None and found.start() == start else str(rng.choice(names))
        return f"{article(new) + ' ' if found['article'] else ''}{new}{place}"

    pattern = re.compile(rf"(?P<article>\ban? )?\b(?P<colour>{'|'.join(COLOURS)})\b(?P<place> sky)?")
    match = pattern.search(caption)
    start = match.start() if match else 0
    return pattern.sub(another, caption, count=1 if only_first else 0)


def colourless(caption: str) -> str:
    """The caption without words that name a colour. Those for grounds are left out too: grass is green."""
    caption = re.sub("^many .* things", "many things", caption)
    caption = re.sub(rf"\b(an? )?(?:{'|'.join(COLOURS)}) ", lambda found: "a " if found[1] else "", caption)
    return re.sub(rf"\bon (?:{'|'.join(GROUNDS)}) ", "", caption)
