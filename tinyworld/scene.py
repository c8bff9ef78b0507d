"""A scene: a place, one to three things or a pile, a camera, and the captions of all this, from one seed."""

import re
from dataclasses import dataclass

import numpy as np

from tinyworld.creatures import cat, owl, person
from tinyworld.shapes import vector
from tinyworld.things import (
    COLOURS,
    PILE,
    Builder,
    Random,
    Solid,
    Thing,
    any_colour,
    article,
    boat,
    chair,
    cup,
    heaven,
    house,
    shade,
    table,
    tree,
)

INDOOR: tuple[Builder, ...] = (*PILE, table, table, chair, cup, cup, cat, cat, owl, person, person, person)
OUTDOOR: tuple[Builder, ...] = (*PILE, *(tree, house, cat, owl) * 2, house, *(person,) * 4)
"""People have the most shapes to learn, so they are the most frequent."""

GROUNDS = {
    "grass": (0.30, 0.58, 0.20),
    "sand": (0.88, 0.76, 0.50),
    "snow": (0.93, 0.95, 0.98),
    "asphalt": (0.35, 0.35, 0.38),
}
WATER, SEA = "water", (0.20, 0.45, 0.68)
SKIES = {
    "blue": (0.45, 0.70, 0.95),
    "grey": (0.70, 0.72, 0.75),
    "orange": (0.98, 0.62, 0.35),
    "black": (0.06, 0.07, 0.15),
}
PILE_SHARE = 0.08
"""Share of scenes with a pile of many things, as cluttered as photographs: nets must also learn their edges."""
INDOOR_SHARE = 0.45
WATER_SHARE = 0.14
"""Share of landscapes that are water, with boats on it."""
HOMESTEAD_SHARE = 0.4
"""Share of the other landscapes that show what people draw most: a house with a tree beside it."""
CLOSE_SHARE = 0.08
"""Share of scenes in which the camera sees one thing from near, as a window of an enlarged picture does."""
LOW_SHARE = 0.3
"""Share of landscapes seen from near the ground, which then ends where things stand, as in most drawings."""
HEAVEN_SHARE = 0.3
"""Share of landscapes with the sun, or at night the moon."""


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
    """One of GROUNDS, WATER, or "floor" indoors."""
    ground: np.ndarray
    above: np.ndarray
    wall: float | None = None
    half_width: float | None = None
    tiles: float = 0.0
    """Edge length of the pattern of tiles, planks or bricks on walls and ground. 0 means no pattern."""
    sky_name: str | None = None
    """One of SKIES, or None indoors."""


@dataclass(frozen=True)
class Scene:
    things: tuple[Thing, ...]
    heaven: Thing | None
    """The sun or the moon."""
    surround: Surround
    camera: Camera
    light: np.ndarray
    """Unit vector towards the light."""
    caption: str
    """Names all things and the place."""
    shorter: tuple[str, ...]
    """Captions that say less, as users do: without the place, without colours, without one of the things."""

    @property
    def everything(self) -> tuple[Thing, ...]:
        return (*self.things, self.heaven) if self.heaven else self.things

    @property
    def solids(self) -> list[Solid]:
        """Of everything, in the order of their numbers in a view."""
        return [solid for thing in self.everything for solid in thing.solids]


def make_scene(seed: int) -> Scene:
    """The scene of this seed: the same for the same seed, on every machine with the same numpy."""
    rng = np.random.default_rng(seed)
    indoors, water, pile = rng.random() < INDOOR_SHARE, rng.random() < WATER_SHARE, rng.random() < PILE_SHARE
    surround = _room(rng) if indoors else _landscape(rng, water)
    count = int(rng.choice([1, 2, 3], p=[0.5, 0.35, 0.15]))
    phrases = None
    if not indoors and water:
        things = tuple(_things(rng, (boat,), min(count, 2)))
    elif pile:
        things, phrases = _pile(rng)
    elif not indoors and rng.random() < HOMESTEAD_SHARE:
        things = _homestead(rng)
    else:
        things = tuple(_things(rng, INDOOR if indoors else OUTDOOR, count))
    phrases = phrases or [f"{article(thing.words)} {thing.words}" for thing in things]
    sky = surround.sky_name
    above = heaven(rng, sky) if sky and rng.random() < HEAVEN_SHARE else None
    place = f"{surround.words} with {article(above.words)} {above.words}" if above else surround.words
    eye = vector(rng.uniform(-0.4, 0.4), rng.uniform(0.9, 2.2), 0)
    pitch = float(np.arctan2(eye[1] - rng.uniform(0.6, 1.0), 5.5))
    focal = rng.uniform(1.9, 2.6)
    if rng.random() < CLOSE_SHARE:
        eye[0], eye[2], focal = *_before(things[rng.integers(len(things))]), focal * rng.uniform(1.3, 2.2)
    light = vector(rng.uniform(-0.8, 0.8), rng.uniform(0.7, 1.2), rng.uniform(-0.9, -0.3))
    caption = f"{_joined(rng, phrases)} {place}"
    shorter = _shorter(rng, caption, phrases, place)
    if not indoors and rng.random() < LOW_SHARE:
        eye[1] = rng.uniform(0.12, 0.35)
        pitch = float(np.arctan2(eye[1] - rng.uniform(0.6, 1.0), 5.5))
    camera = Camera(eye, pitch, focal)
    return Scene(things, above, surround, camera, light / np.linalg.norm(light), caption, shorter)


def _before(thing: Thing) -> tuple[float, float]:
    """x and z of a camera that has the thing in its middle and is at its usual distance."""
    x, _, z = np.mean([solid.shape.bounds()[0] for solid in thing.solids], axis=0)
    return float(x), float(z) - 5.5


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


def _landscape(rng: Random, water: bool) -> Surround:
    ground_name, sky_name = str(rng.choice(list(GROUNDS))), str(rng.choice(list(SKIES)))
    ground_name = WATER if water else ground_name
    ground = np.clip(np.array((GROUNDS | {WATER: SEA})[ground_name]) + rng.normal(0, 0.03, 3), 0, 1)
    sky = np.clip(np.array(SKIES[sky_name]) + rng.normal(0, 0.03, 3), 0, 1)
    words = f"on {ground_name} under {article(sky_name)} {sky_name} sky"
    return Surround(words, ground_name, ground.astype(np.float32), sky.astype(np.float32), sky_name=sky_name)


def _things(rng: Random, builders: tuple, count: int) -> list[Thing]:
    """Things from left to right, each in a separate slot, so none hides another completely."""
    slots = {1: [0.0], 2: [-0.9, 0.9], 3: [-1.5, 0.0, 1.5]}[count]
    largest = {1: 2.8, 2: 2.0, 3: 1.5}[count]
    things = []
    for slot in slots:
        place = vector(slot + rng.uniform(-0.25, 0.25), 0, rng.uniform(4.6, 6.6))
        build = builders[rng.integers(len(builders))]
        if count == 3 and build is person and any(thing.keypoints for thing in things):
            build = PILE[rng.integers(len(PILE))]  # the caption must fit into the tokens
        things.append(build(rng, place, rng.uniform(0.65, 1.0) * largest, any_colour(rng)))
    return things


def _homestead(rng: Random) -> tuple[Thing, ...]:
    side = float(rng.choice([-1, 1]))
    spots = [vector(-side * rng.uniform(0.4, 0.8), 0, rng.uniform(5, 6)), vector(side * 1.5, 0, rng.uniform(4.8, 6.4))]
    home = house(rng, spots[0], rng.uniform(1.5, 2.2), any_colour(rng))
    return home, tree(rng, spots[1], rng.uniform(1.2, 2.0), any_colour(rng))


def _pile(rng: Random) -> tuple[tuple[Thing, ...], list[str]]:
    """Six to twelve things of up to three colours, at any height and depth, and the words for them."""
    colours = [str(name) for name in rng.choice(list(COLOURS), rng.integers(1, 4), replace=False)]
    things = []
    for i in range(rng.integers(6, 13)):
        place = vector(rng.uniform(-2.2, 2.2), rng.uniform(0, 2.2), rng.uniform(4, 7.5))
        build = PILE[rng.integers(len(PILE))]
        things.append(build(rng, place, rng.uniform(0.25, 1.3), colours[i % len(colours)]))
    return tuple(things), [f"many {_listed(colours)} things"]


def _joined(rng: Random, phrases: list[str]) -> str:
    if len(phrases) == 2:
        return f"{phrases[0]} {rng.choice(['and', 'beside', 'next to'])} {phrases[1]}"
    return _listed(phrases)


def _shorter(rng: Random, caption: str, phrases: list[str], place: str) -> tuple[str, ...]:
    names = _joined(rng, phrases)
    said = [names, colourless(caption), colourless(names)]
    if len(phrases) > 1:
        left_out = int(rng.integers(len(phrases)))
        rest = _joined(rng, [words for i, words in enumerate(phrases) if i != left_out])
        said += [f"{rest} {place}", rest]
    return tuple(said)


def colourless(caption: str) -> str:
    """The caption without the names of colours: "a red house with an orange roof" becomes "a house with a roof"."""
    name = f"(?:{'|'.join(COLOURS)})"
    bare = re.sub(rf"\b{name}(?:, {name})*(?: and {name})? ", "", caption)
    return re.sub(r"\ban?(?= (\w))", lambda found: article(found[1]), bare)


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


def without_paint(caption: str) -> str:
    """The caption without any word that tells a colour. Those for grounds are left out too: grass is green."""
    return re.sub(rf"\bon (?:{'|'.join((*GROUNDS, WATER))}) ", "", colourless(caption))
