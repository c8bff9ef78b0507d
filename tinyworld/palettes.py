"""What a picture has in common with its reference picture: the colours of ground, sky or walls and things, and the
light.

The reference is another scene, painted in the colours of the first. So training can only learn to carry colours over,
and not where things are.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch

from tinyworld.cases import MAIN_SOLIDS
from tinyworld.creatures import of_belly, of_wing
from tinyworld.night import NIGHT
from tinyworld.scene import Scene, make_scene
from tinyworld.things import Thing

SECOND_SOLIDS = {"roof", "trousers", "sail"}
"""In things of several colours, the solids that have the other colour in the caption."""
FOLLOWING: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "saucer": lambda main: main,
    "wing": of_wing,
    "belly": of_belly,
}
"""The solids whose colour follows from that of the main ones."""
CANDIDATES = 8
"""A reference is the best of so many scenes: that with the most similar kinds of things."""
MOST_THINGS = 3
"""Of a scene's things, so many count. A pile has no more colours than that."""
FACTS = 3 * (2 + 2 * MOST_THINGS) + 1
"""Numbers in facts_of()."""


@dataclass(frozen=True)
class Palette:
    """A scene's colours, each RGB, 0 to 1."""

    ground: np.ndarray
    above: np.ndarray
    """Of the sky or the walls."""
    things: tuple[tuple[np.ndarray, np.ndarray | None], ...]
    """For each thing from left to right, its colour, and that of its roof, trousers or sail, if it has any. Of a pile,
    one for each colour."""


def palette_of(scene: Scene) -> Palette:
    """The colours of a scene."""
    if len(scene.things) > MOST_THINGS:
        things = [*{thing.colour: thing for thing in scene.things}.values()]
    else:
        things = sorted(scene.things, key=_across)
    return Palette(scene.surround.ground, scene.surround.above, tuple(map(_colours, things)))


def scene_like(scene: Scene, seed: int) -> Scene:
    """Another scene in the colours and the light of `scene`; `seed` chooses places, things and camera.

    It need not be outdoors if `scene` is: a wall may have the colour of a sky.
    """
    seeds, palette = np.random.default_rng(seed).integers(1_000_000_000, size=CANDIDATES), palette_of(scene)
    kinds = [second is None for _, second in palette.things]

    def likeness(other: Scene) -> float:
        own = [second is None for _, second in palette_of(other).things]
        return -abs(len(own) - len(kinds)) + 0.2 * sum(a == b for a, b in zip(own, kinds, strict=False))

    other = max((make_scene(int(each)) for each in seeds), key=likeness)
    return in_colours_of(scene, other)


def in_colours_of(scene: Scene, other: Scene) -> Scene:
    """The scene `other` in the colours and the light of `scene`."""
    palette = palette_of(scene)
    of_colour = {name: i for i, name in enumerate(dict.fromkeys(thing.colour for thing in other.things))}
    piled, places = len(other.things) > MOST_THINGS, sorted(map(_across, other.things))
    numbers = [of_colour[thing.colour] if piled else places.index(_across(thing)) for thing in other.things]
    things = tuple(
        _painted(thing, *palette.things[number % len(palette.things)])
        for thing, number in zip(other.things, numbers, strict=True)
    )
    surround = replace(other.surround, ground=palette.ground, above=palette.above)
    return replace(other, things=things, surround=surround, light=scene.light)


def facts_of(scene: Scene, at_night: bool, mirrored: bool = False) -> torch.Tensor:
    """What an encoder of references must know of a picture, (FACTS,) float32: the colours, and 1 if it is night, else
    0. NaN is for what the scene does not have, and for the colours of a pile of several, which have no order."""
    palette, light, none = palette_of(scene), NIGHT if at_night else 1.0, np.full(3, np.nan, np.float32)
    colours = [palette.ground, palette.above]
    ordered = len(scene.things) <= MOST_THINGS or len(palette.things) == 1
    for main, second in palette.things[:: -1 if mirrored else 1] if ordered else ():
        colours += [main, none if second is None else second]
    colours += [none] * (2 + 2 * MOST_THINGS - len(colours))
    return torch.from_numpy(np.concatenate([*(colour * light for colour in colours), [at_night]]).astype(np.float32))


def _across(thing: Thing) -> float:
    """How far to the right it is."""
    return float(thing.solids[0].shape.bounds()[0][0])


def _colours(thing: Thing) -> tuple[np.ndarray, np.ndarray | None]:
    def first(labels: set[str]) -> np.ndarray | None:
        return next((solid.colour for solid in thing.solids if solid.label in labels), None)

    main = first(MAIN_SOLIDS)
    assert main is not None
    return main, first(SECOND_SOLIDS)


def _painted(thing: Thing, main: np.ndarray, second: np.ndarray | None) -> Thing:
    def colour(label: str, own: np.ndarray) -> np.ndarray:
        if label in MAIN_SOLIDS:
            return main
        if label in FOLLOWING:
            return FOLLOWING[label](main)
        return second if label in SECOND_SOLIDS and second is not None else own

    return replace(
        thing, solids=tuple(replace(solid, colour=colour(solid.label, solid.colour)) for solid in thing.solids)
    )
