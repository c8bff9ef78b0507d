"""The files of a prediction, written to a folder."""

import os
import re
from collections.abc import Sequence
from pathlib import Path

File = tuple[bytes, str]
"""A file's content and its ending, such as ".webp"."""
POSES = ".json"
"""The ending of the file that has poses. The others are pictures."""


class FolderError(RuntimeError):
    """Files cannot be written where they should go. The message is for the user."""


def check_folder(folder: Path) -> None:
    """Raise FolderError if no file can be written into `folder`, which may have to be made first. Makes nothing."""
    place = folder.absolute()
    while not os.path.exists(place):
        place = place.parent
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        state = "closed to you" if place.is_dir() else "not a folder"
        raise FolderError(f"Cannot write to {folder}: {place} is {state}.")


def write_files(files: Sequence[File], folder: Path) -> list[Path]:
    """Write the files of one prediction into `folder`, which is made if it is not there. Raises FolderError.

    They are called 0001.webp, or 0001-1.webp, 0001-2.webp if there are several pictures, and 0001-poses.json. The
    number is the highest number in the folder plus one. An existing file is never overwritten.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        used = (re.match(r"(\d+)[-.]", path.name) for path in folder.iterdir())
        number = 1 + max((int(match[1]) for match in used if match), default=0)
        paths = [folder / name for name in _names(number, [ending for _, ending in files])]
        for path, (content, _) in zip(paths, files, strict=True):
            with path.open("xb") as file:
                file.write(content)
    except OSError as error:
        raise FolderError(f"Cannot write to {folder}: {error.strerror}.") from error
    return paths


def _names(number: int, endings: Sequence[str]) -> list[str]:
    pictures = [index for index, ending in enumerate(endings) if ending != POSES]
    which = {index: f"-{place}" if len(pictures) > 1 else "" for place, index in enumerate(pictures, start=1)}
    return [f"{number:04}{which.get(index, '-poses')}{ending}" for index, ending in enumerate(endings)]
