"""Open any picture that a user may send, as plain 8-bit sRGB.

Orientation, colour profile, transparency, bit depth and further frames are all handled here. The rest of the package
only sees upright RGB images.
"""

import io
import pathlib
import warnings

import numpy as np
from PIL import ExifTags, Image, ImageChops, ImageCms, ImageOps, ImageStat, features

# Raster formats only. Pillow would also open EPS (which runs Ghostscript), PSD and dozens of rare formats, and each is
# more code that a file from outside can reach. JPEG includes MPO, the multi-picture JPEG of phones.
READABLE_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF") + (("AVIF",) if features.check("avif") else ())
SMALLEST_SIDE = 16  # pixels; a smaller picture has no structure to follow
MOST_PIXELS = 64_000_000  # 192 MB as RGB, more than any camera in common use
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


class ImageError(ValueError):
    """The picture that was sent cannot be used. The message says why and names no path."""


def open_image(source: pathlib.Path) -> Image.Image:
    """The picture in the file `source`, upright, mode RGB, 8-bit sRGB, transparent parts on white, without metadata.

    Each side has at least 16 pixels, the aspect ratio is at most 4 : 1, and the picture has at most 64 megapixels. The
    size is read from the header, before any pixel is decoded. Of an animation, the first frame is returned. The file is
    closed on return.

    Raises ImageError for anything else. A str is refused without reading it: the server saves uploads, URLs and data
    URLs to a file and passes a Path, but a local path or file:// URL from a client arrives as the bare str.
    """
    if not isinstance(source, pathlib.Path):
        raise ImageError("The image must be an uploaded file, an http(s) URL or a data URL: nothing else is opened.")
    try:
        file = source.open("rb")
    except OSError:
        raise ImageError("The image could not be read: nothing readable arrived, please send it again.") from None
    with file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # warnings about odd metadata would only fill the request's log
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        if not file.peek(1):
            raise ImageError("The image is empty (0 bytes): please send it again.")
        picture = _read_header(file)
        _check_size(*picture.size)
        return _decode(picture)


def white_on_black(control_map: Image.Image) -> Image.Image:
    """A copy of a line map with bright lines on black, as the ControlNets expect it. A dark-on-white map is inverted.

    Lines cover little of a map, so a mean luminance above half means that the background is white.
    """
    mean = ImageStat.Stat(control_map.convert("L")).mean[0]
    return ImageOps.invert(control_map) if mean > 127.5 else control_map.copy()


def _read_header(file: io.BufferedReader) -> Image.Image:
    # For bad files Pillow's plugins raise many exceptions (struct.error, KeyError, …), and their texts name the file.
    try:
        return Image.open(file, formats=READABLE_FORMATS)
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
    try:
        picture.load()
        # After load: Pillow turns a TIFF upright while loading it, and removes the tag.
        turn = ORIENTATIONS.get(_orientation(picture))
        rgb = _on_white(picture)
    except Exception:  # as in _read_header, damaged data may raise anything
        raise ImageError("The image is damaged or incomplete: its pixels could not be decoded.") from None
    rgb = rgb if turn is None else rgb.transpose(turn)
    plain = Image.new("RGB", rgb.size)  # drops info, EXIF and the link to the file
    plain.paste(rgb)
    return plain


def _orientation(picture: Image.Image) -> int:
    try:
        return int(picture.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # broken EXIF data is common and not a reason to refuse the picture
        return 1


def _on_white(picture: Image.Image) -> Image.Image:
    """RGB in sRGB. The profile is applied before the transparency, because the white below it is sRGB white."""
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
    """Greyscale deeper than 8 bits as L, or as LA if one value is declared transparent. Others are returned unchanged.

    Pillow's own conversion clips at 255, which turns a 16-bit picture white.
    """
    if not picture.mode.startswith(("I", "F")):
        return picture
    values = np.asarray(picture)
    if picture.mode != "F" and values.min() >= 0 and values.max() <= 65535:
        grey = ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)
    else:
        grey = _full_range(values)
    result = Image.fromarray(grey)
    key = picture.info.get("transparency")
    if key is not None:
        alpha = np.where(values == key, 0, 255).astype(np.uint8)
        result = Image.merge("LA", (result, Image.fromarray(alpha)))
    result.format = picture.format
    return result


def _full_range(values: np.ndarray) -> np.ndarray:
    """Lowest → 0, highest → 255, because float and 32-bit files do not say which values are black and white."""
    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    values = np.nan_to_num(values.astype(np.float64), nan=low, posinf=high, neginf=low)
    return np.rint((values - low) * (255 / (high - low) if high > low else 0)).astype(np.uint8)


def _true_polarity(picture: Image.Image) -> Image.Image:
    """Pillow assumes that CMYK JPEGs are inverted, like Adobe's. Those without Adobe's marker are not (libjpeg.txt)."""
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
            pass  # the profile is broken or for another colour space, but the pixels are still good
    return picture.convert("RGB")
