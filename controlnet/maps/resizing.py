"""Resize control maps, each form of map in the way that keeps what its ControlNet looks at.

A map that is resized like a photo loses thin lines when it becomes smaller and gets fat lines when it becomes larger.
Its labels blend into colours that no ControlNet was trained on.
"""

import math
from collections.abc import Callable, Mapping

import cv2
import numpy as np
from PIL import Image
from skimage.morphology import skeletonize

from controlnet.maps.palette import colours_in, numbered, pack, unpack
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
MOST_SHARES = 150 * 2048 * 2048
"""Colours × pixels of a map of labels whose exact shares are computed: 150, as ADE20K has, and 4 megapixels."""
MOST_TRACED = 2048 * 2048
"""Pixels of a map of skeletons whose limbs are traced. A larger one is reduced to as many first."""
MOST_REDRAWN = 64 * 1024 * 1024
"""Pixels in which limbs that were lost are thinned, for all of them together."""


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
    """Each pixel gets the label that covers most of it. Enlarging blends the shares, which smooths the contours.

    Above MOST_SHARES, a pixel of the map counts in full for the pixel that its middle falls into, so the result may
    differ from that of exact shares by a pixel along the contours.
    """
    pixels = np.asarray(control_map)
    packed = pack(pixels)
    colours = colours_in(packed)
    if len(colours) > MOST_LABELS:
        return Image.fromarray(cv2.resize(pixels, size, interpolation=cv2.INTER_NEAREST_EXACT))
    labels = numbered(packed, colours)
    if len(colours) * labels.size > MOST_SHARES:
        labels = _voted(labels, len(colours), _smaller(control_map.size, size))
    winners = labels if labels.shape[::-1] == size else _largest_shares(labels, len(colours), size)
    return Image.fromarray(unpack(colours)[winners])


def _largest_shares(labels: np.ndarray, count: int, size: tuple[int, int]) -> np.ndarray:
    """Labels from 0 to count − 1, uint8 [height, width] -> those that cover most of each pixel of `size`, uint8."""
    most = np.full(size[::-1], -1, np.float32)
    winners = np.zeros(size[::-1], np.uint8)
    for label in range(count):
        shares = _shares(labels == label, size)
        winners[shares > most] = label
        np.maximum(shares, most, out=most)
    return winners


def _voted(labels: np.ndarray, count: int, size: tuple[int, int]) -> np.ndarray:
    """The most frequent label of the pixels whose middles fall into each pixel of `size`, uint8. No side is larger."""
    width, height = size
    places = _scaled(np.arange(labels.shape[1]), labels.shape[1], width) * count
    bands = np.split(labels, _firsts(labels.shape[0], height)[1:])
    votes = (np.bincount((band + places).ravel(), minlength=width * count) for band in bands)
    return np.array([row.reshape(width, count).argmax(axis=1) for row in votes], np.uint8)


def _resize_skeletons(control_map: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Limbs are resized as strokes. Then each of their pixels gets the colour of the nearest pixel of a limb."""
    pixels = _reduced_limbs(np.asarray(control_map))
    lit = _is_limb(pixels)
    if not lit.any():
        return Image.new("RGB", size)
    rows, columns = np.nonzero(_resize_mask(lit, size) | centre_lines(lit, size))
    # For each pixel of the map the number that OpenCV gives to its nearest lit pixel.
    _, numbers = cv2.distanceTransformWithLabels(
        (~lit).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_5, labelType=cv2.DIST_LABEL_PIXEL
    )
    nearest = np.asarray(numbers, np.int32)
    colours = np.zeros((nearest.max() + 1, 3), np.uint8)
    colours[nearest[lit]] = pixels[lit]
    drawn = np.zeros((size[1], size[0], 3), np.uint8)
    sources = _scaled(rows, size[1], lit.shape[0]), _scaled(columns, size[0], lit.shape[1])
    drawn[rows, columns] = colours[nearest[sources]]
    _draw_lost_limbs(pixels, lit, drawn)
    return Image.fromarray(drawn)


def _reduced_limbs(pixels: np.ndarray) -> np.ndarray:
    """A map of skeletons, uint8 [height, width, 3], reduced to at most MOST_TRACED pixels if it has more.

    Each pixel gets one of the limbs' colours that fall into it, if there is one. So no limb is lost or cut, and limbs
    get wider by at most as many pixels of the map as fall into one: 3 at 25 megapixels.
    """
    height, width, _ = pixels.shape
    if height * width <= MOST_TRACED:
        return pixels
    scale = math.sqrt(MOST_TRACED / (height * width))
    limbs = np.where(_is_limb(pixels), pack(pixels), 0)
    return unpack(_largest(limbs, (int(width * scale), int(height * scale))))


def _is_limb(pixels: np.ndarray) -> np.ndarray:
    # SKELETON_LIT is a power of two, so this is pixels.max(axis=2) >= SKELETON_LIT, in a tenth of the time.
    return pixels[..., 0] | pixels[..., 1] | pixels[..., 2] >= SKELETON_LIT


def _draw_lost_limbs(pixels: np.ndarray, lit: np.ndarray, drawn: np.ndarray) -> None:
    """Draw a line into `drawn` for each colour of `pixels` that has lost more than half of its area to others.

    At most MOST_REDRAWN pixels are thinned for that. It is 64 colours if `drawn` has a megapixel.
    """
    packed, now, size = pack(pixels), pack(drawn), (drawn.shape[1], drawn.shape[0])
    colours = colours_in(packed)
    if len(colours) > MOST_LABELS:
        return
    limbs = numbered(packed[lit], colours)
    areas = np.bincount(limbs, minlength=len(colours))
    least = 0.5 * now.size / packed.size * areas
    if all(np.count_nonzero(now == colour) >= enough for colour, enough in zip(colours, least, strict=True)):
        return
    # The pixels that each limb lights, at the size at which it is thinned.
    width, height = _smaller(lit.shape[::-1], size)
    rows, columns = (_scaled(*each) for each in zip(np.nonzero(lit), lit.shape, (height, width), strict=True))
    lights = np.split((rows * width + columns)[np.argsort(limbs, kind="stable")], np.cumsum(areas)[:-1])
    left = MOST_REDRAWN // now.size
    for colour, enough, lights_of_limb in zip(colours, least, lights, strict=True):
        if left > 0 and np.count_nonzero(now == colour) < enough:
            limb = np.zeros((height, width), bool)
            limb.flat[lights_of_limb] = True
            line = centre_lines(limb, size)
            now[line], drawn[line] = colour, unpack(colour)
            left -= 1


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
    pieces = np.asarray(numbers, np.int32)
    thick = stats[:, cv2.CC_STAT_AREA] > CANNYS_LARGEST
    thick[pieces[cv2.erode(blocks, np.ones((3, 3), np.uint8)) > 0]] = True
    thick[0] = False  # the background
    return thick[pieces]


def centre_lines(lit: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Strokes, bool [height, width] -> their centre lines, one pixel wide, as bool of (width, height) `size`.

    The thinning is that of T. Y. Zhang, C. Y. Suen, "A fast parallel algorithm for thinning digital patterns", CACM
    1984.
    """
    smaller = _smaller(lit.shape[::-1], size)
    # Reduced first: every lit pixel lights the pixel that it falls into, so no stroke is lost or cut.
    thin = skeletonize(_largest(lit, smaller))
    return thin if smaller == size else _redraw(thin, size)


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


def _largest(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The largest of the [height, width] values that fall into each pixel of `size`, of which no side is larger."""
    for axis, after in enumerate(size[::-1]):
        values = np.maximum.reduceat(values, _firsts(values.shape[axis], after), axis=axis)
    return values


def _firsts(before: int, after: int) -> np.ndarray:
    """For each pixel on a side of `after` pixels the first of `before` pixels, at least as many, that falls into it."""
    return np.searchsorted(_scaled(np.arange(before), before, after), np.arange(after))


def _smaller(before: tuple[int, ...], after: tuple[int, int]) -> tuple[int, int]:
    return min(before[0], after[0]), min(before[1], after[1])


def _scaled(positions: np.ndarray, before: int, after: int) -> np.ndarray:
    """Positions on a side of `before` pixels -> the pixels that their middles fall into on a side of `after` pixels."""
    return (2 * positions + 1) * after // (2 * before)


def _shrinks(before: tuple[int, ...], after: tuple[int, int]) -> bool:
    return after[0] * after[1] < before[0] * before[1]
