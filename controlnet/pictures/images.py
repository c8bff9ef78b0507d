"""Open any picture that a user may send, as plain 8-bit sRGB.

Orientation, colour profile, bit depth and further frames are all handled here. The rest of the package only sees
upright RGB images, and RGBA ones where a part is transparent: what lies below it depends on what the picture is for.
"""

import pathlib
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from PIL import ExifTags, Image, ImageOps, ImageStat, PngImagePlugin, features

from controlnet.log import say
from controlnet.pictures.colours import DEEPEST, has_16_bits, narrow_range, to_srgb
from controlnet.pictures.costs import MeteredFile, TooManyReads, too_costly, too_costly_to_open
from controlnet.pictures.png import broken_chunk

# Raster formats only. Pillow would also open EPS (which runs Ghostscript), PSD and dozens of rare formats, and each is
# more code that a file from outside can reach. JPEG includes MPO, the multi-picture JPEG of phones.
READABLE_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF") + (("AVIF",) if features.check("avif") else ())
SMALLEST_SIDE = 16  # pixels; a smaller picture has no structure to follow
MOST_PIXELS = 64_000_000  # 192 MB as RGB, more than any camera in common use
FULL_SIZE = 25_000_000  # pixels; a picture with more is halved on each side when it is opened
MOST_ASPECT = 4  # long side : short side; beyond it Stable Diffusion repeats itself
MOST_UNPACKED = 2**24  # bytes of a PNG's colour profile, or of one of its texts: a profile in a JPEG has up to as many

ORIENTATIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation (EXIF 2.3, tag 0x0112) → how to turn the picture upright. 1 and unknown values need nothing."""


_TOO_MANY_PARTS = (
    "The image would take too much time or memory: its file consists of too many parts, please save it again."
)


class ImageError(ValueError):
    """The picture that was sent cannot be used. The message says why and names no path."""


def open_image(source: pathlib.Path, name: str = "image") -> Image.Image:
    """The picture in the file `source`, upright, in 8-bit sRGB: RGB, or RGBA if a part is transparent. No metadata.

    Each side has at least 16 pixels, the aspect ratio is at most 4 : 1, and the file has at most 64 megapixels. One
    with more than 25 is halved on each side. The size, and what limits the time (costs.py), are read from the header,
    before any pixel is decoded. Of an animation, the first frame is returned. The file is closed on return. If it has
    16 bits and uses less than a sixteenth of their range, the log has a line with `name`, that of the picture's input.

    Raises ImageError for anything else. A str is refused without reading it: the server saves uploads, URLs and data
    URLs to a file and passes a Path, but a local path or file:// URL from a client arrives as the bare str.
    """
    with _header(source) as picture:
        return _decode(picture, name)


def sent_size(source: pathlib.Path) -> tuple[int, int]:
    """(width, height) of the picture in the file `source`, upright, before a large one is halved. Raises ImageError."""
    with _header(source) as picture:
        width, height = picture.size
        lies = _orientation(picture) in (5, 6, 7, 8) and picture.format != "TIFF"  # Pillow has turned the size of those
    return (height, width) if lies else (width, height)


@contextmanager
def _header(source: pathlib.Path) -> Iterator[Image.Image]:
    """The picture in the file `source` before its pixels are decoded. Raises ImageError if it will not be accepted."""
    if not isinstance(source, pathlib.Path):
        raise ImageError("The image must be an uploaded file, an http(s) URL or a data URL: nothing else is opened.")
    try:
        file = MeteredFile(source)
    except OSError:
        raise ImageError("The image could not be read: nothing readable arrived, please send it again.") from None
    with file, warnings.catch_warnings(), _large_texts():
        warnings.simplefilter("ignore")  # warnings about odd metadata would only fill the request's log
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        if not file.peek(1):
            raise ImageError("The image is empty (0 bytes): please send it again.")
        picture = _read_header(file)
        _check_size(*picture.size)
        if fault := too_costly(file, picture.format, picture.width * picture.height):
            raise ImageError(f"The image would take too much time or memory: {fault}.")
        yield picture


def white_on_black(control_map: Image.Image) -> Image.Image:
    """A copy of a line map with bright lines on black, as the ControlNets expect it. A dark-on-white map is inverted.

    Lines cover little of a map, so a mean luminance above half means that the background is white.
    """
    mean = ImageStat.Stat(control_map.convert("L")).mean[0]
    return ImageOps.invert(control_map) if mean > 127.5 else control_map.copy()


@contextmanager
def _large_texts() -> Iterator[None]:
    """Let Pillow read MOST_UNPACKED bytes of a PNG's profile and of each text, instead of one megabyte."""
    usual, PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_CHUNK, MOST_UNPACKED
    try:
        yield
    finally:
        PngImagePlugin.MAX_TEXT_CHUNK = usual


def _read_header(file: MeteredFile) -> Image.Image:
    # For bad files Pillow's plugins raise many exceptions (struct.error, KeyError, …), and their texts name the file.
    try:
        if fault := too_costly_to_open(file):
            raise ImageError(f"The image would take too much time or memory: {fault}.")
        if chunk := broken_chunk(file):
            raise ImageError(
                f"The image is damaged: the checksum of the chunk {chunk} in this PNG is wrong, please send it again."
            )
        return Image.open(file, formats=READABLE_FORMATS)
    except ImageError:
        raise
    except TooManyReads:
        raise ImageError(_TOO_MANY_PARTS) from None
    except MemoryError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise ImageError(
            f"The image is too large: at most {MOST_PIXELS // 1_000_000} megapixels are accepted."
        ) from None
    except Exception as error:
        raise ImageError(_text_fault(error) or _unreadable(file)) from None


def _text_fault(error: Exception) -> str | None:
    """The sentence for a PNG in which Pillow found too much text; None for another error."""
    if "MAX_TEXT" not in str(error):  # Pillow's names for the two limits
        return None
    return (
        f"The image would take too much time or memory: expected at most {MOST_UNPACKED // 2**20} MB in a text or the "
        f"colour profile of a PNG and {PngImagePlugin.MAX_TEXT_MEMORY // 2**20} MB in all texts, please save it "
        "without."
    )


def _unreadable(file: MeteredFile) -> str:
    """Why Pillow did not open the file."""
    file.seek(0)
    head = file.peek(16)[:16]
    for name, (_, accepts) in Image.OPEN.items():
        if name in READABLE_FORMATS and accepts and accepts(head):
            return (
                f"The image is damaged, incomplete or of a rare kind: it begins like a {name} but cannot be read, "
                "please save it again."
            )
    return f"The image is not a picture that can be read: expected one of {', '.join(READABLE_FORMATS)}."


def _check_size(width: int, height: int) -> None:
    short, long = sorted((width, height))
    if short < SMALLEST_SIDE:
        raise ImageError(
            f"The image is too small: expected at least {SMALLEST_SIDE} pixels on each side, got {width}×{height}."
        )
    if width * height > MOST_PIXELS:
        raise ImageError(
            f"The image is too large: expected at most {MOST_PIXELS // 1_000_000} megapixels, got {width}×{height}."
        )
    if long > MOST_ASPECT * short:
        raise ImageError(
            f"The image is too long and narrow: expected at most {MOST_ASPECT}:1, got {width}×{height}, please crop it."
        )


def _decode(picture: Image.Image, name: str) -> Image.Image:
    halve = picture.width * picture.height > FULL_SIZE
    deep = has_16_bits(picture)
    try:
        if halve and picture.draft(None, (picture.width // 2, picture.height // 2)) is not None:
            halve = False  # a JPEG is decoded at half its size in the first place
        picture.load()
        # After load: Pillow turns a TIFF upright while loading it, and removes the tag.
        turn = ORIENTATIONS.get(_orientation(picture))
        opened = to_srgb(picture, halve)
        narrow = narrow_range(picture, deep)
    except TooManyReads:
        raise ImageError(_TOO_MANY_PARTS) from None
    except MemoryError:
        raise
    except Exception as error:  # as in _read_header, damaged data may raise anything
        damaged = "The image is damaged or incomplete: its pixels could not be decoded."
        raise ImageError(_text_fault(error) or damaged) from None
    picture.close()  # frees its pixels before they are copied once more
    if narrow:
        say(
            f"{name}: its 16-bit values lie between {narrow[0]} and {narrow[1]} of {DEEPEST}, so it is nearly of one "
            f"tone: spread them over the whole range before you send it (in a depth map, what is nearest is {DEEPEST})"
        )
    return opened if turn is None else opened.transpose(turn)


def _orientation(picture: Image.Image) -> int:
    try:
        return int(picture.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # broken EXIF data is common and not a reason to refuse the picture
        return 1
