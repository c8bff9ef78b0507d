"""Scenes rendered once and kept on disk as plain arrays, so that training never waits for the renderer.

pictures.npy   (N, 128, 128, 3) uint8, RGB
outlines.npy   (N, 128, 128) uint8, 255 where one surface ends and another begins
captions.json  N strings
"""

import json
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from tinyworld.render import View, render
from tinyworld.scene import make_scene

SIZE = 128
HELD_OUT = 1_000_000_000
"""Seeds from here on are for evaluation only; training scenes are numbered from 0."""


@dataclass(frozen=True)
class Dataset:
    pictures: np.ndarray
    outlines: np.ndarray
    captions: list[str]

    def __len__(self) -> int:
        return len(self.captions)


def outlines(view: View) -> np.ndarray:
    """(n, n) uint8: 255 at pixels whose right or lower neighbour is another surface, or faces clearly elsewhere."""
    edge = np.zeros(view.ids.shape, bool)
    for axis in (0, 1):
        here, there = (np.take(view.ids, range(start, view.ids.shape[axis] - 1 + start), axis) for start in (0, 1))
        facing = [np.take(view.normals, range(start, view.ids.shape[axis] - 1 + start), axis) for start in (0, 1)]
        # A fold sharper than about 30 degrees is drawn even within one thing: the edges of a box, the foot of a wall.
        folded = (facing[0] * facing[1]).sum(-1) < 0.87
        edge[tuple(slice(0, -1) if a == axis else slice(None) for a in (0, 1))] |= (here != there) | (
            folded & (here != 4)
        )
    return edge.astype(np.uint8) * 255


def load_dataset(folder: Path, count: int) -> Dataset:
    """The first `count` training scenes, rendered into `folder` if they are not there yet."""
    files = [folder / name for name in ("pictures.npy", "outlines.npy", "captions.json")]
    if not all(file.exists() for file in files) or len(json.loads(files[2].read_text())) < count:
        folder.mkdir(parents=True, exist_ok=True)
        _render_all(files, count)
    pictures, lines = (np.load(file, mmap_mode="r")[:count] for file in files[:2])
    return Dataset(pictures, lines, json.loads(files[2].read_text())[:count])


def _render_all(files: list[Path], count: int) -> None:
    pictures = np.lib.format.open_memmap(files[0], "w+", np.uint8, (count, SIZE, SIZE, 3))
    lines = np.lib.format.open_memmap(files[1], "w+", np.uint8, (count, SIZE, SIZE))
    captions = []
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        rows = pool.map(render_seed, range(count), chunksize=64)
        for i, (picture, outline, caption) in enumerate(tqdm(rows, total=count, desc="render")):
            pictures[i], lines[i] = picture, outline
            captions.append(caption)
    files[2].write_text(json.dumps(captions))


def render_seed(seed: int) -> tuple[np.ndarray, np.ndarray, str]:
    """Picture, outlines and caption of one scene."""
    scene = make_scene(seed)
    view = render(scene, SIZE)
    return view.picture, outlines(view), scene.caption
