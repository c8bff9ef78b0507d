"""Size arithmetic: pure functions, sizes as (width, height) in pixels."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import cv2
import numpy as np
from PIL import Image

STEP = 8
"""Pixels: the VAE halves a picture three times, so its sides are multiples of 8. One latent stands for 8×8 pixels."""
SMALLEST = 64
"""Pixels: the UNet halves the latents three times more, so a side has at least 8 latents."""
LARGEST = 2048
"""Pixels: the longest side that a request can ask for by resolution, width, height or detect_resolution."""
LARGEST_UPSCALED = 4096
"""Pixels: the longest side of a picture that is enlarged after it was made."""
MOST_EXTENDED = 25_000_000
"""Pixels that a picture may have when "fill" adds margins to it. A larger one is shrunk first."""
MOST_DETECTED = LARGEST * LARGEST
"""Pixels of the largest picture that an annotator is shown."""


class SizeError(ValueError):
    """The request asks for more pixels than are allowed; the message says what to lower and to what."""


def canvas_size(
    size: tuple[int, int], resolution: int, width: int | None = None, height: int | None = None
) -> tuple[int, int]:
    """The size of the pictures made from an image of `size`: both sides multiples of 8, each at least 64.

    The short side is `resolution` rounded to a multiple of 8, and the long side is the multiple of 8 nearest to the
    image's aspect ratio. If width or height is given, `resolution` is not used, and the one that is missing follows
    from the aspect ratio. Halves round up, in integers, so the result is the same on every machine.
    """
    if width is not None or height is not None:
        given = [None if side is None else max(SMALLEST, _nearest(side, 1)) for side in (width, height)]
        wide = given[0] or max(SMALLEST, _nearest((given[1] or 0) * size[0], size[1]))
        return wide, given[1] or max(SMALLEST, _nearest(wide * size[1], size[0]))
    short, long = sorted(size)
    canvas_short = max(SMALLEST, _nearest(resolution, 1))
    canvas_long = max(canvas_short, _nearest(canvas_short * long, short))
    return (canvas_short, canvas_long) if size[0] <= size[1] else (canvas_long, canvas_short)


def upscaled_size(size: tuple[int, int], upscale: float) -> tuple[int, int]:
    """The size of a picture of a canvas of `size` after it is enlarged: sides are multiples of 8, halves up."""
    width, height = (STEP * math.floor(side * upscale / STEP + 0.5) for side in size)
    return width, height


@dataclass(frozen=True)
class Margins:
    """Pixels on each side: added to a picture, or left free."""

    left: int = 0
    top: int = 0
    right: int = 0
    bottom: int = 0

    def __bool__(self) -> bool:
        return any((self.left, self.top, self.right, self.bottom))

    def around(self, size: tuple[int, int]) -> tuple[int, int]:
        """`size` plus these margins."""
        return size[0] + self.left + self.right, size[1] + self.top + self.bottom

    def inside(self, size: tuple[int, int]) -> tuple[int, int, int, int]:
        """Left, top, right and bottom of the part of `size` that these margins leave."""
        return self.left, self.top, size[0] - self.right, size[1] - self.bottom


def in_steps(margins: Margins) -> Margins:
    """Each margin rounded up to a multiple of 8, so the canvas' sides stay multiples of 8."""
    sides = (margins.left, margins.top, margins.right, margins.bottom)
    return Margins(*(STEP * -(-side // STEP) for side in sides))


def extend(image: Image.Image, margins: Margins, blank: int | None = None) -> Image.Image:
    """A copy of the image with margins: its edge pixels continued outwards, or the grey `blank`, 0–255."""
    pixels, sides = np.asarray(image), (margins.top, margins.bottom, margins.left, margins.right)
    if blank is None:
        return Image.fromarray(cv2.copyMakeBorder(pixels, *sides, cv2.BORDER_REPLICATE))
    return Image.fromarray(cv2.copyMakeBorder(pixels, *sides, cv2.BORDER_CONSTANT, value=(blank,) * 3))


def reshape(image: Image.Image, size: tuple[int, int], mode: str, blank: int | None = None) -> Image.Image:
    """`image` in the aspect ratio of `size`, up to a pixel. The pixels that are kept do not change.

    Only "fill" shrinks an image that would have more than MOST_EXTENDED pixels with its margins. `mode` is a key of
    RESIZE_MODES. `blank` is the grey of what "fill" adds; None continues the image's edges. If `size` is the canvas
    size of the image itself, it is returned unchanged: only rounding makes the ratios differ.
    """
    if canvas_size(image.size, min(size)) == size:
        return image
    return RESIZE_MODES[mode](image, size, blank)


def filled(image_size: tuple[int, int], size: tuple[int, int]) -> Margins:
    """The margins that "fill" leaves around an image of `image_size` on a canvas of `size`."""
    if canvas_size(image_size, min(size)) == size:
        return Margins()
    scale = min(size[0] / image_size[0], size[1] / image_size[1])
    width, height = (min(side, round(own * scale)) for own, side in zip(image_size, size, strict=True))
    left, top = (size[0] - width) // 2, (size[1] - height) // 2
    return Margins(left, top, size[0] - width - left, size[1] - height - top)


def _crop(image: Image.Image, size: tuple[int, int], blank: int | None) -> Image.Image:
    """The largest part around the middle."""
    scale = min(image.width / size[0], image.height / size[1])
    width, height = (min(own, max(1, round(side * scale))) for own, side in zip(image.size, size, strict=True))
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def _fill(image: Image.Image, size: tuple[int, int], blank: int | None) -> Image.Image:
    """The whole image with margins on two sides. It is shrunk first if both together have over MOST_EXTENDED pixels.

    With margins at its own scale, an 8000×2000 picture on a canvas of 64×2048 would have two billion pixels.
    """
    image = _shrunk_to_extend(image, size)
    scale = max(image.width / size[0], image.height / size[1])
    width, height = (max(own, round(side * scale)) for own, side in zip(image.size, size, strict=True))
    left, top = (width - image.width) // 2, (height - image.height) // 2
    return extend(image, Margins(left, top, width - image.width - left, height - image.height - top), blank)


def _shrunk_to_extend(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The image, small enough for margins that bring it to the aspect ratio of `size`. Never below its place there."""
    scale = max(image.width / size[0], image.height / size[1])
    extended = scale * scale * size[0] * size[1]
    if extended <= MOST_EXTENDED:
        return image
    shrink = math.sqrt(MOST_EXTENDED / extended)
    width, height = (round(side * shrink) for side in image.size)
    return fit(image, (width, height), Image.Resampling.LANCZOS)


def _stretch(image: Image.Image, size: tuple[int, int], blank: int | None) -> Image.Image:
    """The whole image, to be stretched to the canvas."""
    return image


RESIZE_MODES: Mapping[str, Callable[[Image.Image, tuple[int, int], int | None], Image.Image]] = {
    "crop": _crop,
    "fill": _fill,
    "stretch": _stretch,
}
"""How an image of another shape is fitted to the canvas: RESIZE_MODES[mode](image, size, blank)."""


def detect_size(size: tuple[int, int], detect_resolution: int | None) -> tuple[int, int]:
    """The (width, height) at which an annotator sees the picture of a canvas of `size`.

    That is the canvas' own size if detect_resolution is None, and otherwise its aspect ratio with a short side of
    detect_resolution pixels. Raises SizeError if that is more than MOST_DETECTED pixels.
    """
    if detect_resolution is None:
        return size
    seen = _with_short_side(size, detect_resolution)
    if math.prod(seen) <= MOST_DETECTED:
        return seen
    largest = detect_resolution
    while math.prod(_with_short_side(size, largest)) > MOST_DETECTED:
        largest -= 1
    raise SizeError(
        f"At detect_resolution {detect_resolution} this picture has {seen[0]}×{seen[1]} pixels, more than the "
        f"{MOST_DETECTED} that an annotator takes: lower it to {largest}."
    )


def _with_short_side(size: tuple[int, int], short_side: int) -> tuple[int, int]:
    """The size in the aspect ratio of `size` with that short side, up to a pixel."""
    width, height = ((2 * short_side * side + min(size)) // (2 * min(size)) for side in size)
    return width, height


def fit(image: Image.Image, size: tuple[int, int], resample: Image.Resampling) -> Image.Image:
    """A copy of `image`, resized to exactly `size`."""
    return image.resize(size, resample)


def check_pixels(size: tuple[int, int], num_outputs: int, limit: int, by_resolution: bool = True) -> None:
    """Raise SizeError if `num_outputs` pictures of the canvas `size` have more than `limit` pixels together.

    `by_resolution`: the input resolution alone has set the size, so the message can name a lower one.
    """
    width, height = size
    if width * height * num_outputs <= limit:
        return
    ways = []
    if not by_resolution:
        ways.append(f"lower the sides, margins included, to {limit // num_outputs} pixels in all")
    elif resolution := _largest_resolution(size, limit // num_outputs):
        ways.append(f"lower resolution to {resolution}")
    if (outputs := limit // (width * height)) >= 1:
        ways.append(f"lower num_outputs to {outputs}")
    if not ways and (resolution := _largest_resolution(size, limit)):
        ways.append(f"lower num_outputs to 1 and resolution to {resolution}")
    raise SizeError(
        f"{num_outputs} × {width}×{height} pixels is more than one request may ask for ({limit} pixels): "
        f"{' or '.join(ways) or 'no resolution is small enough'}."
    )


def check_upscaled(size: tuple[int, int], upscale: float, num_outputs: int, limit: int) -> None:
    """Raise SizeError if `num_outputs` pictures of the canvas `size` are too large once they are enlarged by `upscale`.

    That is if `upscale` is above 1 and they have over `limit` pixels together, or a side over LARGEST_UPSCALED.
    """
    if upscale == 1 or _fits(size, upscale, num_outputs, limit):
        return
    width, height = upscaled_size(size, upscale)
    most = min(math.sqrt(limit / (size[0] * size[1] * num_outputs)), LARGEST_UPSCALED / max(size))
    # Downwards from there, because sides are rounded up, too.
    fitting = (x / 100 for x in range(int(most * 100), 100, -1) if _fits(size, x / 100, num_outputs, limit))
    ways = [f"lower upscale to {largest:g}" for largest in (next(fitting, None),) if largest]
    if num_outputs > 1 and _fits(size, upscale, 1, limit):
        ways.append(f"lower num_outputs to {limit // (width * height)}")
    raise SizeError(
        f"{num_outputs} × {width}×{height} pixels is more than upscale may make ({limit} pixels in all, "
        f"{LARGEST_UPSCALED} on a side): {' or '.join(ways) or 'leave upscale out, or lower resolution'}."
    )


def _fits(size: tuple[int, int], upscale: float, num_outputs: int, limit: int) -> bool:
    width, height = upscaled_size(size, upscale)
    return width * height * num_outputs <= limit and max(width, height) <= LARGEST_UPSCALED


def _nearest(numerator: int, denominator: int) -> int:
    """The multiple of 8 nearest to numerator / denominator, halves up."""
    return STEP * ((2 * numerator + STEP * denominator) // (2 * STEP * denominator))


def _largest_resolution(canvas: tuple[int, int], limit: int) -> int | None:
    """The largest multiple of 8 that keeps one picture within `limit`, for every image that `canvas` may stand for.

    The canvas' long side is rounded by up to half a step, so the image may be that much longer than the canvas shows.
    """
    short, long = sorted(canvas)
    for resolution in range(short, SMALLEST - 1, -STEP):
        if resolution * _nearest(resolution * (2 * long + STEP), 2 * short) <= limit:
            return resolution
    return None
