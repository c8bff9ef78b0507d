"""Renders a scene with one ray per sample, and keeps the exact truth with the picture: depth, normals, solids.

The grid of samples is twice as fine as the picture and is averaged, which makes edges as smooth as in a photograph.
"""

from dataclasses import dataclass

import numpy as np

from tinyworld.scene import Camera, Scene, Surround
from tinyworld.shapes import FAR, unit
from tinyworld.things import Solid

AMBIENT = 0.45
GROUND, WALL, LEFT, RIGHT, SKY = range(5)
"""Ids of the surroundings in View.ids. The solids follow from FIRST_SOLID on."""
FIRST_SOLID = 5


@dataclass(frozen=True)
class View:
    """A picture of side n and its truth."""

    picture: np.ndarray
    """(n, n, 3) uint8, RGB."""
    depth: np.ndarray
    """(n, n) float32, distance along the viewing direction in metres, inf in the sky."""
    normals: np.ndarray
    """(n, n, 3) float32, unit, in the camera's axes: x right, y up, z towards the camera; 0 in the sky."""
    ids: np.ndarray
    """(n, n) uint8: the id of the surface in view."""


def render(scene: Scene, size: int = 128, samples: int = 2) -> View:
    """The scene as a square picture of `size` pixels, with samples × samples rays to a pixel."""
    fine = size * samples
    rays = camera_rays(scene.camera, fine)
    eye = scene.camera.eye
    t, normals, ids, colours = _surround(scene.surround, eye, rays)
    for number, solid in enumerate(scene.solids):
        _draw(solid, FIRST_SOLID + number, eye, rays, scene.camera, (t, normals, ids, colours))
    lit = _light(scene, eye, rays, t, normals, ids, colours)
    picture = lit.reshape(size, samples, size, samples, 3).mean(axis=(1, 3))
    axes = camera_axes(scene.camera)
    centre = (slice(samples // 2, None, samples),) * 2
    depth = (t * (rays @ axes[2])).reshape(fine, fine)
    seen = (normals @ axes.T * np.array([1, 1, -1], np.float32)).reshape(fine, fine, 3)
    return View(
        np.round(np.clip(picture, 0, 1) * 255).astype(np.uint8),
        depth[centre].astype(np.float32),
        seen[centre].astype(np.float32),
        ids.reshape(fine, fine)[centre].astype(np.uint8),
    )


def smaller(view: View, factor: int) -> View:
    """The view at an integer fraction of its side: pixels are averaged, and of the truth every `factor`-th is kept."""
    side, kept = len(view.ids) // factor, (slice(factor // 2, None, factor),) * 2
    mean = view.picture.reshape(side, factor, side, factor, 3).mean((1, 3))
    return View(np.round(mean).astype(np.uint8), view.depth[kept], view.normals[kept], view.ids[kept])


def camera_axes(camera: Camera) -> np.ndarray:
    """Right, up and forward as the rows of a (3, 3) matrix."""
    c, s = np.cos(camera.pitch), np.sin(camera.pitch)
    return np.array([[1, 0, 0], [0, c, s], [0, -s, c]], np.float32)


def camera_rays(camera: Camera, size: int) -> np.ndarray:
    """Unit directions (size², 3), row by row from the top left."""
    grid = ((np.arange(size) + 0.5) / size * 2 - 1).astype(np.float32)
    x, y = np.meshgrid(grid, -grid)
    local = np.stack([x.ravel(), y.ravel(), np.full(size * size, camera.focal, np.float32)], 1)
    return unit(local @ camera_axes(camera)).astype(np.float32)


def project(camera: Camera, point: np.ndarray) -> tuple[np.ndarray, float]:
    """Position of a point in the picture, (x, y) from -1 to 1 with y downwards, and its distance along the view."""
    right, up, forward = camera_axes(camera) @ (point - camera.eye)
    return np.array([right, -up]) * camera.focal / max(forward, 1e-3), float(forward)


def _surround(surround: Surround, eye: np.ndarray, rays: np.ndarray) -> tuple[np.ndarray, ...]:
    t = np.full(len(rays), FAR, np.float32)
    normals = np.zeros_like(rays)
    ids = np.full(len(rays), SKY, np.uint8)
    # A sky is lighter towards the horizon.
    lift = np.clip(1 - np.abs(rays[:, 1:2]) * 3, 0, 1) * 0.35
    colours = (surround.above * (1 - lift) + lift * 0.9).astype(np.float32)
    planes = [(GROUND, 1, 0.0, 1.0, surround.ground)]
    if surround.wall is not None:
        planes.append((WALL, 2, surround.wall, -1.0, surround.above))
    if surround.half_width is not None:
        planes.append((LEFT, 0, -surround.half_width, 1.0, surround.above * 0.9))
        planes.append((RIGHT, 0, surround.half_width, -1.0, surround.above * 0.9))
    for number, axis, level, facing, colour in planes:
        with np.errstate(divide="ignore", invalid="ignore"):
            distance = (level - eye[axis]) / rays[:, axis]
        closer = (distance > 0) & (distance < t)
        t[closer], ids[closer] = distance[closer], number
        normals[closer] = 0
        normals[closer, axis] = facing
        colours[closer] = colour
    _lay_tiles(surround.tiles, eye, rays, t, normals, colours)
    return t, normals, ids, colours


def _lay_tiles(
    edge: float, eye: np.ndarray, rays: np.ndarray, t: np.ndarray, normals: np.ndarray, colours: np.ndarray
) -> None:
    if not edge:
        return
    with np.errstate(invalid="ignore"):
        points = eye + rays * t[:, None]
        cells = np.floor(points / edge + 1e-3)
        cells[normals != 0] = 0  # not across the plane itself
        odd = np.nan_to_num(cells.sum(1) % 2)
    colours *= (1 - 0.14 * odd)[:, None]


def _draw(solid: Solid, number: int, eye: np.ndarray, rays: np.ndarray, camera: Camera, buffers: tuple) -> None:
    """Draw one solid into the buffers, using only the rays of the square that can hit it."""
    t, normals, ids, colours = buffers
    size = int(np.sqrt(len(rays)))
    centre, radius = solid.shape.bounds()
    (x, y), distance = project(camera, centre)
    # The outline of a sphere reaches a little further in perspective than its radius at its centre.
    reach = 1.3 * radius * camera.focal / max(distance - radius, 0.1)
    left, right = (int(np.clip((v + 1) / 2 * size, 0, size)) for v in (x - reach, x + reach + 2 / size))
    top, bottom = (int(np.clip((v + 1) / 2 * size, 0, size)) for v in (y - reach, y + reach + 2 / size))
    index = (np.arange(top, bottom)[:, None] * size + np.arange(left, right)).ravel()
    if not len(index):
        return
    hit, facing = solid.shape.hit(eye, rays[index])
    closer = hit < t[index]
    index = index[closer]
    t[index], normals[index] = hit[closer], facing[closer]
    ids[index], colours[index] = number, solid.colour


def _light(
    scene: Scene,
    eye: np.ndarray,
    rays: np.ndarray,
    t: np.ndarray,
    normals: np.ndarray,
    ids: np.ndarray,
    colours: np.ndarray,
) -> np.ndarray:
    """Lambert shading with an ambient part, and a soft dark spot under each thing."""
    bright = AMBIENT + (1.15 - AMBIENT) * np.clip(normals @ scene.light, 0, 1)
    glowing = [FIRST_SOLID + number for number, solid in enumerate(scene.solids) if solid.glows]
    bright = np.where(np.isin(ids, [SKY, *glowing]), 1.0, np.where(ids < FIRST_SOLID, 0.5 + 0.5 * bright, bright))
    ground = ids == GROUND
    spots = eye + rays[ground] * t[ground, None]
    shadow = np.ones(int(ground.sum()), np.float32)
    for thing in scene.things:
        low = [solid.shape.bounds() for solid in thing.solids]
        centre = np.mean([c for c, _ in low], axis=0)
        radius = max(float(np.hypot(*(c - centre)[[0, 2]])) + min(r, 0.7) * 0.8 for c, r in low)
        away = np.hypot(spots[:, 0] - centre[0] + scene.light[0] * 0.3, spots[:, 2] - centre[2] + scene.light[2] * 0.3)
        shadow *= 1 - 0.4 * np.clip(1.4 - away / max(radius, 1e-3), 0, 1)
    bright[ground] *= shadow
    return colours * bright[:, None]
