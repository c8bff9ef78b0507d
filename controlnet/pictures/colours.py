"""Turn decoded pixels of any mode into 8-bit sRGB, a strip at a time, and lay what is transparent on a colour.

The copies that a conversion needs are as small as a strip, so a picture of 64 megapixels needs little more memory than
its own pixels.
"""

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageChops, ImageCms

from controlnet.conditioners import Colour

STRIP = 256
"""Rows that are converted together. Even, so halving a strip merges the same rows as halving the picture."""

DEEPEST = 65535
"""White in a picture of 16 bits per channel."""

Step = Callable[[Image.Image], Image.Image]


def to_srgb(picture: Image.Image, halve: bool = False) -> Image.Image:
    """A loaded picture in sRGB: RGB, or RGBA if a part is transparent; without info or a link to its file.

    `halve` averages each 2×2 pixels, in the colours of the result. May raise any exception for damaged data.
    """
    step = 2 if halve else 1
    plain = Image.new(
        "RGBA" if picture.has_transparency_data else "RGB", (-(-picture.width // step), -(-picture.height // step))
    )
    converter = Converter.of(picture)
    for top, strip in _strips(picture):
        converted = converter.convert(strip)
        plain.paste(converted.reduce(step) if halve else converted, (0, top // step))
    opaque = plain.mode == "RGBA" and plain.getchannel("A").getextrema() == (255, 255)
    return plain.convert("RGB") if opaque else plain


def lay_on(picture: Image.Image, colour: Colour, mixed: bool = True) -> Image.Image:
    """An RGB or RGBA picture as RGB, its transparent parts on that colour. An RGB one is returned as it is.

    What is transparent in part is `mixed` with the colour, or else becomes the nearer of the two.
    """
    if picture.mode == "RGB":
        return picture
    laid = Image.new("RGB", picture.size, colour)
    for top, strip in _strips(picture):
        alpha = strip.getchannel("A")
        laid.paste(strip.convert("RGB"), (0, top), alpha if mixed else alpha.point([0] * 128 + [255] * 128))
    return laid


def _strips(picture: Image.Image) -> Iterator[tuple[int, Image.Image]]:
    """The top row and a copy of each strip, from the top down."""
    for top in range(0, picture.height, STRIP):
        yield top, picture.crop((0, top, picture.width, min(top + STRIP, picture.height)))


@dataclass(frozen=True)
class Converter:
    """How the strips of one picture are converted: what the whole picture decides is in the fields."""

    inverted: bool
    """Whether its CMYK values count from the other end."""
    levels: tuple[float, float] | None
    """The values that become black and white in a deep greyscale picture. None: 0 and 65535, or it is not deep."""
    profile: bytes | None
    """Its colour profile."""
    transforms: dict[str, Step | None]
    """The profile's transforms to sRGB by mode, made when they are needed. None if there is none for that mode."""

    @classmethod
    def of(cls, picture: Image.Image) -> "Converter":
        """The converter for all strips of `picture`."""
        # Pillow assumes that CMYK JPEGs are inverted, like Adobe's. Those without Adobe's marker are not (libjpeg.txt).
        inverted = picture.mode == "CMYK" and picture.format in ("JPEG", "MPO") and "adobe" not in picture.info
        return cls(inverted, _levels(picture), picture.info.get("icc_profile"), {})

    def convert(self, strip: Image.Image) -> Image.Image:
        """RGB in sRGB, or RGBA if the mode of the strip or its info has a transparency."""
        strip = self._eight_bits(strip)
        strip = ImageChops.invert(strip) if self.inverted else strip
        if not strip.has_transparency_data:
            return self._to_srgb(strip)
        rgba = strip.convert("RGBA")
        colours = strip.convert("L") if strip.mode in ("1", "L", "LA") else rgba.convert("RGB")
        converted = self._to_srgb(colours)
        converted.putalpha(rgba.getchannel("A"))
        return converted

    def _eight_bits(self, strip: Image.Image) -> Image.Image:
        """Greyscale deeper than 8 bits as L, or as LA if one value is declared transparent. Others are unchanged.

        Pillow's own conversion clips at 255, which turns a 16-bit picture white.
        """
        if not _is_deep(strip):
            return strip
        values = np.asarray(strip)
        if self.levels is None:
            grey = ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)
        else:
            grey = _stretched(values, *self.levels)
        result = Image.fromarray(grey)
        key = strip.info.get("transparency")
        if key is None:
            return result
        alpha = np.where(values == key, 0, 255).astype(np.uint8)
        return Image.merge("LA", (result, Image.fromarray(alpha)))

    def _to_srgb(self, strip: Image.Image) -> Image.Image:
        strip = strip if strip.mode in ("L", "RGB", "CMYK", "LAB") else strip.convert("RGB")
        if strip.mode not in self.transforms:
            self.transforms[strip.mode] = _transform(self.profile, strip.mode)
        transform = self.transforms[strip.mode]
        return strip.convert("RGB") if transform is None else transform(strip)


def _transform(profile: bytes | None, mode: str) -> Step | None:
    """What takes pictures of that mode from the profile to sRGB."""
    if not profile or mode == "LAB":
        return None
    try:
        embedded = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        return ImageCms.buildTransform(embedded, ImageCms.createProfile("sRGB"), mode, "RGB").apply
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None  # the profile is broken or for another colour space, but the pixels are still good


def _is_deep(picture: Image.Image) -> bool:
    """Whether it is greyscale of more than 8 bits."""
    return picture.mode.startswith(("I", "F"))


def has_16_bits(picture: Image.Image) -> bool:
    """Whether a picture that is not loaded yet has 16 bits per channel in its file. Pillow reduces colours to 8."""
    return any(";16" in str(tile.args) for tile in getattr(picture, "tile", ()))


def narrow_range(picture: Image.Image, has_16_bits: bool) -> tuple[int, int] | None:
    """The lowest and highest value of a loaded picture of 16 bits, if they lie within a sixteenth of the range.

    None if they do not, or if all values are equal.
    """
    if _is_deep(picture):
        if _levels(picture) is not None:
            return None
        low, high = _extremes(picture)
    elif has_16_bits:
        low, high = (257 * value for value in _extremes(picture))
    else:
        return None
    return (int(low), int(high)) if 0 < high - low < DEEPEST / 16 else None


def _levels(picture: Image.Image) -> tuple[float, float] | None:
    """The lowest and the highest value, because float and 32-bit files do not say which values are black and white.

    None if all are integers of 16 bits.
    """
    if not _is_deep(picture):
        return None
    low, high = _extremes(picture)
    if picture.mode != "F" and low >= 0 and high <= DEEPEST:
        return None
    return (low, high) if low <= high else (0.0, 0.0)


def _extremes(picture: Image.Image) -> tuple[float, float]:
    """The lowest and the highest finite value of a picture's colours; ∞ and −∞ if there is none."""
    low, high = np.inf, -np.inf
    for _, strip in _strips(picture):
        values = np.asarray(strip.convert("RGB") if strip.mode == "RGBA" else strip)
        finite = values[np.isfinite(values)] if picture.mode == "F" else values
        if finite.size:
            low, high = min(low, float(finite.min())), max(high, float(finite.max()))
    return low, high


def _stretched(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Lowest → 0, highest → 255; NaN is black and infinity white or black."""
    values = np.nan_to_num(values.astype(np.float64), nan=low, posinf=high, neginf=low)
    return np.rint((values - low) * (255 / (high - low) if high > low else 0)).astype(np.uint8)
