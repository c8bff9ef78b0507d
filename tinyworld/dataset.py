"""Scenes are rendered once and kept on disk as plain arrays, so training never waits for the renderer."""

import json
import os
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from tinyworld.render import FIRST_SOLID, View, render, smaller
from tinyworld.scene import Scene, make_scene
from tinyworld.truth import MIRRORED_JOINTS, OPENPOSE_JOINTS, truth_of

PICTURE = 256
"""Side of the pictures that are painted, and of their control maps."""
SEEN = 128
"""Side at which annotators and the scoring network see a picture."""
HELD_OUT = 2_000_000_000
"""Seeds from here on are for evaluation only. Training scenes are numbered from 0. Guidance scale, control mode and
thresholds of joints were chosen on seeds from 1,000,000,000 on, so nothing is measured on those."""
MOST_THINGS = 3
"""With a place in `people` and `boxes`. Piles have more things, which have none."""
SMALLEST_BOX = 8
"""A thing of which less is in view, in 128ths of the picture's side, has no box."""


def shapes(size: int) -> dict[str, tuple[tuple[int, ...], type]]:
    """Shape and type of one scene's row in each array, for pictures of `size`. Each array is a file with this name."""
    return {
        "pictures": ((size, size, 3), np.uint8),
        "outlines": ((size, size), np.uint8),
        "straight": ((size, size), np.uint8),
        "nearness": ((size, size), np.uint8),
        "normals": ((size, size, 3), np.int8),
        "classes": ((size, size), np.uint8),
        "people": ((MOST_THINGS, len(OPENPOSE_JOINTS), 3), np.float32),
        "boxes": ((MOST_THINGS, 4), np.int16),
    }


@dataclass(frozen=True)
class Words:
    """What is said of a scene."""

    captions: list[str]
    """The whole caption, then shorter ones."""
    things: list[str]
    """The words for each thing that has a place in `boxes`."""


@dataclass(frozen=True)
class Dataset:
    """N scenes at one size, of side n: pictures, and the truth of tinyworld/truth.py rounded to bytes."""

    pictures: np.ndarray
    """(N, n, n, 3) uint8, RGB."""
    outlines: np.ndarray
    """(N, n, n) uint8, 0 or 255."""
    straight: np.ndarray
    """(N, n, n) uint8, 0 or 255."""
    nearness: np.ndarray
    """(N, n, n) uint8, 255 nearest."""
    normals: np.ndarray
    """(N, n, n, 3) int8, 127 times the unit vector."""
    classes: np.ndarray
    """(N, n, n) uint8."""
    people: np.ndarray
    """(N, 3, 18, 3) float32: joints of up to three people; the rows of absent people are 0."""
    boxes: np.ndarray
    """(N, 3, 4) int16: left, top, right and bottom of what is in view of each thing; 0 if there is too little."""
    words: list[Words]

    def __len__(self) -> int:
        return len(self.words)

    @property
    def size(self) -> int:
        return self.pictures.shape[1]

    def sample(self, row: int, mirrored: bool = False) -> "Sample":
        """One scene, or its mirror image: there normals face the other way and right joints become left ones."""
        arrays = {name: np.array(getattr(self, name)[row]) for name in shapes(self.size)}
        arrays["picture"] = arrays.pop("pictures")
        people, boxes = arrays.pop("people"), arrays.pop("boxes")
        people = people[people[..., 2].any(axis=1)]
        if mirrored:
            arrays = {name: np.ascontiguousarray(array[:, ::-1]) for name, array in arrays.items()}
            arrays["normals"][..., 0] *= -1
            people = people[:, list(MIRRORED_JOINTS)] * np.array([-1, 1, 1], np.float32)
            people += np.array([self.size, 0, 0], np.float32)
            boxes[boxes.any(axis=1)] *= np.array([-1, 1, -1, 1], np.int16)
            boxes[boxes.any(axis=1)] += np.array([self.size, 0, self.size, 0], np.int16)
            boxes = boxes[:, [2, 1, 0, 3]]
        return Sample(**arrays, people=people, boxes=boxes, words=self.words[row])


@dataclass(frozen=True)
class Sample:
    """One scene's picture and truth, as in Dataset, with only the people in view."""

    picture: np.ndarray
    outlines: np.ndarray
    straight: np.ndarray
    nearness: np.ndarray
    normals: np.ndarray
    classes: np.ndarray
    people: np.ndarray
    boxes: np.ndarray
    words: Words

    @property
    def size(self) -> int:
        return self.picture.shape[0]


@dataclass(frozen=True)
class Scenes:
    """The same scenes as they are painted and as they are seen."""

    painted: Dataset
    seen: Dataset
    folder: Path

    def __reduce__(self) -> tuple:
        """Other processes open the files again, instead of getting copies."""
        return load_scenes, (self.folder, len(self))

    def __len__(self) -> int:
        return len(self.seen)


def load_scenes(folder: Path, count: int, seconds: float | None = None) -> Scenes:
    """The first `count` training scenes, rendered into `folder` unless they are there; as many as can be rendered in
    `seconds`, if that is given."""
    words = folder / "words.json"
    if not words.exists() or (seconds is None and len(json.loads(words.read_text())) < count):
        words.unlink(missing_ok=True)
        words.parent.mkdir(parents=True, exist_ok=True)
        words.write_text(json.dumps(_render_all(folder, count, seconds)))
    told = [Words(*each) for each in json.loads(words.read_text())[:count]]
    count = len(told)

    def load(size: int) -> Dataset:
        arrays = {name: np.load(folder / f"{name}_{size}.npy", mmap_mode="r")[:count] for name in shapes(size)}
        return Dataset(**arrays, words=told)

    return Scenes(load(PICTURE), load(SEEN), folder)


def _render_all(folder: Path, count: int, seconds: float | None) -> list[tuple[list[str], list[str]]]:
    """Fill the files and return the words."""
    arrays = {
        size: {
            name: np.lib.format.open_memmap(folder / f"{name}_{size}.npy", "w+", dtype, (count, *shape))
            for name, (shape, dtype) in shapes(size).items()
        }
        for size in (PICTURE, SEEN)
    }
    told, began = [], time.monotonic()
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        rendered = pool.map(render_seed, range(count), chunksize=16)
        for i, (rows, words) in enumerate(tqdm(rendered, total=count, desc="render", mininterval=10)):
            for size, row in rows.items():
                for name, values in row.items():
                    arrays[size][name][i] = values
            told.append((words.captions, words.things))
            if seconds is not None and time.monotonic() - began > seconds:
                pool.shutdown(wait=False, cancel_futures=True)
                break
    return told


def render_seed(seed: int) -> tuple[dict[int, dict[str, np.ndarray]], Words]:
    """One scene's row in each array of both sizes, and what is said of it."""
    scene = make_scene(seed)
    view = render(scene, PICTURE)
    return {PICTURE: _row(scene, view), SEEN: _row(scene, smaller(view, PICTURE // SEEN))}, words_of(scene)


def words_of(scene: Scene) -> Words:
    """A pile is one phrase for all its things, none of which has a box."""
    return Words([scene.caption, *scene.shorter], [thing.words for thing in _things_with_place(scene)])


def sample_of(scene: Scene, size: int = SEEN) -> Sample:
    """A scene's picture and truth, rendered now."""
    arrays = {name: values[None] for name, values in _row(scene, render(scene, size)).items()}
    return Dataset(**arrays, words=[words_of(scene)]).sample(0)


def _things_with_place(scene: Scene) -> tuple:
    return scene.things if len(scene.things) <= MOST_THINGS else ()


def _row(scene: Scene, view: View) -> dict[str, np.ndarray]:
    truth, size = truth_of(scene, view), len(view.ids)
    people = np.zeros((MOST_THINGS, len(OPENPOSE_JOINTS), 3), np.float32)
    for place, person in zip(people, truth.people, strict=False):
        place[:] = person
    boxes, first = np.zeros((MOST_THINGS, 4), np.int16), FIRST_SOLID
    for box, thing in zip(boxes, _things_with_place(scene), strict=False):
        rows, columns = np.nonzero((view.ids >= first) & (view.ids < first + len(thing.solids)))
        first += len(thing.solids)
        if len(rows) and min(np.ptp(rows), np.ptp(columns)) * 128 / size >= SMALLEST_BOX:
            box[:] = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
    return {
        "pictures": view.picture,
        "outlines": truth.outlines,
        "straight": truth.straight,
        "nearness": np.rint(truth.nearness * 255).astype(np.uint8),
        "normals": np.rint(truth.normals * 127).astype(np.int8),
        "classes": truth.classes,
        "people": people,
        "boxes": boxes,
    }
