"""Solid shapes and where rays hit them. All rays of a call have one origin. Directions are (N, 3), of any length.

Every shape has
    hit(origin, rays) -> (t, normals): t (N,) float32, inf for a ray that misses; normals (N, 3), outward, and of unit
    length for a ray that hits
    bounds() -> (centre, radius): a sphere around the shape, which limits the pixels that have to be tested
The formulas are those of textbooks (Glassner, An Introduction to Ray Tracing, 1989).
"""

from dataclasses import dataclass

import numpy as np

FAR = np.float32(np.inf)
EPSILON = 1e-4


def vector(*xyz: float) -> np.ndarray:
    return np.array(xyz, dtype=np.float32)


def turn(yaw: float) -> np.ndarray:
    """Rotation by `yaw` radians about the y axis (up), as a (3, 3) matrix."""
    c, s = np.cos(yaw), np.sin(yaw)
    return np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]], dtype=np.float32)


@dataclass(frozen=True)
class Polyhedron:
    """A convex solid: the points p with normals @ p <= offsets."""

    normals: np.ndarray
    offsets: np.ndarray
    centre: np.ndarray
    radius: float

    def bounds(self) -> tuple[np.ndarray, float]:
        return self.centre, self.radius

    def hit(self, origin: np.ndarray, rays: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        slope = rays @ self.normals.T
        gap = self.offsets - self.normals @ origin
        with np.errstate(divide="ignore", invalid="ignore"):
            t = gap / slope
        entering = np.where(slope < 0, t, -FAR)
        leaving = np.where(slope > 0, t, FAR)
        outside = ((slope == 0) & (gap < 0)).any(axis=1)
        face = entering.argmax(axis=1)
        enter = entering[np.arange(len(rays)), face]
        hits = (enter < leaving.min(axis=1)) & (enter > EPSILON) & ~outside
        return np.where(hits, enter, FAR).astype(np.float32), self.normals[face]


def polyhedron(points: np.ndarray, faces: list[tuple[int, int, int]]) -> Polyhedron:
    """A convex solid from its corners (V, 3) and, for each face, three of its corners (in any order)."""
    centre = points.mean(axis=0)
    normals = []
    offsets = []
    for a, b, c in faces:
        normal = np.cross(points[b] - points[a], points[c] - points[a])
        normal /= np.linalg.norm(normal)
        if normal @ (centre - points[a]) > 0:
            normal = -normal
        normals.append(normal)
        offsets.append(normal @ points[a])
    radius = float(np.linalg.norm(points - centre, axis=1).max())
    return Polyhedron(np.array(normals, np.float32), np.array(offsets, np.float32), centre.astype(np.float32), radius)


def box(centre: np.ndarray, size: np.ndarray, yaw: float = 0.0) -> Polyhedron:
    """A box with edges of `size` (x, y, z) around `centre`, turned by `yaw`."""
    rotation = turn(yaw)
    normals = np.concatenate([np.eye(3), -np.eye(3)]).astype(np.float32) @ rotation.T
    half = np.concatenate([size, size]).astype(np.float32) / 2
    return Polyhedron(normals, half + normals @ centre, centre, float(np.linalg.norm(size)) / 2)


def roof(base: np.ndarray, size: np.ndarray, yaw: float = 0.0) -> Polyhedron:
    """A gable roof: a triangular prism whose ridge runs along x; `base` is the middle of its underside."""
    x, y, z = size / 2
    corners = np.array([[-x, 0, -z], [-x, 0, z], [-x, 2 * y, 0], [x, 0, -z], [x, 0, z], [x, 2 * y, 0]], np.float32)
    faces = [(0, 1, 2), (3, 4, 5), (0, 3, 1), (0, 3, 2), (1, 4, 2)]
    return polyhedron(corners @ turn(yaw).T + base, faces)


def pyramid(base: np.ndarray, size: np.ndarray, yaw: float = 0.0) -> Polyhedron:
    """A four-sided pyramid; `base` is the middle of its underside."""
    x, y, z = size / 2
    corners = np.array([[-x, 0, -z], [x, 0, -z], [x, 0, z], [-x, 0, z], [0, 2 * y, 0]], np.float32)
    return polyhedron(corners @ turn(yaw).T + base, [(0, 1, 2), (0, 1, 4), (1, 2, 4), (2, 3, 4), (3, 0, 4)])


@dataclass(frozen=True)
class Ellipsoid:
    """An ellipsoid with its axes along x, y and z."""

    centre: np.ndarray
    radii: np.ndarray

    def bounds(self) -> tuple[np.ndarray, float]:
        return self.centre, float(self.radii.max())

    def hit(self, origin: np.ndarray, rays: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        start = (origin - self.centre) / self.radii
        scaled = rays / self.radii
        t = nearest_root((scaled * scaled).sum(1), scaled @ start, start @ start - 1)
        with np.errstate(invalid="ignore"):
            normals = unit((start + scaled * t[:, None]) / self.radii)
        return t, normals


@dataclass(frozen=True)
class Frustum:
    """An upright cone, cylinder or anything between: radius `bottom` at the base, `top` at the upper end."""

    base: np.ndarray
    height: float
    bottom: float
    top: float

    def bounds(self) -> tuple[np.ndarray, float]:
        middle = self.base + vector(0, self.height / 2, 0)
        return middle, float(np.hypot(max(self.bottom, self.top), self.height / 2))

    def hit(self, origin: np.ndarray, rays: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        start = origin - self.base
        slope = (self.top - self.bottom) / self.height
        at_start = self.bottom + slope * start[1]
        grow = slope * rays[:, 1]
        a = rays[:, 0] ** 2 + rays[:, 2] ** 2 - grow**2
        b = rays[:, 0] * start[0] + rays[:, 2] * start[2] - grow * at_start
        c = start[0] ** 2 + start[2] ** 2 - at_start**2
        side = np.full(len(rays), FAR)
        for t in roots(a, b, c):  # the nearer root may lie on the mirrored cone above the tip, or beyond a rim
            with np.errstate(invalid="ignore"):
                level = start[1] + rays[:, 1] * t
            side = np.where((side == FAR) & (t > EPSILON) & (level >= 0) & (level <= self.height), t, side)
        with np.errstate(invalid="ignore"):
            point = start + rays * side[:, None]
            outward = -slope * np.hypot(point[:, 0], point[:, 2])
        normals = unit(np.stack([point[:, 0], outward, point[:, 2]], 1))
        for level, radius, up in ((0.0, self.bottom, -1.0), (self.height, self.top, 1.0)):
            cap = self._cap(start, rays, level, radius)
            closer = cap < side
            side = np.where(closer, cap, side)
            normals = np.where(closer[:, None], vector(0, up, 0), normals)
        return side.astype(np.float32), normals.astype(np.float32)

    @staticmethod
    def _cap(start: np.ndarray, rays: np.ndarray, level: float, radius: float) -> np.ndarray:
        with np.errstate(divide="ignore", invalid="ignore"):
            t = (level - start[1]) / rays[:, 1]
            x, z = start[0] + rays[:, 0] * t, start[2] + rays[:, 2] * t
            return np.where((t > EPSILON) & (x * x + z * z <= radius * radius), t, FAR)


@dataclass(frozen=True)
class Capsule:
    """A limb: all points within `radius` of the segment from `a` to `b`."""

    a: np.ndarray
    b: np.ndarray
    radius: float

    def bounds(self) -> tuple[np.ndarray, float]:
        return (self.a + self.b) / 2, float(np.linalg.norm(self.b - self.a)) / 2 + self.radius

    def hit(self, origin: np.ndarray, rays: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        axis = self.b - self.a
        length = float(np.linalg.norm(axis))
        axis = axis / length
        start = origin - self.a
        along, along_start = rays @ axis, start @ axis
        across, across_start = rays - along[:, None] * axis, start - along_start * axis
        t = nearest_root((across * across).sum(1), across @ across_start, across_start @ across_start - self.radius**2)
        with np.errstate(invalid="ignore"):
            reach = along_start + along * t
            body = np.where((reach >= 0) & (reach <= length), t, FAR)
        rr = (rays * rays).sum(1)
        for end in (self.a, self.b):
            gap = origin - end
            body = np.minimum(body, nearest_root(rr, rays @ gap, gap @ gap - self.radius**2))
        with np.errstate(invalid="ignore"):
            point = start + rays * body[:, None]
            foot = np.clip(point @ axis, 0, length)[:, None] * axis
            return body.astype(np.float32), unit(point - foot).astype(np.float32)


Shape = Polyhedron | Ellipsoid | Frustum | Capsule


def nearest_root(a: np.ndarray, half_b: np.ndarray, c: float) -> np.ndarray:
    """Smallest positive root of a·t² + 2·half_b·t + c, or inf. a, half_b: (N,)."""
    low, high = roots(a, half_b, c)
    t = np.where(low > EPSILON, low, high)
    return np.where(np.isfinite(t) & (t > EPSILON), t, FAR).astype(np.float32)


def roots(a: np.ndarray, half_b: np.ndarray, c: float) -> tuple[np.ndarray, np.ndarray]:
    """Both roots of a·t² + 2·half_b·t + c, the smaller first; not finite if there is no root."""
    with np.errstate(divide="ignore", invalid="ignore"):
        root = np.sqrt(half_b * half_b - a * c)
        one, other = (-half_b - root) / a, (-half_b + root) / a
    return np.minimum(one, other), np.maximum(one, other)


def unit(vectors: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore", divide="ignore"):
        return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
