"""Open any picture that a user may send, as plain 8-bit sRGB.

Orientation, colour profile, transparency, bit depth and further frames are all handled here. The rest of the package
only sees upright RGB images.
"""

import pathlib
import warnings

from PIL import ExifTags, Image, ImageOps, ImageStat, features

from controlnet.pictures.colours import to_rgb
from controlnet.pictures.costs import MeteredFile, TooManyReads, too_costly, too_costly_to_open

# Raster formats only. Pillow would also open EPS (which runs Ghostscript), PSD and dozens of rare formats, and each is
# more code that a file from outside can reach. JPEG includes MPO, the multi-picture JPEG of phones.
READABLE_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF") + (("AVIF",) if features.check("avif") else ())
SMALLEST_SIDE = 16  # pixels; a smaller picture has no structure to follow
MOST_PIXELS = 64_000_000  # 192 MB as RGB, more than any camera in common use
FULL_SIZE = 25_000_000  # pixels; a picture with more is halved on each side when it is opened
MOST_ASPECT = 4  # long side : short side; beyond it Stable Diffusion repeats itself

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


def open_image(source: pathlib.Path) -> Image.Image:
    """The picture in the file `source`, upright, mode RGB, 8-bit sRGB, transparent parts on white, without metadata.

    Each side has at least 16 pixels, the aspect ratio is at most 4 : 1, and the file has at most 64 megapixels. One
    with more than 25 is halved on each side. The size, and what limits the time (costs.py), are read from the header,
    before any pixel is decoded. Of an animation, the first frame is returned. The file is closed on return.

    Raises ImageError for anything else. A str is refused without reading it: the server saves uploads, URLs and data
    URLs to a file and passes a Path, but a local path or file:// URL from a client arrives as the bare str.
    """
    if not isinstance(source, pathlib.Path):
        raise ImageError("The image must be an uploaded file, an http(s) URL or a data URL: nothing else is opened.")
    try:
        file = MeteredFile(source)
    except OSError:
        raise ImageError("The image could not be read: nothing readable arrived, please send it again.") from None
    with file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # warnings about odd metadata would only fill the request's log
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        if not file.peek(1):
            raise ImageError("The image is empty (0 bytes): please send it again.")
        picture = _read_header(file)
        _check_size(*picture.size)
        if fault := too_costly(file, picture.format, picture.width * picture.height):
            raise ImageError(f"The image would take too much time or memory: {fault}.")
        return _decode(picture)


def white_on_black(control_map: Image.Image) -> Image.Image:
    """A copy of a line map with bright lines on black, as the ControlNets expect it. A dark-on-white map is inverted.

    Lines cover little of a map, so a mean luminance above half means that the background is white.
    """
    mean = ImageStat.Stat(control_map.convert("L")).mean[0]
    return ImageOps.invert(control_map) if mean > 127.5 else control_map.copy()


def _read_header(file: MeteredFile) -> Image.Image:
    # For bad files Pillow's plugins raise many exceptions (struct.error, KeyError, …), and their texts name the file.
    if fault := too_costly_to_open(file):
        raise ImageError(f"The image would take too much time or memory: {fault}.")
    try:
        return Image.open(file, formats=READABLE_FORMATS)
    except TooManyReads:
        raise ImageError(_TOO_MANY_PARTS) from None
    except MemoryError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise ImageError(
            f"The image is too large: at most {MOST_PIXELS // 1_000_000} megapixels are accepted."
        ) from None
    except Exception:
        raise ImageError(
            f"The image is not a picture that can be read: expected one of {', '.join(READABLE_FORMATS)}."
        ) from None


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


def _decode(picture: Image.Image) -> Image.Image:
    halve = picture.width * picture.height > FULL_SIZE
    try:
        if halve and picture.draft(None, (picture.width // 2, picture.height // 2)) is not None:
            halve = False  # a JPEG is decoded at half its size in the first place
        picture.load()
        # After load: Pillow turns a TIFF upright while loading it, and removes the tag.
        turn = ORIENTATIONS.get(_orientation(picture))
        rgb = to_rgb(picture, halve)
    except TooManyReads:
        raise ImageError(_TOO_MANY_PARTS) from None
    except MemoryError:
        raise
    except Exception:  # as in _read_header, damaged data may raise anything
        raise ImageError("The image is damaged or incomplete: its pixels could not be decoded.") from None
    picture.close()  # frees its pixels before they are copied once more
    return rgb if turn is None else rgb.transpose(turn)


def _orientation(picture: Image.Image) -> int:
    try:
        return int(picture.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # broken EXIF data is common and not a reason to refuse the picture
        return 1
