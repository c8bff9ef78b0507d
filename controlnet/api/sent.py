"""Pictures that a program sends, as the files that a request has."""

import base64
import os
import re
from pathlib import Path
from typing import Any

import cog
import numpy as np
from PIL import Image

from controlnet.request.inputs import HALVED, HALVES, InputError
from controlnet.temporary import MOST_BYTES
from controlnet.transient import Transient
from controlnet.weights.lora_files import MOST_BYTES as MOST_BYTES_OF_LORA
from controlnet.weights.lora_files import shown

LoraWeights = str | os.PathLike[str]
"""A text as lora_weights takes it, or a path object."""
Picture = Image.Image | np.ndarray | bytes | str | os.PathLike[str]
"""A PIL picture, a NumPy array (uint8 or bool; H×W, H×W×3 or H×W×4), the content of a file, a path or a URL."""
EXPECTED = "expected a PIL picture, a NumPy array, the content of a file, a path, or an http(s) or data URL"


LONGEST_NAME = 255
"""Characters that Linux takes in the name of a file. A longer text is hardly meant as a path."""
FETCHED = re.compile(r"(https?|data):", re.IGNORECASE)
"""How the URLs begin that are fetched here."""


class NotFetched(InputError, Transient):
    """A picture could not be fetched from its URL. Another time it may be there."""


IN_PNG = {"1", "L", "LA", "I;16", "P", "RGB", "RGBA"}
"""Modes of PIL pictures that a PNG keeps. The others are written as TIFF."""


def as_file(name: str, picture: Any, folder: Path) -> Path:
    """The file of the picture that is sent for the input `name`; written into `folder` unless `picture` is a path.

    Raises InputError, which names the input, for what is no picture or cannot be read.
    """
    if isinstance(picture, Path):
        return _existing(name, picture)
    if isinstance(picture, str) and HALVES.search(picture):
        raise InputError(f"{name}: {EXPECTED}; got {HALVED}.")
    if isinstance(picture, str) and FETCHED.match(picture):
        return _written(folder / name, _fetched(name, picture))
    if isinstance(picture, str | os.PathLike):
        return _existing(name, Path(os.path.expanduser(os.fsdecode(picture))))
    if isinstance(picture, bytes):
        return _written(folder / name, picture)
    if isinstance(picture, np.ndarray):
        picture = _from_array(name, picture)
    if not isinstance(picture, Image.Image):
        raise InputError(f"{name}: {EXPECTED}; got {'nothing' if picture is None else f'a {type(picture).__name__}'}.")
    return _saved(name, picture, folder)


def lora_as_text(name: str, lora: Any) -> Any:
    """What the input `name` takes: a data: URI of the file if `lora` is a path object. A text is left as it is.

    Raises InputError if the file is not there, and for a text that is the path of a file.
    """
    if isinstance(lora, str) and lora.lower().endswith(".safetensors") and os.path.isfile(os.path.expanduser(lora)):
        raise InputError(
            f"{name}: a text is an address, and {shown(lora)} is a file here: pass pathlib.Path({shown(lora)}), or its "
            "content as a data: URI."
        )
    if not isinstance(lora, os.PathLike):
        return lora
    expected = "expected the path of a .safetensors file"
    content = _existing(name, Path(lora), expected, MOST_BYTES_OF_LORA).read_bytes()
    return f"data:;base64,{base64.b64encode(content).decode()}"


def _existing(name: str, path: Path, expected: str = EXPECTED, most: int = MOST_BYTES) -> Path:
    """The path, if it is one of a file of at most `most` bytes."""
    try:
        if path.is_file():
            if path.stat().st_size > most:
                raise InputError(f"{name}: expected a file of at most {most // 2**20} MB; {str(path)!r} is larger.")
            return path
        state = "a folder" if path.is_dir() else "no file" if path.exists() else "not there"
    except OSError as error:  # a part of it is too long, or in a folder that is closed to this process
        state = f"no path that can be used ({(error.strerror or 'unknown reason').lower()})"
    shown, hint = repr(str(path)), ""
    if len(shown) > LONGEST_NAME:  # it may be megabytes
        shown, hint = f"{str(path)[:40]!r}…", " (if it is base64, put data:;base64, before it)"
    raise InputError(f"{name}: {expected}; {shown} is {state}{hint}.")


def _fetched(name: str, url: str) -> bytes:
    """What a URL has, by the function with which Cog's server fetches it."""
    try:
        with cog.File.validate(url) as file:
            content = file.read(MOST_BYTES + 1)
    except Exception as error:  # of urllib, requests and urllib3
        wrong = f"({type(error).__name__}): please check it and send it again."
        if url.lower().startswith("data:"):
            raise InputError(f"{name}: the data URL could not be decoded {wrong}") from None
        raise NotFetched(f"{name}: the URL could not be fetched {wrong}") from None
    if len(content) > MOST_BYTES:
        raise InputError(f"{name}: expected a file of at most {MOST_BYTES // 2**20} MB; the URL has a larger one.")
    return content


def _from_array(name: str, array: np.ndarray) -> Image.Image:
    grey, coloured = array.ndim == 2, array.ndim == 3 and array.shape[2] in (3, 4)
    if array.dtype not in (np.uint8, np.bool_) or not (grey or coloured) or not array.size:
        raise InputError(
            f"{name}: expected an array of uint8 or bool and of shape H×W, H×W×3 or H×W×4; got {array.dtype} of shape "
            f"{'×'.join(map(str, array.shape))}. Numbers from 0 to 1 become uint8 with (255 * array).astype('uint8')."
        )
    return Image.fromarray(array * np.uint8(255) if array.dtype == np.bool_ else np.ascontiguousarray(array))


def _saved(name: str, picture: Image.Image, folder: Path) -> Path:
    """Written without loss, with the orientation and the colour profile that it has."""
    file = folder / name
    try:
        if picture.mode in IN_PNG:
            picture.save(file, "PNG", compress_level=1, exif=picture.getexif())
        else:
            picture.save(file, "TIFF")
    except MemoryError:
        raise
    except Exception:  # Pillow raises many for a file that is damaged, which it reads only now, and for odd modes
        raise InputError(f"{name}: the PIL picture (mode {picture.mode}) could not be read.") from None
    return file


def _written(file: Path, content: bytes) -> Path:
    file.write_bytes(content)
    return file
