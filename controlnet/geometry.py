"""Size arithmetic: pure functions, sizes as (width, height) in pixels."""

from PIL import Image

STEP = 8  # the VAE halves three times, so a picture's sides are multiples of 8
SMALLEST = 64  # the UNet halves three times more: an 8×8 latent is the least that it can take


class SizeError(ValueError):
    """The request asks for more pixels than the bundle allows; the message says what to lower and to what."""


def canvas_size(size: tuple[int, int], resolution: int) -> tuple[int, int]:
    """The size of the pictures made from an image of `size`: both sides multiples of 8, each at least 64.

    The short side is `resolution` rounded to a multiple of 8; the long side is the multiple of 8 nearest to the
    image's aspect ratio. Halves round up, in integers, so that the result is the same everywhere.
    """
    width, height = size
    short, long = sorted(size)
    canvas_short = max(SMALLEST, _nearest(resolution, 1))
    canvas_long = max(canvas_short, _nearest(canvas_short * long, short))
    return (canvas_short, canvas_long) if width <= height else (canvas_long, canvas_short)


def fit(image: Image.Image, size: tuple[int, int], resample: Image.Resampling) -> Image.Image:
    """`image` resized to exactly `size`; always a copy."""
    return image.resize(size, resample)


def check_pixels(size: tuple[int, int], num_outputs: int, limit: int) -> None:
    """Raise SizeError if `num_outputs` pictures of the canvas `size` have more than `limit` pixels together."""
    width, height = size
    if width * height * num_outputs <= limit:
        return
    ways = []
    if resolution := _largest_resolution(size, limit // num_outputs):
        ways.append(f"lower resolution to {resolution}")
    if (outputs := limit // (width * height)) >= 1:
        ways.append(f"lower num_outputs to {outputs}")
    if not ways and (resolution := _largest_resolution(size, limit)):
        ways.append(f"lower num_outputs to 1 and resolution to {resolution}")
    raise SizeError(
        f"{num_outputs} × {width}×{height} pixels is more than one request may ask for ({limit} pixels): "
        f"{' or '.join(ways) or 'no resolution is small enough'}."
    )


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
