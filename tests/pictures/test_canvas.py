"""How a request's pictures are laid onto the canvas, and what a request starts from."""

import re

import numpy as np
import pytest
from PIL import Image
from support.asks import asked, noise

from controlnet.generation.job import RequestError
from controlnet.pictures.canvas import Canvas, lay_out, open_pictures, start_of
from controlnet.pictures.geometry import Margins, SizeError, check_pixels
from controlnet.pictures.images import ImageError


def test_the_size_is_that_of_the_short_side_or_the_one_given() -> None:
    pictures = {"image": noise(200, 100)}
    assert lay_out(asked(), pictures).size == (128, 64)
    assert lay_out(asked(width=96), pictures).size == (96, 48 + 16)  # never below 64
    assert lay_out(asked(width=256), pictures).size == (256, 128)
    assert lay_out(asked(height=100), pictures).size == (208, 104)
    assert lay_out(asked(width=100, height=300), pictures).size == (104, 304)


def test_the_picture_to_begin_with_gives_the_shape() -> None:
    pictures = {"image": noise(200, 100), "init_image": noise(100, 200)}
    assert lay_out(asked(), pictures).size == (64, 128)


def test_a_picture_of_another_shape_is_cropped_filled_or_stretched() -> None:
    wide = Image.new("RGB", (300, 100), "red")
    wide.paste("blue", (100, 0, 200, 100))  # the middle third
    crop, fill, stretch = (
        np.asarray(Canvas((64, 64), Margins(), mode).lay(wide, (64, 64))) for mode in ("crop", "fill", "stretch")
    )
    assert (crop[2:-2, 2:-2] == (0, 0, 255)).all()
    assert (stretch[:, 26:38] == (0, 0, 255)).all() and (stretch[:, :16] == (255, 0, 0)).all()
    assert (fill[:, 26:38] == (0, 0, 255)).all() and (fill[0, :16] == (255, 0, 0)).all()  # its edges continued
    black = np.asarray(Canvas((64, 64), Margins(), "fill").lay(wide, (64, 64), blank=0))
    assert not black[:18].any() and not black[-18:].any() and black[24:40].any()


def test_a_picture_of_the_canvas_own_shape_is_not_cut_for_the_rounding() -> None:
    picture = noise(451, 300)
    for mode in ("crop", "fill", "stretch"):
        canvas = Canvas((96, 64), Margins(), mode)
        assert canvas.lay(picture, canvas.size) == picture.resize((96, 64), Image.Resampling.LANCZOS)


def test_without_picture_mask_or_margin_a_request_starts_from_noise() -> None:
    pictures = {"image": noise(64, 64)}
    assert start_of(asked(), pictures, lay_out(asked(), pictures)) is None


def test_a_picture_alone_is_changed_a_masked_one_repainted() -> None:
    pictures = {"image": noise(64, 64), "init_image": noise(64, 64, 1)}
    start = start_of(asked(), pictures, lay_out(asked(), pictures))
    assert start and start.strength == 0.8 and start.mask is None and start.picture == pictures["init_image"]
    masked = {"image": noise(64, 64), "mask": Image.new("L", (64, 64), 255)}
    start = start_of(asked(), masked, lay_out(asked(), masked))
    assert start and start.strength == 1.0 and start.picture == masked["image"]
    start = start_of(asked(prompt_strength=0.3), masked, lay_out(asked(), masked))
    assert start and start.strength == 0.3


def test_outpainting_grows_the_canvas_and_masks_what_is_new() -> None:
    pictures = {"image": noise(64, 64)}
    ask = asked(outpaint_left=9, outpaint_bottom=16)
    canvas = lay_out(ask, pictures)
    assert canvas.size == (80, 80) and canvas.kept == (64, 64)  # 9 becomes 16
    start = start_of(ask, pictures, canvas)
    assert start and start.mask is not None and start.strength == 1.0
    mask, picture = np.asarray(start.mask), np.asarray(start.picture)
    assert (mask[:64, 16:] == 0).all() and (mask[:, :16] == 255).all() and (mask[64:] == 255).all()
    assert np.array_equal(picture[:64, 16:], np.asarray(pictures["image"]))
    assert (picture[:64, :16] == picture[:64, 16:17]).all()


def test_only_resolution_can_be_told_what_to_be_lowered_to() -> None:
    pictures = {"image": noise(64, 64)}
    assert lay_out(asked(), pictures).by_resolution
    for more in ({"width": 64}, {"height": 64}, {"outpaint_top": 8}):
        assert not lay_out(asked(**more), pictures).by_resolution
    with pytest.raises(SizeError, match="lower the sides, margins included, to 4096 pixels in all"):
        check_pixels((128, 64), 1, 4096, by_resolution=False)
    with pytest.raises(SizeError, match="lower resolution to"):
        check_pixels((128, 128), 1, 4096)


def test_a_mask_goes_with_margins() -> None:
    mask = Image.new("L", (64, 64))
    mask.paste(255, (0, 0, 8, 8))
    pictures = {"image": noise(64, 64), "mask": mask}
    ask = asked(outpaint_right=8)
    start = start_of(ask, pictures, lay_out(ask, pictures))
    assert start and start.mask is not None
    expected = np.zeros((64, 72), np.uint8)
    expected[:8, :8] = expected[:, 64:] = 255
    assert np.array_equal(np.asarray(start.mask), expected)


def test_a_black_mask_is_refused() -> None:
    pictures = {"image": noise(64, 64), "mask": Image.new("L", (64, 64))}
    with pytest.raises(RequestError, match="mask is black everywhere"):
        start_of(asked(), pictures, lay_out(asked(), pictures))


def test_a_bad_picture_is_told_by_its_inputs_name(tmp_path) -> None:
    good, bad = tmp_path / "good.png", tmp_path / "bad.png"
    noise(32, 32).save(good)
    bad.write_bytes(b"no picture")
    with pytest.raises(ImageError, match=r"^control_mask_2: The image is not a picture"):
        open_pictures(asked(image=good, control_mask_2=bad))
    with pytest.raises(ImageError, match=r"^The image is not a picture") as refusal:
        open_pictures(asked(image=bad))
    assert not re.search(str(tmp_path), str(refusal.value))
    opened = open_pictures(asked(image=good, mask=good))
    assert {name: picture.mode for name, picture in opened.items()} == {"image": "RGB", "mask": "L"}
