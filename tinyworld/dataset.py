"""Scenes are rendered once and kept on disk as plain arrays, so training never waits for the renderer."""

import json
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from tinyworld.render import render
from tinyworld.scene import Scene, make_scene
from tinyworld.truth import MIRRORED_JOINTS, OPENPOSE_JOINTS, truth_of

SIZE = 128
HELD_OUT = 2_000_000_000
"""Seeds from here on are for evaluation only. Training scenes are numbered from 0. Guidance scale, control mode and
thresholds of joints were chosen on seeds from 1,000,000,000 on, so nothing is measured on those."""
MOST_PEOPLE = 3
ARRAYS: dict[str, tuple[tuple[int, ...], type]] = {
    "pictures": ((SIZE, SIZE, 3), np.uint8),
    "outlines": ((SIZE, SIZE), np.uint8),
    "straight": ((SIZE, SIZE), np.uint8),
    "nearness": ((SIZE, SIZE), np.uint8),
    "normals": ((SIZE, SIZE, 3), np.int8),
    "classes": ((SIZE, SIZE), np.uint8),
    "people": ((MOST_PEOPLE, len(OPENPOSE_JOINTS), 3), np.float32),
}
"""Shape and type of one scene's row in each array. Each array is a file with this name."""
CAPTIONS = "captions.json"


@dataclass(frozen=True)
class Dataset:
    """N scenes: pictures, and the truth of tinyworld/truth.py rounded to bytes."""

    pictures: np.ndarray
    """(N, 128, 128, 3) uint8, RGB."""
    outlines: np.ndarray
    """(N, 128, 128) uint8, 0 or 255."""
    straight: np.ndarray
    """(N, 128, 128) uint8, 0 or 255."""
    nearness: np.ndarray
    """(N, 128, 128) uint8, 255 nearest."""
    normals: np.ndarray
    """(N, 128, 128, 3) int8, 127 times the unit vector."""
    classes: np.ndarray
    """(N, 128, 128) uint8."""
    people: np.ndarray
    """(N, 3, 18, 3) float32: joints of up to three people; the rows of absent people are 0."""
    captions: list[str]

    def __len__(self) -> int:
        return len(self.captions)

    def sample(self, row: int, mirrored: bool = False) -> "Sample":
        """One scene, or its mirror image: there normals face the other way and right joints become left ones."""
        arrays = {name: np.array(getattr(self, name)[row]) for name in ARRAYS}
        arrays["picture"] = arrays.pop("pictures")
        people = arrays.pop("people")
        people = people[people[..., 2].any(axis=1)]
        if mirrored:
            arrays = {name: np.ascontiguousarray(array[:, ::-1]) for name, array in arrays.items()}
            arrays["normals"][..., 0] *= -1
            people = people[:, list(MIRRORED_JOINTS)] * np.array([-1, 1, 1], np.float32)
            people += np.array([SIZE, 0, 0], np.float32)
        return Sample(**arrays, people=people)


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


def load_dataset(folder: Path, count: int) -> Dataset:
    """The first `count` training scenes, rendered into `folder` unless they are there."""
    captions = folder / CAPTIONS
    files = {name: folder / f"{name}.npy" for name in ARRAYS}
    present = captions.exists() and all(file.exists() for file in files.values())
    if not present or len(json.loads(captions.read_text())) < count:
        folder.mkdir(parents=True, exist_ok=True)
        captions.unlink(missing_ok=True)
        captions.write_text(json.dumps(_render_all(files, count)))
    arrays = {name: np.load(file, mmap_mode="r")[:count] for name, file in files.items()}
    return Dataset(**arrays, captions=json.loads(captions.read_text())[:count])


def _render_all(files: dict[str, Path], count: int) -> list[str]:
    """Fill the files and return the captions."""
    arrays = {
        name: np.lib.format.open_memmap(files[name], "w+", dtype, (count, *shape))
        for name, (shape, dtype) in ARRAYS.items()
    }
    captions = []
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        for i, (row, caption) in enumerate(
            tqdm(pool.map(render_seed, range(count), chunksize=64), total=count, desc="render")
        ):
            for name, values in row.items():
                arrays[name][i] = values
            captions.append(caption)
    return captions


def render_seed(seed: int) -> tuple[dict[str, np.ndarray], str]:
    """One scene's row in each array, and its caption."""
    scene = make_scene(seed)
    return _row(scene), scene.caption


def sample_of(scene: Scene) -> Sample:
    """A scene's picture and truth, rendered now."""
    arrays = {name: values[None] for name, values in _row(scene).items()}
    return Dataset(**arrays, captions=[scene.caption]).sample(0)


def _row(scene: Scene) -> dict[str, np.ndarray]:
    view = render(scene, SIZE)
    truth = truth_of(scene, view)
    people = np.zeros(ARRAYS["people"][0], np.float32)
    for place, person in zip(people, truth.people, strict=False):
        place[:] = person
    return {
        "pictures": view.picture,
        "outlines": truth.outlines,
        "straight": truth.straight,
        "nearness": np.rint(truth.nearness * 255).astype(np.uint8),
        "normals": np.rint(truth.normals * 127).astype(np.int8),
        "classes": truth.classes,
        "people": people,
    }
