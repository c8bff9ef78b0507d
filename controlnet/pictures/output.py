"""Encode pictures and write them where the server picks them up."""

import errno
import io
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cog
from PIL import ExifTags, Image
from PIL.PngImagePlugin import PngInfo

PREFIX = "controlnet-"
PARAMETERS = "parameters"
"""Key of a picture's info, a dict of plain values, under which it says what it was made with; the file says it too."""


class OutputError(RuntimeError):
    """The pictures were made but could not be written."""


@dataclass(frozen=True)
class _Format:
    pillow: str
    map_options: Callable[[int], dict[str, Any]]
    """Quality 0–100 → encoder options for a control map: lossless where the format can, to be sent back in unharmed."""
    picture_options: Callable[[int], dict[str, Any]]
    """Quality 0–100 → encoder options for a picture."""


# Of a 512² photograph, PNG at level 1 takes 20 ms where the default takes 68, for a file 10% larger; lossless WebP at
# method 1 takes 35 ms where the default takes 120, for 6% (one core of a server).
_PNG = {"compress_level": 1}
_WEBP_MAP = {"lossless": True, "method": 1, "quality": 20}
FORMATS = {
    "webp": _Format("WEBP", lambda quality: _WEBP_MAP, lambda quality: {"quality": quality}),
    "jpg": _Format("JPEG", lambda quality: {"quality": quality}, lambda quality: {"quality": quality}),
    "png": _Format("PNG", lambda quality: _PNG, lambda quality: _PNG),
}
"""Output formats by file name ending, equal to the choices of output_format."""

_homes: dict[int, Path] = {}
"""Process id → the one folder below which that process writes everything."""


def write_pictures(
    maps: Sequence[Image.Image],
    pictures: Sequence[Image.Image],
    output_format: str,
    output_quality: int,
    poses: str | None = None,
) -> list[cog.Path]:
    """Write control maps, then poses, then pictures, into one fresh temporary folder; returns the files in that order.

    They are named control_map.png (control_map_0.png, … where there are several), poses.json (the text `poses`, where
    there is one) and picture_0.png, …; the same pixels
    and parameters give the same bytes. A picture's parameters are written as JSON: into a PNG's text "parameters", into
    the description in the EXIF data of the others; nothing else of its info is. `output_format` is a key of FORMATS;
    `output_quality` is 0–100, without effect where lossless. Raises OutputError on a full disk or any other write
    error, and then leaves nothing behind.
    """
    encoder = FORMATS[output_format]
    of_maps = ["control_map"] if len(maps) == 1 else [f"control_map_{i}" for i in range(len(maps))]
    encoded = {
        f"{name}.{output_format}": _encode(image, encoder.pillow, encoder.map_options(output_quality))
        for name, image in zip(of_maps, maps, strict=True)
    }
    encoded |= {} if poses is None else {"poses.json": poses.encode()}
    encoded |= {
        f"picture_{i}.{output_format}": _encode(image, encoder.pillow, encoder.picture_options(output_quality))
        for i, image in enumerate(pictures)
    }
    folder = None
    try:
        folder = Path(tempfile.mkdtemp(prefix="request-", dir=_home()))
        files = [folder / name for name in encoded]
        for file, data in zip(files, encoded.values(), strict=True):
            file.write_bytes(data)
    except BaseException as error:  # a cancellation as well: files that nobody will read are not left to fill the disk
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, OSError):
            raise OutputError(_reason(error)) from None
        raise
    return [cog.Path(file) for file in files]


def sweep() -> None:
    """Remove what earlier requests of this process left on disk; called at the start of each.

    The server removes the files that it returned and a failed write cleans up after itself, but a cancellation can land
    between any two instructions, the cleaning up included. Since every folder is made inside one that is known
    beforehand, emptying that one misses nothing. Only safe with one request at a time, as here.
    """
    home = _homes.get(os.getpid())
    if home is not None and home.is_dir():
        for folder in home.iterdir():
            shutil.rmtree(folder, ignore_errors=True)  # what resists costs disk space, not this request


def _home() -> Path:
    # Known before anything is written below it; a cancellation in here can leave behind one empty folder at the most.
    process = os.getpid()
    if process not in _homes:
        _homes[process] = Path(tempfile.mkdtemp(prefix=PREFIX))
    _homes[process].mkdir(mode=0o700, exist_ok=True)  # a cleaner of temporary files may have taken it since
    return _homes[process]


def _encode(image: Image.Image, pillow_format: str, options: dict[str, Any]) -> bytes:
    plain = image.convert("RGB")  # a copy; Pillow would write profile and transparency that it finds in info
    plain.info.clear()
    buffer = io.BytesIO()
    plain.save(buffer, pillow_format, **options, **_metadata(image.info.get(PARAMETERS), pillow_format))
    return buffer.getvalue()


def _metadata(parameters: dict[str, Any] | None, pillow_format: str) -> dict[str, Any]:
    """Encoder options that write the parameters into the file."""
    if parameters is None:
        return {}
    text = json.dumps(parameters)  # ASCII, as EXIF wants it
    if pillow_format == "PNG":
        chunk = PngInfo()
        chunk.add_text(PARAMETERS, text)
        return {"pnginfo": chunk}
    exif = Image.Exif()
    exif[ExifTags.Base.ImageDescription] = text
    return {"exif": exif}


def _reason(error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "The pictures could not be written because the disk is full: free some space and try again."
    return f"The pictures could not be written ({error.strerror or 'unknown reason'})."
