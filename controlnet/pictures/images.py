"""Open any picture that a person may send, as plain 8-bit sRGB.

What a file can carry beside its pixels (orientation, colour profile, transparency, bit depth, more frames) is resolved
here, so that the rest of the package only ever sees upright RGB images.
"""

import io
import pathlib
import warnings

import numpy as np
from PIL import ExifTags, Image, ImageChops, ImageCms, ImageOps, ImageStat, features

# Raster formats only: Pillow would also open EPS (which runs Ghostscript), PSD and dozens of rare ones, each more code
# within reach of a file from outside. JPEG includes MPO, the multi-picture JPEG of phones, which Pillow opens as JPEG.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF") + (("AVIF",) if features.check("avif") else ())
SMALLEST_SIDE = 16  # pixels; below this there is no structure to follow
MOST_PIXELS = 64_000_000  # 192 MB as RGB, above any camera in common use
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
"""EXIF orientation (EXIF 2.3, tag 0x0112) → what makes the picture upright; 1 and unknown values need nothing."""


class ImageError(ValueError):
    """The picture that was sent cannot be used; the message says why, without naming a path."""


def open_image(source: pathlib.Path) -> Image.Image:
    """The picture in the file `source`, upright, mode RGB, 8-bit sRGB, transparent parts on white, without metadata.

    Its sides are at least 16 pixels, at most 4 : 1, together at most 64 megapixels; size is checked from the header,
    before any pixel is decoded. Of an animation it is the first frame. The file is closed on return.

    Raises ImageError for whatever else comes. A str is refused unread: the server saves uploads, URLs and data URLs
    to a file and hands over a Path, while a local path or file:// URL typed by a client arrives as the bare str.
    """
    if not isinstance(source, pathlib.Path):
        raise ImageError("The image must be an uploaded file, an http(s) URL or a data URL, nothing else is opened.")
    try:
        file = source.open("rb")
    except OSError:
        raise ImageError("The image could not be read: nothing readable arrived, please send it again.") from None
    with file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # remarks on odd metadata: noise in the request's log
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        if not file.peek(1):
            raise ImageError("The image is empty (0 bytes): please send it again.")
        picture = _read_header(file)
        _check_size(*picture.size)
        return _decode(picture)


def white_on_black(control_map: Image.Image) -> Image.Image:
    """A copy of a line map as the ControlNets know it, bright lines on black: a dark-on-white one is inverted.

    Lines cover little of a map, so a mean luminance above half means that the paper is white.
    """
    mean = ImageStat.Stat(control_map.convert("L")).mean[0]
    return ImageOps.invert(control_map) if mean > 127.5 else control_map.copy()


def _read_header(file: io.BufferedReader) -> Image.Image:
    # Pillow's plugins let whatever they stumble on escape (struct.error, KeyError, …), and its texts name the file.
    try:
        return Image.open(file, formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise ImageError(
            f"The image is too large: at most {MOST_PIXELS // 1_000_000} megapixels are accepted."
        ) from None
    except Exception:
        raise ImageError(
            f"The image is not a picture that can be read: expected one of {', '.join(FORMATS)}."
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
    try:
        picture.load()
        # After load: Pillow turns TIFF upright itself while loading, and takes the tag away.
        turn = ORIENTATIONS.get(_orientation(picture))
        rgb = _on_white(picture)
    except Exception:  # as in _read_header: damaged data may raise anything
        raise ImageError("The image is damaged or incomplete: its pixels could not be decoded.") from None
    rgb = rgb if turn is None else rgb.transpose(turn)
    plain = Image.new("RGB", rgb.size)  # leaves behind info, EXIF and the link to the file
    plain.paste(rgb)
    return plain


def _orientation(picture: Image.Image) -> int:
    try:
        return int(picture.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # broken EXIF data is common and no reason to refuse the picture
        return 1


def _on_white(picture: Image.Image) -> Image.Image:
    """RGB in sRGB; the profile is applied before transparency is, since white is white in sRGB."""
    profile = picture.info.get("icc_profile")
    picture = _true_polarity(_eight_bits(picture))
    if not picture.has_transparency_data:
        return _to_srgb(picture, profile)
    rgba = picture.convert("RGBA")
    colours = picture.convert("L") if picture.mode in ("1", "L", "LA") else rgba.convert("RGB")
    white = Image.new("RGB", picture.size, "white")
    white.paste(_to_srgb(colours, profile), mask=rgba.getchannel("A"))
    return white


def _eight_bits(picture: Image.Image) -> Image.Image:
    """Greyscale deeper than 8 bits as L (LA where one value is declared transparent); others as they are.

    Pillow's own conversion clips at 255, which turns a 16-bit picture white.
    """
    if not picture.mode.startswith(("I", "F")):
        return picture
    values = np.asarray(picture)
    if picture.mode != "F" and values.min() >= 0 and values.max() <= 65535:
        grey = ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)
    else:
        grey = _stretch(values)
    result = Image.fromarray(grey)
    key = picture.info.get("transparency")
    if key is not None:
        alpha = np.where(values == key, 0, 255).astype(np.uint8)
        result = Image.merge("LA", (result, Image.fromarray(alpha)))
    result.format = picture.format
    return result


def _stretch(values: np.ndarray) -> np.ndarray:
    """Lowest → 0, highest → 255: float and 32-bit files do not say what is black and what is white."""
    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    values = np.nan_to_num(values.astype(np.float64), nan=low, posinf=high, neginf=low)
    return np.rint((values - low) * (255 / (high - low) if high > low else 0)).astype(np.uint8)


def _true_polarity(picture: Image.Image) -> Image.Image:
    """Pillow reads every CMYK JPEG as Adobe writes it, inverted; one without Adobe's marker is not (libjpeg.txt)."""
    if picture.mode == "CMYK" and picture.format in ("JPEG", "MPO") and "adobe" not in picture.info:
        return ImageChops.invert(picture)
    return picture


def _to_srgb(picture: Image.Image, profile: bytes | None) -> Image.Image:
    picture = picture if picture.mode in ("L", "RGB", "CMYK", "LAB") else picture.convert("RGB")
    if profile and picture.mode != "LAB":
        try:
            embedded = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            transform = ImageCms.buildTransform(embedded, ImageCms.createProfile("sRGB"), picture.mode, "RGB")
            return transform.apply(picture)
        except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
            pass  # a broken profile, or one for another kind of picture: the pixels are still good
    return picture.convert("RGB")
