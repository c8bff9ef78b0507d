"""All types of pictures that users send open as upright RGB. test_images_refused.py has those that are refused."""

import io
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, PngImagePlugin
from support import icc_profiles
from support.picture_files import difference, picture, pixel, png, save, write

from controlnet.conditioners import WHITE
from controlnet.pictures import colours, images
from controlnet.pictures.colours import lay_on
from controlnet.pictures.images import READABLE_FORMATS, open_image, sent_size, white_on_black


@pytest.mark.parametrize("pillow_format", READABLE_FORMATS)
def test_every_readable_format_opens(tmp_path: Path, pillow_format: str) -> None:
    opened = open_image(save(picture(), tmp_path, pillow_format=pillow_format))
    assert opened.mode == "RGB"
    assert type(opened) is Image.Image and opened.info == {} and not opened.getexif()
    assert difference(opened, picture()) <= {"GIF": 90, "JPEG": 40, "WEBP": 40, "AVIF": 40}.get(pillow_format, 0)


def test_a_picture_outlives_its_file(tmp_path: Path) -> None:
    path = save(picture(), tmp_path)
    opened = open_image(path)
    path.unlink()
    assert difference(opened, picture()) == 0


@pytest.mark.parametrize("name", ["photo.txt", "photo.jpg"])
def test_the_name_of_the_file_does_not_matter(tmp_path: Path, name: str) -> None:
    assert difference(open_image(save(picture(), tmp_path, name=name)), picture()) == 0


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("pillow_format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int, pillow_format: str) -> None:
    """Some ControlNet containers on Replicate ignore it, so most phone pictures lie on their side."""
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    upright = Image.new("RGB", (48, 32))
    ImageDraw.Draw(upright).rectangle((0, 0, 15, 7), fill="white")
    stored = upright.transpose(undo[orientation]) if orientation in undo else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    opened = open_image(save(stored, tmp_path, pillow_format=pillow_format, exif=exif))
    assert opened.size == (48, 32)
    assert difference(opened, upright) < 60
    assert not opened.getexif()


@pytest.mark.parametrize("pillow_format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize(
    "exif",
    [
        b"Exif\0\0MM\0\x2a\xff\xff\xff\xff junk",
        b"Exif\0\0no TIFF header",
        b"Exif\0\0MM\0\x2a\0\0\0\x08\0\x01\x01\x12\0\x02\0\0\0\x02ab\0\0\0\0\0\0",
    ],
    ids=["no directory", "no header", "orientation is text"],
)
def test_broken_exif_is_ignored(tmp_path: Path, exif: bytes, pillow_format: str) -> None:
    opened = open_image(save(picture(), tmp_path, pillow_format=pillow_format, exif=exif))
    assert difference(opened, picture()) <= (0 if pillow_format == "PNG" else 40)


CYAN, MAGENTA, BLACK = (255, 0, 0, 0), (0, 255, 0, 0), (0, 0, 0, 255)


@pytest.mark.parametrize("adobe", [True, False], ids=["Adobe, inverted", "no Adobe marker, not inverted"])
@pytest.mark.parametrize(("ink", "rgb"), [(CYAN, (0, 255, 255)), (MAGENTA, (255, 0, 255)), (BLACK, (0, 0, 0))])
def test_cmyk_jpeg_has_the_right_colours(tmp_path: Path, adobe: bool, ink: tuple, rgb: tuple) -> None:
    stored = Image.new("CMYK", (32, 32), ink if adobe else tuple(255 - value for value in ink))
    data = save(stored, tmp_path, pillow_format="JPEG", quality=100).read_bytes()
    marker = data.index(b"\xff\xee")
    if not adobe:
        data = data[:marker] + data[marker + 2 + struct.unpack(">H", data[marker + 2 : marker + 4])[0] :]
    opened = open_image(write(data, tmp_path))
    assert difference(opened, Image.new("RGB", (32, 32), rgb)) <= 2


def test_cmyk_tiff_has_the_right_colours(tmp_path: Path) -> None:
    opened = open_image(save(Image.new("CMYK", (32, 32), CYAN), tmp_path, pillow_format="TIFF"))
    assert opened.getpixel((0, 0)) == (0, 255, 255)


def test_cmyk_profile_is_used(tmp_path: Path) -> None:
    profile = icc_profiles.green_ink_cmyk()
    path = save(Image.new("CMYK", (32, 32), CYAN), tmp_path, pillow_format="JPEG", quality=100, icc_profile=profile)
    red, green, blue = pixel(open_image(path))
    assert green > 220 and red < 60 and blue < 60


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_rgb_profile_is_used(tmp_path: Path, mode: str) -> None:
    stored = Image.new("RGB", (32, 32), (255, 0, 0)).convert(mode)
    opened = open_image(save(stored, tmp_path, icc_profile=icc_profiles.swapped_srgb()))
    red, green, blue = pixel(opened)
    assert blue > 250 and red < 5 and green < 5


@pytest.mark.parametrize(
    "profile", [lambda: b"junk", icc_profiles.green_ink_cmyk], ids=["broken", "for another colour space"]
)
def test_useless_profile_is_ignored(tmp_path: Path, profile: Callable[[], bytes]) -> None:
    assert difference(open_image(save(picture(), tmp_path, icc_profile=profile())), picture()) == 0


def padded(profile: bytes, size: int) -> bytes:
    """The profile with bytes at its end that do not compress."""
    whole = profile + np.random.default_rng(0).bytes(size - len(profile))
    return struct.pack(">I", size) + whole[4:]


@pytest.mark.parametrize("size", [3 * 2**20, 255 * 65519], ids=["3 MB", "the most that a JPEG holds"])
def test_a_large_profile_is_used_as_in_other_formats(tmp_path: Path, size: int) -> None:
    stored = Image.new("RGB", (32, 32), (255, 0, 0))
    for pillow_format in ("PNG", "JPEG", "WEBP", "TIFF"):
        profile = padded(icc_profiles.swapped_srgb(), size)
        red, green, blue = pixel(open_image(save(stored, tmp_path, pillow_format=pillow_format, icc_profile=profile)))
        assert blue > 250 and red < 5 and green < 5, pillow_format


@pytest.mark.parametrize("kind", ["tEXt", "zTXt", "iTXt", "XMP"])
def test_a_large_text_in_a_png_is_read(tmp_path: Path, kind: str) -> None:
    """The orientation of the last is in it. Pillow itself takes a megabyte of packed text."""
    words, info = "many words " * 300_000, PngImagePlugin.PngInfo()
    if kind == "XMP":
        xmp = f'<x:xmpmeta><rdf tiff:Orientation="6"/><!--{words}--></x:xmpmeta>'
        info.add_itxt("XML:com.adobe.xmp", xmp, zip=True)
    elif kind == "iTXt":
        info.add_itxt("a", words, zip=True)
    else:
        info.add_text("a", words, zip=kind == "zTXt")
    usual = PngImagePlugin.MAX_TEXT_CHUNK
    opened = open_image(save(picture(), tmp_path, pnginfo=info))
    expected = picture().transpose(Image.Transpose.ROTATE_270) if kind == "XMP" else picture()
    assert opened == expected and usual == PngImagePlugin.MAX_TEXT_CHUNK


def test_grey_picture_keeps_its_values_under_an_rgb_profile(tmp_path: Path) -> None:
    opened = open_image(save(Image.new("L", (32, 32), 77), tmp_path, icc_profile=icc_profiles.swapped_srgb()))
    assert opened.getpixel((0, 0)) == (77, 77, 77)


def test_16_bit_grey_png_is_scaled_not_clipped(tmp_path: Path) -> None:
    values = np.linspace(0, 65535, 32 * 32).round().astype(np.uint16).reshape(32, 32)
    opened = np.asarray(open_image(save(Image.fromarray(values), tmp_path)), dtype=float)
    assert np.abs(opened - values[..., None] / 257).max() <= 0.5
    assert (opened[0, 0, 0], opened[-1, -1, 0]) == (0, 255)


@pytest.mark.parametrize("mode", ["I;16", "I;16B"])
def test_16_bit_grey_tiff_is_scaled(tmp_path: Path, mode: str) -> None:
    values = np.full((32, 32), 32768, dtype={"I;16": "<u2", "I;16B": ">u2"}[mode])
    stored = Image.frombytes(mode, (32, 32), values.tobytes())
    assert open_image(save(stored, tmp_path, pillow_format="TIFF")).getpixel((5, 5)) == (128, 128, 128)


def test_32_bit_grey_with_16_bit_values_is_scaled(tmp_path: Path) -> None:
    stored = Image.fromarray(np.full((32, 32), 32768, dtype=np.int32))
    assert open_image(save(stored, tmp_path, pillow_format="TIFF")).getpixel((5, 5)) == (128, 128, 128)


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_values_without_a_known_range_are_stretched(tmp_path: Path, dtype: type) -> None:
    values = np.linspace(-1e6, 1e6, 32 * 32).reshape(32, 32).astype(dtype)
    opened = np.asarray(open_image(save(Image.fromarray(values), tmp_path, pillow_format="TIFF")))
    assert (opened.min(), opened.max()) == (0, 255)
    assert np.array_equal(np.sort(opened[..., 0].ravel()), opened[..., 0].ravel())


def test_nan_is_black_and_infinity_white_in_a_float_tiff(tmp_path: Path) -> None:
    values = np.full((32, 32), 0.5, dtype=np.float32)
    values[0, :4] = (0, 1, np.nan, np.inf)
    opened = open_image(save(Image.fromarray(values), tmp_path, pillow_format="TIFF"))
    assert [pixel(opened, x)[0] for x in range(5)] == [0, 255, 0, 255, 128]


def test_constant_float_tiff_is_black(tmp_path: Path) -> None:
    stored = Image.fromarray(np.full((32, 32), 0.5, dtype=np.float32))
    assert open_image(save(stored, tmp_path, pillow_format="TIFF")).getextrema() == ((0, 0),) * 3


def test_16_bit_rgb_png_is_scaled(tmp_path: Path) -> None:
    row = b"\0" + struct.pack(">3H", 65535, 32896, 0) * 32
    opened = open_image(write(png(32, 32, row * 32, depth=16), tmp_path))
    assert opened.getextrema() == ((255, 255), (128, 128), (0, 0))


def test_a_transparent_value_of_16_bit_grey(tmp_path: Path) -> None:
    row = b"\0" + struct.pack(">2H", 1000, 1001) * 16
    opened = open_image(write(png(32, 32, row * 32, depth=16, colour=0, extra=struct.pack(">H", 1000)), tmp_path))
    assert opened.getpixel((0, 0)) == (4, 4, 4, 0)
    assert opened.getpixel((1, 0)) == (4, 4, 4, 255)


def test_transparent_colour_of_16_bit_rgb_spares_other_colours(tmp_path: Path) -> None:
    row = b"\0" + struct.pack(">3H", 40000, 500, 65535) * 32
    data = png(32, 32, row * 32, depth=16, extra=struct.pack(">3H", 1, 2, 60000))
    assert open_image(write(data, tmp_path)).getpixel((0, 0)) == (156, 1, 255)


@pytest.mark.parametrize("mode", ["L", "1", "P"])
def test_modes_without_transparency_keep_black_and_white(tmp_path: Path, mode: str) -> None:
    stored = Image.new("L", (32, 32), 0)
    stored.paste(255, (0, 0, 16, 32))
    opened = open_image(save(stored.convert(mode), tmp_path))
    assert opened.getpixel((0, 0)) == (255, 255, 255)
    assert opened.getpixel((31, 0)) == (0, 0, 0)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_what_is_transparent_is_laid_on_a_colour(tmp_path: Path, mode: str) -> None:
    stored = Image.new(mode, (32, 32))  # black, fully transparent
    stored.paste(Image.new(mode, (16, 32), (0, 0, 0, 255) if mode == "RGBA" else (0, 255)), (0, 0))
    stored.paste(Image.new(mode, (8, 32), (0, 0, 0, 51) if mode == "RGBA" else (0, 51)), (24, 0))
    opened = open_image(save(stored, tmp_path))
    assert [opened.getpixel((x, 0)) for x in (0, 20, 28)] == [(0, 0, 0, 255), (0, 0, 0, 0), (0, 0, 0, 51)]
    white, red = lay_on(opened, WHITE), lay_on(opened, (200, 0, 0))
    assert [white.getpixel((x, 0)) for x in (0, 20, 28)] == [(0,) * 3, (255,) * 3, (204,) * 3]
    assert [red.getpixel((x, 0)) for x in (0, 20, 28)] == [(0, 0, 0), (200, 0, 0), (160, 0, 0)]
    sharp = lay_on(opened, WHITE, mixed=False)
    assert [sharp.getpixel((x, 0)) for x in (0, 20, 28)] == [(0,) * 3, (255,) * 3, (255,) * 3]
    assert opened.getpixel((28, 0)) == (0, 0, 0, 51), "the picture that is laid on a colour is left alone"


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_a_picture_without_a_transparent_pixel_is_rgb(tmp_path: Path, mode: str) -> None:
    stored = picture().convert("RGBA").convert(mode)
    opened = open_image(save(stored, tmp_path, **({"transparency": b"\xff" * 256} if mode == "P" else {})))
    assert opened.mode == "RGB" and difference(opened, stored.convert("RGB")) == 0
    assert lay_on(opened, WHITE) is opened


def test_a_profile_is_for_the_colours_and_not_for_the_transparency(tmp_path: Path) -> None:
    stored = Image.new("RGBA", (32, 32), (255, 0, 0, 77))
    red, green, blue, alpha = pixel(open_image(save(stored, tmp_path, icc_profile=icc_profiles.swapped_srgb())))
    assert blue > 250 and red < 5 and green < 5 and alpha == 77


@pytest.mark.parametrize("transparency", [1, b"\xff\x00"], ids=["one index", "alpha table"])
def test_a_transparent_palette_entry(tmp_path: Path, transparency: int | bytes) -> None:
    stored = Image.new("P", (32, 32), 1)
    stored.putpalette([200, 10, 10, 0, 0, 0])
    stored.paste(0, (0, 0, 16, 32))
    opened = open_image(save(stored, tmp_path, transparency=transparency))
    assert opened.getpixel((0, 0)) == (200, 10, 10, 255)
    assert pixel(opened, 31)[3] == 0


@pytest.mark.parametrize("mode", ["1", "L", "RGB"])
def test_one_transparent_colour(tmp_path: Path, mode: str) -> None:
    key = {"1": 0, "L": 0, "RGB": (0, 0, 0)}[mode]
    opened = open_image(save(Image.new(mode, (32, 32)), tmp_path, transparency=key))
    assert opened.getpixel((3, 3)) == (0, 0, 0, 0)


@pytest.mark.parametrize("pillow_format", ["GIF", "WEBP", "PNG", "TIFF"])
def test_the_first_frame_of_an_animation_is_used(tmp_path: Path, pillow_format: str) -> None:
    frames = [Image.new("RGB", (32, 32), colour) for colour in ((255, 0, 0), (0, 255, 0), (0, 0, 255))]
    path = save(frames[0], tmp_path, pillow_format=pillow_format, save_all=True, append_images=frames[1:])
    assert difference(open_image(path), frames[0]) <= 8


def test_multi_picture_jpeg_of_a_phone_opens(tmp_path: Path) -> None:
    path = save(picture(), tmp_path, pillow_format="MPO", save_all=True, append_images=[picture()])
    with Image.open(path) as stored:
        assert stored.format == "MPO"
    assert difference(open_image(path), picture()) <= 40


# Ready-made line maps


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_dark_on_white_line_map_is_inverted_once(mode: str) -> None:
    doodle = Image.new(mode, (64, 64), "white")
    ImageDraw.Draw(doodle).line((5, 5, 60, 50), fill="black", width=3)
    kept = doodle.copy()
    turned = white_on_black(doodle)
    assert np.array_equal(np.asarray(turned), 255 - np.asarray(doodle))
    assert difference(doodle, kept) == 0
    again = white_on_black(turned)
    assert difference(again, turned) == 0 and again is not turned


# Large pictures


@pytest.mark.parametrize("pillow_format", ["JPEG", "PNG", "TIFF"])
def test_a_picture_beyond_the_full_size_is_halved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pillow_format: str
) -> None:
    path = save(picture((97, 700)), tmp_path, pillow_format=pillow_format)
    monkeypatch.setattr(images, "MOST_ASPECT", 10)
    whole = open_image(path)
    assert whole.size == (97, 700)  # of more than one strip
    monkeypatch.setattr(images, "FULL_SIZE", 97 * 700 - 1)
    halved = open_image(path)
    assert halved.size == (49, 350)
    assert difference(halved, whole.reduce(2)) <= (40 if pillow_format == "JPEG" else 0)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "I", "F"])
def test_strips_give_the_same_pixels_as_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    values = np.random.default_rng(0).integers(0, 256, (70, 40, 4), dtype=np.uint8)
    deep = {"I;16": np.uint16, "I": np.int32, "F": np.float32}
    if mode in deep:
        stored = Image.fromarray((values[..., 0].astype(np.int64) * 250).astype(deep[mode]))
    else:
        stored = Image.fromarray(values, "RGBA").convert(mode)
    profile = icc_profiles.swapped_srgb() if mode == "RGB" else None
    path = save(stored, tmp_path, pillow_format="TIFF", icc_profile=profile)
    whole = open_image(path)
    monkeypatch.setattr(colours, "STRIP", 16)
    assert open_image(path) == whole


def test_what_is_transparent_has_no_colour_when_a_picture_is_halved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = Image.new("RGBA", (32, 32))  # black, fully transparent
    stored.paste((250, 100, 50, 255), (0, 0, 17, 32))
    monkeypatch.setattr(images, "FULL_SIZE", 100)
    halved = open_image(save(stored, tmp_path))
    assert pixel(halved, 7) == (250, 100, 50, 255) and pixel(halved, 9)[3] == 0
    assert np.abs(np.subtract(pixel(halved, 8), (250, 100, 50, 128))).max() <= 1, "black has darkened the edge"


@pytest.mark.parametrize("pillow_format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_the_sent_size_is_upright_and_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pillow_format: str
) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    monkeypatch.setattr(images, "FULL_SIZE", 100)
    lying = save(picture(), tmp_path, pillow_format=pillow_format, exif=exif)
    assert (sent_size(lying), open_image(lying).size) == ((32, 48), (16, 24))
    assert sent_size(save(picture(), tmp_path, pillow_format=pillow_format)) == (48, 32)


# 16 bits that use little of their range


def narrow(kind: str) -> bytes:
    """A file whose values of 16 bits lie between 100 and 4000."""
    values = np.linspace(100, 4000, 32 * 32).round().astype(np.uint16).reshape(32, 32)
    if kind == "16-bit grey PNG":
        return encoded(Image.fromarray(values), "PNG")
    if kind == "16-bit grey TIFF":
        return encoded(Image.fromarray(values.astype(">u2")), "TIFF")
    if kind == "32-bit grey TIFF":
        return encoded(Image.fromarray(values.astype(np.int32)), "TIFF")
    channels = {"16-bit RGB PNG": (2, [values] * 3), "16-bit RGBA PNG": (6, [values] * 3 + [values * 0 + 65535])}
    colour, bands = channels[kind]
    rows = np.stack(bands, axis=-1).astype(">u2").tobytes()
    size = len(rows) // 32
    return png(32, 32, b"".join(b"\0" + rows[y * size :][:size] for y in range(32)), depth=16, colour=colour)


def encoded(stored: Image.Image, pillow_format: str) -> bytes:
    buffer = io.BytesIO()
    stored.save(buffer, pillow_format)
    return buffer.getvalue()


KINDS = ["16-bit grey PNG", "16-bit grey TIFF", "32-bit grey TIFF", "16-bit RGB PNG", "16-bit RGBA PNG"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_map_that_uses_a_sixteenth_of_16_bits_stays_and_the_log_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    opened = open_image(write(narrow(kind), tmp_path), "image_2")
    assert (pixel(opened), pixel(opened, 31, 31)) == ((0,) * 3, ((16 if "grey" in kind else 15),) * 3)
    (line,) = capsys.readouterr().out.splitlines()
    told = "between 100 and 4000 of 65535" if "grey" in kind else "between 0 and 3855 of 65535"
    assert line.startswith("image_2: its 16-bit values lie ") and told in line and "over the whole range" in line


@pytest.mark.parametrize(
    "values", [np.full((32, 32), 900), np.linspace(0, 4200, 1024).reshape(32, 32)], ids=["one tone", "more"]
)
def test_other_maps_of_16_bits_need_no_word(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], values: np.ndarray
) -> None:
    open_image(save(Image.fromarray(values.astype(np.uint16)), tmp_path))
    open_image(save(picture().point(lambda value: value // 32), tmp_path))  # 8 bits
    open_image(save(Image.fromarray(values.astype(np.float32)), tmp_path, pillow_format="TIFF"))  # stretched
    assert capsys.readouterr().out == ""
