"""Resize control maps, each form of map in the way that keeps what its ControlNet looks at.

A map that is resized like a photo loses thin lines when it becomes smaller and gets fat lines when it becomes larger.
Its labels blend into colours that no ControlNet was trained on.
"""

from collections.abc import Callable, Mapping

import cv2
import numpy as np
from PIL import Image
from skimage.morphology import skeletonize

from controlnet.pictures.geometry import fit

LIT = 128
"""Of 255. In a map of lines, pixels from this brightness on belong to a line."""
GREYS = range(48, 208)
"""Of 255: neither line nor background. In a JPEG, the ripples along a line are darker and the lines are brighter."""
GREY_SHARE = 0.5
"""If a map of lines has more grey pixels than this share of its lit ones, its lines are soft: anti-aliased or faint."""
BLOCK = np.ones((2, 2), np.uint8)
"""Fits into a thick stroke everywhere, but into a thin one only where it bends or branches."""
CANNYS_LARGEST = 16
"""Pixels. The largest piece that BLOCK covers in the Canny edges of four photos, at thresholds 10/30 to 100/200."""
SMOOTHINGS = 3
"""How often the pixels of a redrawn line move towards the middle of their neighbours, to turn steps into slopes."""
SUBPIXEL_BITS = 4
SKELETON_LIT = 64
"""Of 255. In a map of skeletons, pixels darker than this in every channel are background. Limbs reach 153 in one."""
MOST_LABELS = 256
"""A map with more colours has been through lossy compression, so no pixel's label is more reliable than another's."""


def resize_map(control_map: Image.Image, size: tuple[int, int], form: str) -> Image.Image:
    """Resize an RGB control map to exactly (width, height) `size`. The result is always a copy, equal at the same size.

    `form` is a key of FORMS:
    - "lines", white on black: lines one pixel wide keep that width at any size. Thicker strokes scale with the map and
      are never lost. A map with grey lines is resized as "soft_lines".
    - "soft_lines", white on black: strengths are blended.
    - "labels": the result only has colours of the map. If pixels are merged, the most frequent colour wins.
    - "skeletons", on black: the result only has colours of the map. Limbs scale with the map, and none is lost.
    - "dense" (depth, normals, pictures): Lanczos.
    """
    if control_map.size == size:
        return control_map.copy()
    return FORMS[form](control_map, size)


def _resize_lines(control_map: Image.Image, size: tuple[int, int]) -> Image.Image:
    grey = np.asarray(control_map.convert("L"))
    lit = grey >= LIT
    if np.count_nonzero((grey >= GREYS.start) & (grey < GREYS.stop)) > GREY_SHARE * np.count_nonzero(lit):
        return _resize_soft_lines(control_map, size)
    drawn = centre_lines(lit, size) | _resize_mask(thick_strokes(lit), size)
    return Image.fromarray(drawn.astype(np.uint8) * 255).convert("RGB")


def _resize_soft_lines(control_map: Image.Image, size: tuple[int, int]) -> Image.Image:
    # Lanczos would draw dark edges along the lines.
    method = cv2.INTER_AREA if _shrinks(control_map.size, size) else cv2.INTER_LINEAR
    return Image.fromarray(cv2.resize(np.asarray(control_map), size, interpolation=method))


def _resize_labels(control_map: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Each pixel gets the label that covers most of it. Enlarging blends the shares, which smooths the contours."""
    pixels = np.asarray(control_map)
    colours, labels = _palette(pixels)
    if len(colours) > MOST_LABELS:
        return Image.fromarray(cv2.resize(pixels, size, interpolation=cv2.INTER_NEAREST_EXACT))
    most = np.full(size[::-1], -1, np.float32)
    winners = np.zeros(size[::-1], np.int64)
    for label in range(len(colours)):
        shares = _shares(labels == label, size)
        winners[shares > most] = label
        most = np.maximum(shares, most)
    return Image.fromarray(colours[winners])


def _resize_skeletons(control_map: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Limbs are resized as strokes. Then each of their pixels gets the colour of the nearest pixel of a limb."""
    pixels = np.asarray(control_map)
    lit = pixels.max(axis=2) >= SKELETON_LIT
    if not lit.any():
        return Image.new("RGB", size)
    rows, columns = np.nonzero(_resize_mask(lit, size) | centre_lines(lit, size))
    # For each pixel of the map the number that OpenCV gives to its nearest lit pixel.
    _, nearest = cv2.distanceTransformWithLabels(
        (~lit).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_5, labelType=cv2.DIST_LABEL_PIXEL
    )
    colours = np.zeros((nearest.max() + 1, 3), np.uint8)
    colours[nearest[lit]] = pixels[lit]
    drawn = np.zeros((size[1], size[0], 3), np.uint8)
    sources = _scaled(rows, size[1], lit.shape[0]), _scaled(columns, size[0], lit.shape[1])
    drawn[rows, columns] = colours[nearest[sources]]
    _draw_lost_limbs(pixels, lit, drawn)
    return Image.fromarray(drawn)


def _draw_lost_limbs(pixels: np.ndarray, lit: np.ndarray, drawn: np.ndarray) -> None:
    """Draw a line into `drawn` for each colour of `pixels` that has lost more than half of its area to others."""
    colours, limbs = _palette(pixels)
    if len(colours) > MOST_LABELS:
        return
    scale = drawn[..., 0].size / limbs.size
    for number, colour in enumerate(colours):
        limb = lit & (limbs == number)
        kept = np.count_nonzero((drawn == colour).all(axis=2))
        if kept < 0.5 * scale * np.count_nonzero(limb):
            drawn[centre_lines(limb, drawn.shape[1::-1])] = colour


def _resize_dense(control_map: Image.Image, size: tuple[int, int]) -> Image.Image:
    return fit(control_map, size, Image.Resampling.LANCZOS)


FORMS: Mapping[str, Callable[[Image.Image, tuple[int, int]], Image.Image]] = {
    "lines": _resize_lines,
    "soft_lines": _resize_soft_lines,
    "labels": _resize_labels,
    "skeletons": _resize_skeletons,
    "dense": _resize_dense,
}


def thick_strokes(lit: np.ndarray) -> np.ndarray:
    """The parts of bool [height, width] that are wider than one pixel, as bool: strokes, dots and areas."""
    # Not MORPH_OPEN, which shifts the picture by a pixel because this block has no middle.
    blocks = cv2.dilate(cv2.erode(lit.astype(np.uint8), BLOCK, anchor=(0, 0)), BLOCK, anchor=(1, 1))
    _, numbers, stats, _ = cv2.connectedComponentsWithStats(blocks, connectivity=8)
    pieces = np.asarray(numbers, np.int64)
    thick = stats[:, cv2.CC_STAT_AREA] > CANNYS_LARGEST
    thick[np.unique(pieces[cv2.erode(blocks, np.ones((3, 3), np.uint8)) > 0])] = True
    thick[0] = False  # the background
    return thick[pieces]


def centre_lines(lit: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Strokes, bool [height, width] -> their centre lines, one pixel wide, as bool of (width, height) `size`.

    The thinning is that of T. Y. Zhang, C. Y. Suen, "A fast parallel algorithm for thinning digital patterns", CACM
    1984.
    """
    height, width = (min(sides) for sides in zip(lit.shape, size[::-1], strict=True))
    # Reduced first: every lit pixel lights the pixel that it falls into, so no stroke is lost or cut.
    rows, columns = np.nonzero(lit)
    smaller = np.zeros((height, width), bool)
    smaller[_scaled(rows, lit.shape[0], height), _scaled(columns, lit.shape[1], width)] = True
    thin = skeletonize(smaller)
    return thin if (width, height) == size else _redraw(thin, size)


def _redraw(thin: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Draw lines one pixel wide, bool [height, width], at another (width, height) `size`, by paths between pixels."""
    spots = np.argwhere(thin)[:, ::-1].astype(np.float64)  # x and y
    starts, ends = _links(thin)
    degree = np.bincount(np.concatenate([starts, ends]), minlength=len(spots))
    between = degree == 2  # ends and branching points keep their place
    for _ in range(SMOOTHINGS):
        sums = np.zeros_like(spots)
        np.add.at(sums, starts, spots[ends])
        np.add.at(sums, ends, spots[starts])
        spots[between] = spots[between] / 2 + sums[between] / 4
    alone = np.flatnonzero(degree == 0)
    starts, ends = np.concatenate([starts, alone]), np.concatenate([ends, alone])
    scaled = (spots + 0.5) * np.array(size) / thin.shape[::-1] - 0.5
    paths = np.rint(np.stack([scaled[starts], scaled[ends]], axis=1) * 2**SUBPIXEL_BITS).astype(np.int32)
    canvas = np.zeros(size[::-1], np.uint8)
    cv2.polylines(canvas, list(paths), False, 255, 1, cv2.LINE_8, SUBPIXEL_BITS)
    return canvas > 0


def _links(thin: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All pairs of neighbours among the lit pixels of bool [height, width], once each: two arrays of their numbers.

    A diagonal pair is left out if another pixel of the same square links it already: it would close a loop.
    """
    numbers = np.full(np.add(thin.shape, (1, 2)), -1, np.int64)
    numbers[:-1, 1:-1][thin] = np.arange(np.count_nonzero(thin))
    here, right = numbers[:-1, 1:-1], numbers[:-1, 2:]
    below_left, below, below_right = numbers[1:, :-2], numbers[1:, 1:-1], numbers[1:, 2:]
    left = numbers[:-1, :-2]
    found = [
        (here >= 0) & (right >= 0),
        (here >= 0) & (below >= 0),
        (here >= 0) & (below_right >= 0) & (right < 0) & (below < 0),
        (here >= 0) & (below_left >= 0) & (left < 0) & (below < 0),
    ]
    pairs = list(zip(found, (right, below, below_right, below_left), strict=True))
    return np.concatenate([here[both] for both, _ in pairs]), np.concatenate([other[both] for both, other in pairs])


def _resize_mask(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """bool [height, width] -> bool of (width, height) `size`. A pixel is lit if more than half of it is covered."""
    method = cv2.INTER_AREA if _shrinks(mask.shape[::-1], size) else cv2.INTER_CUBIC
    return cv2.resize(mask.astype(np.float32), size, interpolation=method) > 0.5


def _shares(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The share of each pixel of (width, height) `size` that bool [height, width] covers, float32, 0 to 1."""
    method = cv2.INTER_AREA if _shrinks(mask.shape[::-1], size) else cv2.INTER_LINEAR
    return cv2.resize(mask.astype(np.float32), size, interpolation=method)


def _palette(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """uint8 [height, width, 3] -> its colours, uint8 [n, 3], and the number of each pixel's colour, [height, width]."""
    packed = pixels.astype(np.int32) @ np.array([1 << 16, 1 << 8, 1], np.int32)
    found = np.unique(packed)
    colours = np.stack([found >> 16, found >> 8 & 255, found & 255], axis=1).astype(np.uint8)
    return colours, np.searchsorted(found, packed)


def _scaled(positions: np.ndarray, before: int, after: int) -> np.ndarray:
    """Positions on a side of `before` pixels -> the pixels that their middles fall into on a side of `after` pixels."""
    return (2 * positions + 1) * after // (2 * before)


def _shrinks(before: tuple[int, ...], after: tuple[int, int]) -> bool:
    return after[0] * after[1] < before[0] * before[1]
