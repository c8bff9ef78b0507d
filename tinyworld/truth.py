"""The exact truth of a rendered scene for every conditioner: lines, nearness, normals, classes and body joints."""

from dataclasses import dataclass
from itertools import combinations

import cv2
import numpy as np

from tinyworld.render import FIRST_SOLID, GROUND, SKY, View, camera_axes, project
from tinyworld.scene import Camera, Scene, Surround
from tinyworld.shapes import Frustum, Polyhedron, Shape, unit, vector

CLASSES: tuple[tuple[str, int], ...] = (
    ("wall", 0),
    ("sky", 2),
    ("floor", 3),
    ("grass", 9),
    ("sand", 46),
    ("earth", 13),
    ("road", 6),
    ("tree", 4),
    ("house", 25),
    ("windowpane", 8),
    ("door", 14),
    ("person", 12),
    ("table", 15),
    ("chair", 19),
    ("box", 41),
    ("ball", 119),
    ("tent", 114),
    ("barrel", 111),
    ("sculpture", 132),
    ("water", 21),
    ("animal", 126),
    ("boat", 76),
    ("cup", 147),
)
"""Name and number (from 0) of each class of ADE20K (B. Zhou et al., CVPR 2017) that occurs in this world."""
_NUMBERS = {name: index for index, (name, _) in enumerate(CLASSES)}
_CLASS_OF_SOLID = {
    "pyramid": "tent",
    "cylinder": "barrel",
    "cone": "sculpture",
    "roof": "house",
    "window": "windowpane",
    "trunk": "tree",
    "chimney": "house",
    "sun": "sky",
    "moon": "sky",
    "stump": "tree",
}
"""ADE20K's word if it differs from ours. It has no cones, pyramids or cylinders, so those get the nearest class."""
_CLASS_OF_GROUND = {"snow": "earth", "asphalt": "road"}
"""The same for what the ground is called."""

OPENPOSE_JOINTS = (
    *("nose", "neck", "right_shoulder", "right_elbow", "right_wrist", "left_shoulder", "left_elbow", "left_wrist"),
    *("right_hip", "right_knee", "right_ankle", "left_hip", "left_knee", "left_ankle"),
    *("right_eye", "left_eye", "right_ear", "left_ear"),
)
"""OpenPose's body joints in its order (Z. Cao et al., PAMI 2019)."""
MIRRORED_JOINTS = (0, 1, 5, 6, 7, 2, 3, 4, 11, 12, 13, 8, 9, 10, 15, 14, 17, 16)
"""For each joint the one it becomes in a mirror: right and left are exchanged."""
FOLD = 0.87
"""A fold sharper than about 30 degrees (its cosine) is drawn even within one thing: a box's edges, a wall's foot."""
LINE_STEP = 0.02
"""Metres between the points at which a straight edge is tested for being seen."""
SHORTEST_LINE = 4
"""Pixels: a visible part of an edge counts as a line from this length on."""


@dataclass(frozen=True)
class Truth:
    """The truth of a picture of side n."""

    outlines: np.ndarray
    """(n, n) uint8: 255 on the border between two surfaces."""
    straight: np.ndarray
    """(n, n) uint8: 255 along the visible straight edges of things and rooms, one pixel wide."""
    nearness: np.ndarray
    """(n, n) float32: 1 / depth, from 0 for the farthest in the picture (always for the sky) to 1 for the nearest."""
    normals: np.ndarray
    """(n, n, 3) float32, unit, in BAE's axes: left, up, towards the camera. The sky faces the camera."""
    classes: np.ndarray
    """(n, n) uint8: index into CLASSES."""
    people: list[np.ndarray]
    """(18, 3) float32 each: x and y in pixels, and 1 if the joint is in view (its person is visible there), else 0."""


def truth_of(scene: Scene, view: View) -> Truth:
    """The whole truth of a scene as seen in `view`."""
    normals = view.normals * vector(-1, 1, 1)
    normals[view.ids == SKY] = vector(0, 0, 1)
    return Truth(
        outlines(view),
        straight_lines(scene, view),
        _nearness(view.depth),
        normals,
        _classes(scene)[view.ids],
        _people(scene, view),
    )


def outlines(view: View) -> np.ndarray:
    """(n, n) uint8: 255 at pixels whose right or lower neighbour is another surface or clearly faces another way."""
    edge = np.zeros(view.ids.shape, bool)
    for axis in (0, 1):
        here, there = (np.take(view.ids, range(start, view.ids.shape[axis] - 1 + start), axis) for start in (0, 1))
        facing = [np.take(view.normals, range(start, view.ids.shape[axis] - 1 + start), axis) for start in (0, 1)]
        folded = (facing[0] * facing[1]).sum(-1) < FOLD
        edge[tuple(slice(0, -1) if a == axis else slice(None) for a in (0, 1))] |= (here != there) | (
            folded & (here != SKY)
        )
    return edge.astype(np.uint8) * 255


def _nearness(depth: np.ndarray) -> np.ndarray:
    near = (1 / depth).astype(np.float32)  # the sky's infinity becomes 0
    return (near - near.min()) / max(float(near.max() - near.min()), 1e-6)


def _classes(scene: Scene) -> np.ndarray:
    """Class of each id that a view of the scene can have."""
    classes = np.full(256, _NUMBERS["wall"], np.uint8)
    classes[SKY] = _NUMBERS["sky"]
    classes[GROUND] = _NUMBERS[_CLASS_OF_GROUND.get(scene.surround.ground_name, scene.surround.ground_name)]
    named = [(solid.label, thing.whole) for thing in scene.everything for solid in thing.solids]
    for number, (label, whole) in enumerate(named, FIRST_SOLID):
        classes[number] = _NUMBERS[_CLASS_OF_SOLID.get(label) or whole or label]
    return classes


def _people(scene: Scene, view: View) -> list[np.ndarray]:
    size, people, first = len(view.ids), [], FIRST_SOLID
    for thing in scene.things:
        last = first + len(thing.solids)
        if thing.keypoints:
            mine = ((view.ids >= first) & (view.ids < last)).astype(np.uint8)
            near = cv2.dilate(mine, np.ones((3, 3), np.uint8))  # the middle of a thin limb may fall between two pixels
            spots = _with_face(thing.keypoints)
            person = np.zeros((len(OPENPOSE_JOINTS), 3), np.float32)
            for row, name in enumerate(OPENPOSE_JOINTS):
                person[row, :2] = _pixel(scene.camera, spots[name], size)
                x, y = np.floor(person[row, :2]).astype(int)
                person[row, 2] = 0 <= x < size and 0 <= y < size and near[y, x]
            people.append(person)
        first = last
    return people


def _with_face(joints: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The joints and, placed by the head's position and the shoulders' direction, the eyes and ears."""
    nose, side = joints["nose"], unit(joints["left_shoulder"] - joints["right_shoulder"])
    tall = float(np.linalg.norm(nose - joints["neck"])) / 0.11  # things.person puts the head there
    front = np.cross(side, vector(0, 1, 0))
    eyes = nose + (0.03 * vector(0, 1, 0) + 0.06 * front) * tall
    face = {"right_eye": eyes - 0.025 * tall * side, "left_eye": eyes + 0.025 * tall * side}
    return joints | face | {"right_ear": nose - 0.055 * tall * side, "left_ear": nose + 0.055 * tall * side}


def _pixel(camera: Camera, point: np.ndarray, size: int) -> np.ndarray:
    """Position of a point, x and y in pixels, in a picture of `size` pixels."""
    return (project(camera, point)[0] + 1) / 2 * size


def straight_lines(scene: Scene, view: View) -> np.ndarray:
    """(n, n) uint8: the visible edges of polyhedra, sides of cones and cylinders, and corners of a room."""
    size = len(view.ids)
    canvas = np.zeros((size, size), np.uint8)
    # An edge lies on the surface of its thing: it is visible where no pixel around it is clearly nearer.
    farthest = cv2.dilate(np.minimum(view.depth, 1e4), np.ones((3, 3), np.uint8))
    segments = [*_room_edges(scene.surround)]
    for thing in scene.things:
        for solid in thing.solids:
            segments += _edges(solid.shape, scene.camera.eye)
    for start, end in segments:
        for run in _seen_runs(start, end, scene.camera, farthest):
            first, last = (tuple(int(v) for v in point) for point in run)
            cv2.line(canvas, first, last, 255)
    return canvas


def _seen_runs(start: np.ndarray, end: np.ndarray, camera: Camera, farthest: np.ndarray) -> list[tuple]:
    """The visible parts of a segment in space, each as its two ends in pixels."""
    size = len(farthest)
    count = int(np.linalg.norm(end - start) / LINE_STEP) + 2
    points = start + np.linspace(0, 1, count, dtype=np.float32)[:, None] * (end - start)
    local = (points - camera.eye) @ camera_axes(camera).T
    depth = np.maximum(local[:, 2], 1e-3)
    spots = (local[:, :2] * vector(1, -1) * camera.focal / depth[:, None] + 1) / 2 * size
    inside = ((spots >= 0) & (spots < size)).all(1) & (local[:, 2] > 0.1)
    columns, rows = np.clip(spots, 0, size - 1).astype(int).T
    seen = inside & (depth <= farthest[rows, columns] * 1.01 + 0.02)
    bounds = np.flatnonzero(np.diff(np.concatenate([[0], seen.astype(np.int8), [0]])))
    runs = [(spots[first], spots[last - 1]) for first, last in bounds.reshape(-1, 2)]
    return [run for run in runs if np.linalg.norm(run[1] - run[0]) >= SHORTEST_LINE]


def _room_edges(surround: Surround) -> list[tuple[np.ndarray, np.ndarray]]:
    if surround.wall is None:
        return []
    far, half = surround.wall, surround.half_width or 30.0
    edges = [(vector(-half, 0, far), vector(half, 0, far))]
    if surround.half_width is not None:
        for x in (-half, half):
            edges += [(vector(x, 0, 0), vector(x, 0, far)), (vector(x, 0, far), vector(x, 15, far))]
    return edges


def _edges(shape: Shape, eye: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    if isinstance(shape, Polyhedron):
        return _polyhedron_edges(shape)
    if isinstance(shape, Frustum):
        return _frustum_sides(shape, eye)
    return []


def _polyhedron_edges(solid: Polyhedron) -> list[tuple[np.ndarray, np.ndarray]]:
    """Segments between the corners that two faces share."""
    triples = np.array(list(combinations(range(len(solid.normals)), 3)))
    planes, offsets = solid.normals[triples].astype(np.float64), solid.offsets[triples].astype(np.float64)
    meeting = np.abs(np.linalg.det(planes)) > 1e-4
    triples, corners = triples[meeting], np.linalg.solve(planes[meeting], offsets[meeting][..., None])[..., 0]
    on_it = (corners @ solid.normals.T <= solid.offsets + 1e-3).all(1)
    triples, corners = triples[on_it], corners[on_it].astype(np.float32)
    edges = []
    for pair in combinations(range(len(solid.normals)), 2):
        shared = corners[np.isin(triples, pair).sum(1) == 2]
        if len(shared) < 2:
            continue
        away = np.linalg.norm(shared - shared[0], axis=1)
        if away.max() > 1e-3:
            edges.append((shared[0], shared[away.argmax()]))
    return edges


def _frustum_sides(cone: Frustum, eye: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """The two generators at which the side turns away from the eye: their normals are perpendicular to the view."""
    slope, (x, y, z) = (cone.top - cone.bottom) / cone.height, eye - cone.base
    cosine = (cone.bottom + slope * y) / max(float(np.hypot(x, z)), 1e-6)
    if abs(cosine) >= 1:
        return []
    sides = []
    for angle in np.arctan2(z, x) + np.array([-1, 1]) * np.arccos(cosine):
        outward = vector(np.cos(angle), 0, np.sin(angle))
        top = cone.base + vector(0, cone.height, 0) + cone.top * outward
        sides.append((cone.base + cone.bottom * outward, top))
    return sides
