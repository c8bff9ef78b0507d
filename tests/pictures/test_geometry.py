"""Sizes are legal, as asked, and as near to the image's shape as they can be."""

import random
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image

from controlnet.pictures.geometry import (
    MOST_EXTENDED,
    SizeError,
    canvas_size,
    check_pixels,
    check_upscaled,
    detect_size,
    filled,
    fit,
    reshape,
    upscaled_size,
)


@pytest.mark.parametrize(
    ("size", "resolution", "canvas"),
    [
        ((1000, 1000), 512, (512, 512)),
        ((1920, 1080), 512, (912, 512)),
        ((1080, 1920), 512, (512, 912)),
        ((4000, 3000), 768, (1024, 768)),
        ((100, 100), 508, (512, 512)),  # halves round up
        ((100, 100), 507, (504, 504)),
        ((100, 400), 64, (64, 256)),
        ((101, 100), 64, (64, 64)),
        ((100, 100), 10, (64, 64)),
        ((16, 16), 2048, (2048, 2048)),
    ],
)
def test_canvas_size_is_a_multiple_of_8(size: tuple[int, int], resolution: int, canvas: tuple[int, int]) -> None:
    """A picture must have the size that was asked for."""
    assert canvas_size(size, resolution) == canvas


def test_every_canvas_is_legal_and_nearest_to_the_image() -> None:
    rng = random.Random(0)
    for _ in range(2000):
        short = rng.randint(16, 3000)
        size = [short, rng.randint(short, 4 * short)]
        rng.shuffle(size)
        resolution = rng.randint(64, 2048)
        canvas = canvas_size((size[0], size[1]), resolution)
        assert all(side % 8 == 0 and side >= 64 for side in canvas)
        assert abs(min(canvas) - resolution) <= 4
        assert (canvas[0] > canvas[1]) <= (size[0] > size[1]) and (canvas[0] < canvas[1]) <= (size[0] < size[1])
        exact = min(canvas) * Fraction(max(size), min(size))
        assert abs(max(canvas) - exact) <= 4


def test_the_canvas_of_a_turned_image_is_turned() -> None:
    for width in range(300, 400):
        assert canvas_size((width, 341), 512) == canvas_size((341, width), 512)[::-1]


@pytest.mark.parametrize("size", [(64, 40), (30, 20), (37, 101)])
def test_fit_gives_exactly_the_size_and_leaves_the_image(size: tuple[int, int]) -> None:
    image = Image.linear_gradient("L").convert("RGB").resize((64, 40))
    before = image.tobytes()
    fitted = fit(image, size, Image.Resampling.LANCZOS)
    assert fitted.size == size and fitted is not image
    fitted.paste("red", (0, 0, *size))
    assert image.tobytes() == before


def test_fit_uses_the_requested_resampling() -> None:
    image = Image.linear_gradient("L")
    nearest = fit(image, (10, 10), Image.Resampling.NEAREST)
    assert set(nearest.tobytes()) <= set(image.tobytes()) and len(set(nearest.tobytes())) == 10
    assert nearest.tobytes() != fit(image, (10, 10), Image.Resampling.BOX).tobytes()


def test_pixels_within_the_limit_pass() -> None:
    check_pixels((1024, 1024), 4, 4 * 1024 * 1024)


@pytest.mark.parametrize(
    ("size", "num_outputs", "limit", "ways"),
    [
        ((2048, 2048), 4, 4194304, "lower resolution to 1024 or lower num_outputs to 1."),
        ((2048, 2048), 1, 4194303, "lower resolution to 2040."),
        ((1024, 1024), 4, 3_500_000, "lower resolution to 928 or lower num_outputs to 3."),
        ((2048, 2048), 4, 10_000, "lower num_outputs to 1 and resolution to 96."),
        ((64, 64), 1, 100, "no resolution is small enough."),
    ],
)
def test_too_many_pixels_says_what_to_lower_and_to_what(
    size: tuple[int, int], num_outputs: int, limit: int, ways: str
) -> None:
    with pytest.raises(SizeError) as caught:
        check_pixels(size, num_outputs, limit)
    assert str(caught.value).endswith(f": {ways}")
    assert f"{num_outputs} × {size[0]}×{size[1]}" in str(caught.value)


def test_the_advised_resolution_is_legal_and_nearly_the_largest() -> None:
    rng = random.Random(1)
    for _ in range(400):
        size = (rng.randint(100, 1000), rng.randint(100, 1000))
        if max(size) > 4 * min(size):
            continue
        outputs, limit = rng.randint(1, 4), rng.randint(100_000, 4_000_000)
        canvas = canvas_size(size, rng.randint(64, 2048))
        try:
            check_pixels(canvas, outputs, limit)
        except SizeError as error:
            advised = int(str(error).split("lower resolution to ")[1].split(" ")[0].rstrip("."))
            check_pixels(canvas_size(size, advised), outputs, limit)
            with pytest.raises(SizeError):
                check_pixels(canvas_size(size, advised + 24), outputs, limit)


@pytest.mark.parametrize(
    ("size", "upscale", "enlarged"),
    [
        ((64, 96), 1.5, (96, 144)),
        ((72, 64), 1.5, (112, 96)),
        ((64, 64), 1.01, (64, 64)),
        ((1024, 512), 4, (4096, 2048)),
    ],
)
def test_upscaled_sides_are_multiples_of_8(size: tuple, upscale: float, enlarged: tuple) -> None:
    assert upscaled_size(size, upscale) == enlarged


@pytest.mark.parametrize(
    ("size", "outputs", "upscale", "advice"),
    [
        ((512, 512), 4, 4.0, "lower upscale to 2 or lower num_outputs to 1."),
        ((512, 512), 3, 4.0, r"lower upscale to 2\.\d+ or lower num_outputs to 1."),
        ((2048, 1024), 1, 1.5, "leave upscale out, or lower resolution."),
        ((1200, 256), 1, 4.0, r"lower upscale to 3\.\d+."),
    ],
)
def test_too_much_to_upscale_is_refused_with_what_is_allowed(size, outputs, upscale, advice) -> None:
    limit = 4 * 1024 * 1024 if size != (2048, 1024) else 2048 * 1024
    with pytest.raises(SizeError, match=rf"is more than upscale may make .*: {advice}$") as refusal:
        check_upscaled(size, upscale, outputs, limit)
    if "lower upscale to" in str(refusal.value):
        advised = float(str(refusal.value).split("lower upscale to ")[1].split(" ")[0].rstrip("."))
        check_upscaled(size, advised, outputs, limit)
        with pytest.raises(SizeError):
            check_upscaled(size, advised + 0.03, outputs, limit)


def test_a_side_of_4096_is_the_largest() -> None:
    check_upscaled((1024, 512), 4.0, 1, 2**30)
    with pytest.raises(SizeError, match="4096 on a side"):
        check_upscaled((1032, 512), 4.0, 1, 2**30)
    check_upscaled((1032, 512), 1.0, 1, 1)


def test_detect_size_keeps_aspect_ratio_within_a_limit() -> None:
    assert detect_size((512, 768), None) == (512, 768)
    assert detect_size((512, 768), 1024) == (1024, 1536)
    assert detect_size((768, 512), 100) == (150, 100)
    for canvas in ((512, 768), (520, 1352), (2048, 512)):
        with pytest.raises(SizeError, match=r"lower it to \d+\.$") as caught:
            detect_size(canvas, 2048)
        allowed = int(str(caught.value).rstrip(".").rsplit(" ", 1)[1])
        detect_size(canvas, allowed)
        with pytest.raises(SizeError):
            detect_size(canvas, allowed + 1)


@pytest.mark.parametrize(
    ("size", "canvas", "cropped"), [((16, 64), (2048, 64), (16, 1)), ((64, 16), (64, 2048), (1, 16))]
)
def test_crop_leaves_at_least_a_pixel(size: tuple[int, int], canvas: tuple[int, int], cropped: tuple[int, int]) -> None:
    """The smallest picture, on the longest canvas of the other shape: half a pixel of its long side would be enough."""
    assert reshape(Image.new("RGB", size), canvas, "crop").size == cropped


@pytest.mark.parametrize("canvas", [(64, 2048), (2048, 64)])
@pytest.mark.parametrize("size", [(16, 64), (64, 16), (16, 16), (8000, 2000), (2000, 8000)])
def test_fill_shrinks_no_picture_to_nothing(size: tuple[int, int], canvas: tuple[int, int]) -> None:
    margins = filled(size, canvas)
    left, top, right, bottom = margins.inside(canvas)
    assert right - left >= 16 and bottom - top >= 16
    assert min(reshape(Image.new("L", size), canvas, "fill").size) >= 16


def test_fill_extends_no_picture_beyond_its_limit() -> None:
    """With margins at its own scale this one would have 2 billion pixels, and take 14 GB."""
    wide = Image.linear_gradient("L").rotate(90).resize((8000, 2000)).convert("RGB")
    shaped = reshape(wide, (64, 2048), "fill")
    assert shaped.width * shaped.height <= 1.01 * MOST_EXTENDED and min(shaped.size) > 64
    laid = np.asarray(fit(shaped, (64, 2048), Image.Resampling.LANCZOS)).astype(int)
    direct = np.asarray(fit(wide, (64, 16), Image.Resampling.LANCZOS)).astype(int)
    assert np.abs(laid[1018:1030] - direct[2:14]).max() <= 3
    margins = filled(wide.size, (64, 2048))
    assert margins.top == margins.bottom == 1016
    assert np.abs(laid[:1000] - direct[0]).max() <= 3 and np.abs(laid[1048:] - direct[-1]).max() <= 3


def test_fill_keeps_the_pixels_of_ordinary_pictures() -> None:
    picture = Image.linear_gradient("L").resize((400, 100))
    for size in ((64, 64), (64, 256), (512, 768)):
        shaped = reshape(picture, size, "fill")
        top = (shaped.height - 100) // 2
        assert shaped.crop((0, top, 400, top + 100)) == picture
