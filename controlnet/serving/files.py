"""The files of a request in Cog's server: what earlier ones left is removed at its start, and its own are returned."""

import errno
import os
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path

import cog
from PIL import Image

from controlnet import temporary
from controlnet.pictures.output import encode_pictures

COGLET = Path("/tmp/coglet/predictions")
"""Where Cog's server makes three folders for each prediction, whatever TMPDIR says, and leaves them. One for all."""
_YOUNG = 600
"""Seconds for which these folders are left alone: they may be about to be used."""
_AT_ONCE = 500
"""How many of them one request removes at most. It takes about 10 ms."""


class OutputError(RuntimeError):
    """The pictures were generated but could not be written."""


def sweep(keep: Iterable[Path] = ()) -> None:
    """Remove the files that earlier requests left on disk. Called at the start of each request; `keep` are its inputs.

    The server removes the files that it returned, and a failed write cleans up, but both can be cancelled. Folders of
    other processes that have ended, and the empty ones that Cog's server leaves, are removed too.
    """
    temporary.sweep(keep)
    for folder in islice(_empty(COGLET, time.time() - _YOUNG), _AT_ONCE):
        with suppress(OSError):  # rmdir removes no file: what is not empty after all stays
            for inner in folder.iterdir():
                inner.rmdir()
            folder.rmdir()


def write_pictures(
    maps: Sequence[Image.Image],
    pictures: Sequence[Image.Image],
    output_format: str,
    output_quality: int,
    poses: str | None = None,
) -> list[cog.Path]:
    """Write the files of encode_pictures() into a new temporary folder. Returns them in that order.

    Raises OutputError on a full disk or any other write error, and then leaves no file behind.
    """
    encoded = encode_pictures(maps, pictures, output_format, output_quality, poses)
    folder = None
    try:
        folder = Path(tempfile.mkdtemp(prefix="request-", dir=temporary.home()))
        files = [folder / name for name in encoded]
        for file, data in zip(files, encoded.values(), strict=True):
            file.write_bytes(data)
    except BaseException as error:  # cancellations too: files that will never be read must not fill the disk
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, OSError):
            raise OutputError(_reason(error)) from None
        raise
    return [cog.Path(file) for file in files]


def _empty(predictions: Path, before: float) -> Iterator[Path]:
    """Folders of predictions, untouched since `before`.

    They do not say which server made them. A prediction that still runs does not miss them.
    """
    with suppress(OSError), os.scandir(predictions) as entries:
        for entry in entries:
            with suppress(OSError):
                if entry.is_dir(follow_symlinks=False) and entry.stat(follow_symlinks=False).st_mtime < before:
                    yield Path(entry.path)


def _reason(error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "The pictures could not be written because the disk is full: free some space and try again."
    return f"The pictures could not be written ({error.strerror or 'unknown reason'})."
