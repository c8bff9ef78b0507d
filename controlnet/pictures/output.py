"""The content of output files: control maps, poses and pictures."""

import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import ExifTags, Image
from PIL.PngImagePlugin import PngInfo

PARAMETERS = "parameters"
"""Key in a picture's info. Its value, a dict of plain values, says how the picture was made. The file gets it too."""
MOST_EXIF_TEXT = 64_000
"""Bytes of the parameters in a JPEG: its EXIF data have at most 65,533 with all headers."""
SHORTENED = "shortened"
"""Key in the parameters of a file whose prompts are cut off: the names of those."""


@dataclass(frozen=True)
class _Format:
    pillow: str
    map_options: Callable[[int], dict[str, Any]]
    """Quality 0–100 → encoder options for a control map. Lossless if possible, so it can be sent back unchanged."""
    picture_options: Callable[[int], dict[str, Any]]
    """Quality 0–100 → encoder options for a picture."""


# For a 512² photograph on one core of a server, PNG at level 1 takes 20 ms instead of 68 ms by default, and the file is
# 10% larger. Lossless WebP with method 1 takes 35 ms instead of 120 ms, and the file is 6% larger.
_PNG = {"compress_level": 1}
_WEBP_MAP = {"lossless": True, "method": 1, "quality": 20}
# For a picture at quality 80, method 2 takes 9 ms instead of 21 ms by default. The file is 4% larger.
_WEBP = {"method": 2}
OUTPUT_FORMATS = {
    "webp": _Format("WEBP", lambda quality: _WEBP_MAP, lambda quality: _WEBP | {"quality": quality}),
    "jpg": _Format("JPEG", lambda quality: {"quality": quality}, lambda quality: {"quality": quality}),
    "png": _Format("PNG", lambda quality: _PNG, lambda quality: _PNG),
}
"""Output formats by file extension. They are the choices of the input output_format."""


def encode_pictures(
    maps: Sequence[Image.Image],
    pictures: Sequence[Image.Image],
    output_format: str,
    output_quality: int,
    poses: str | None = None,
) -> dict[str, bytes]:
    """The files of control maps, then poses, then pictures, in that order: the content of each by its name.

    Their names are control_map.png (control_map_0.png, … if there are several), poses.json (with the text `poses`,
    unless it is None) and picture_0.png, …. The same pixels and parameters give the same bytes. A picture's parameters
    are written as JSON, into the text "parameters" of a PNG or into the EXIF description of the other formats. The rest
    of its info is not written. `output_format` is a key of OUTPUT_FORMATS. `output_quality` is 0–100 and has no effect
    on lossless formats.
    """
    encoder = OUTPUT_FORMATS[output_format]
    of_maps = ["control_map"] if len(maps) == 1 else [f"control_map_{i}" for i in range(len(maps))]
    encoded = {
        f"{name}.{output_format}": _encode(image, encoder.pillow, encoder.map_options(output_quality))
        for name, image in zip(of_maps, maps, strict=True)
    }
    encoded |= {} if poses is None else {"poses.json": poses.encode()}
    return encoded | {
        f"picture_{i}.{output_format}": _encode(image, encoder.pillow, encoder.picture_options(output_quality))
        for i, image in enumerate(pictures)
    }


def _encode(image: Image.Image, pillow_format: str, options: dict[str, Any]) -> bytes:
    plain = image.convert("RGB")  # a copy
    # Pillow would write a profile and a transparency that it finds in info.
    plain.info.clear()
    buffer = io.BytesIO()
    plain.save(buffer, pillow_format, **options, **_metadata(image.info.get(PARAMETERS), pillow_format))
    return buffer.getvalue()


def _metadata(parameters: dict[str, Any] | None, pillow_format: str) -> dict[str, Any]:
    """The encoder options that write the parameters into the file."""
    if parameters is None:
        return {}
    text = json.dumps(parameters)  # ASCII, as EXIF requires
    if pillow_format == "JPEG" and len(text) > MOST_EXIF_TEXT:
        text = json.dumps(_shortened(parameters))
    if pillow_format == "PNG":
        chunk = PngInfo()
        chunk.add_text(PARAMETERS, text)
        return {"pnginfo": chunk}
    exif = Image.Exif()
    exif[ExifTags.Base.ImageDescription] = text
    return {"exif": exif}


def _shortened(parameters: dict[str, Any]) -> dict[str, Any]:
    """The parameters with their longest texts cut off so they fit into a JPEG, and the names of those texts."""
    texts = sorted(name for name, value in parameters.items() if isinstance(value, str))
    rest = {name: value for name, value in parameters.items() if name not in texts} | {SHORTENED: texts}
    room = (MOST_EXIF_TEXT - len(json.dumps(rest | dict.fromkeys(texts, "")))) // max(1, len(texts))
    cut = [name for name in texts if len(json.dumps(parameters[name])) > room]
    # A character is written as at most 12 (two \\uxxxx).
    short = {name: parameters[name][: room // 12] for name in cut}
    return parameters | short | {SHORTENED: cut}
