"""Folders and files on this machine or on what pyarrow's filesystems reach: s3://, gs://, abfs://, hdfs://."""

import fcntl
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from pyarrow import ArrowInvalid
from pyarrow.fs import FileInfo, FileSelector, FileSystem, FileType, LocalFileSystem

from controlnet.transient import Transient

URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_LOCAL = re.compile(r"file:(//(localhost)?)?(?=/)", re.IGNORECASE)
DONE, FAILED, PICTURES = "done", "failed", "pictures"
"""The folders of the records of jobs that are over, of those that are tried again in the next run, and of files."""
PARTIAL = ".partial"
"""Ending of a file that is being written."""
CLAIM = ".claim"
"""A file that is locked while a batch writes into the folder."""
OBJECT_STORES = {"s3", "gcs", "abfs"}
"""Filesystems in which a file appears only when it is complete."""


class FolderError(ValueError):
    """A path or URI cannot be used. The message is for the user."""


class NotReached(FolderError, Transient):
    """What is at a path or URI cannot be read or written now."""


def plain(place: str) -> str:
    """A path, if `place` is a file: URI of this machine. Everything else stays as it is."""
    return unquote(place[found.end() :]) if (found := _LOCAL.match(place)) else place


def open_filesystem(place: str) -> tuple[FileSystem, str]:
    """The filesystem of a path or URI, and the path in it. Raises FolderError."""
    if not URI.match(place):
        return LocalFileSystem(), str(Path(place).expanduser().absolute())
    try:
        return FileSystem.from_uri(place)
    except (ArrowInvalid, OSError, NotImplementedError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        kind = NotReached if isinstance(error, OSError) else FolderError
        raise kind(f"{place!r} is not a place that can be used: {reason}.") from None


def join(folder: str, place: str) -> str:
    """The path or URI `place`, which is relative to the path or URI `folder` unless it is complete."""
    place = plain(place)
    if URI.match(place) or os.path.isabs(os.path.expanduser(place)):
        return place
    path, question, query = folder.partition("?") if URI.match(folder) else (folder, "", "")
    return f"{path.rstrip('/')}/{place}{question}{query}"


def parent(place: str) -> str:
    """The folder of the file at a path or URI."""
    path, question, query = place.partition("?") if URI.match(place) else (place, "", "")
    return f"{path.rpartition('/')[0] or ('.' if '/' not in path else '/')}{question}{query}"


def read(place: str) -> bytes:
    """The content of the file at a path or URI. Raises FolderError if it cannot be read."""
    filesystem, path = open_filesystem(place)
    try:
        with filesystem.open_input_stream(path) as stream:
            return stream.read()
    except OSError as error:
        raise NotReached(f"{place!r} cannot be read: {plain_reason(error)}.") from None


def read_file(place: str, most: int) -> bytes:
    """The content of the file at a URI, with at most that many bytes.

    Raises NotReached if it is not there or cannot be read, and FolderError for a larger file and what is none.
    """
    filesystem, path = open_filesystem(place)
    too_large = f"{place!r} is larger than {most // 2**20} MB."
    try:
        found = filesystem.get_file_info(path)
        if found.type == FileType.NotFound:
            raise NotReached(f"{place!r} is not there.")
        if found.type != FileType.File:
            raise FolderError(f"{place!r} is {'a folder' if found.type == FileType.Directory else 'no file'}.")
        if (found.size or 0) > most:
            raise FolderError(too_large)
        with filesystem.open_input_stream(path, compression=None) as stream:
            content = stream.read((found.size or most) + 1)  # pyarrow takes memory for as much as may be read
    except OSError as error:
        raise NotReached(f"{place!r} cannot be read: {plain_reason(error)}.") from None
    if len(content) > most:
        raise FolderError(too_large)
    return content


def files_in(place: str) -> list[FileInfo]:
    """The files directly in a folder, by name. Raises FolderError."""
    filesystem, path = open_filesystem(place)
    try:
        found = filesystem.get_file_info(FileSelector(path, allow_not_found=True))
    except OSError as error:
        raise NotReached(f"{place!r} cannot be read: {plain_reason(error)}.") from None
    return sorted((info for info in found if info.type == FileType.File), key=lambda info: info.base_name)


def is_folder(place: str) -> bool:
    """Whether there is a folder at a path or URI."""
    filesystem, path = open_filesystem(place)
    return filesystem.get_file_info(path).type == FileType.Directory


def stamp(place: str) -> tuple[int, int] | None:
    """Size and time of change of a file of this machine, or None if it is elsewhere or not there."""
    try:
        found = None if URI.match(place) else os.stat(os.path.expanduser(place))
    except (OSError, ValueError):
        return None
    return None if found is None else (found.st_size, found.st_mtime_ns)


def plain_reason(error: OSError) -> str:
    """Why something could not be read or written, without pyarrow's detail."""
    return (os.strerror(error.errno) if error.errno else str(error).splitlines()[0].rstrip(".")).lower()


@dataclass(frozen=True)
class Folder:
    """A folder to write into. A file in it is complete or not there, whenever its writer is killed."""

    place: str
    """A path or a URI."""

    def write(self, name: str, content: bytes) -> None:
        """Write a file, in place of one of that name. Raises FolderError."""
        filesystem, root = open_filesystem(self.place)
        path = f"{root.rstrip('/')}/{name}"
        whole = filesystem.type_name in OBJECT_STORES
        written = path if whole else f"{path}.{os.getpid()}{PARTIAL}"
        try:
            if not whole:
                filesystem.create_dir(path.rpartition("/")[0])
            with filesystem.open_output_stream(written) as stream:
                stream.write(content)
            if not whole:
                filesystem.move(written, path)
        except OSError as error:
            raise NotReached(f"{name} cannot be written: {plain_reason(error)}.") from None

    def read(self, name: str) -> bytes | None:
        """The content of a file, or None if it is not there. Raises FolderError if it cannot be read."""
        filesystem, root = open_filesystem(self.place)
        try:
            with filesystem.open_input_stream(f"{root.rstrip('/')}/{name}") as stream:
                return stream.read()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise NotReached(f"{name} cannot be read: {plain_reason(error)}.") from None

    def has(self, name: str) -> bool:
        """Whether there is a file of that name."""
        filesystem, root = open_filesystem(self.place)
        return filesystem.get_file_info(f"{root.rstrip('/')}/{name}").type == FileType.File

    def remove(self, name: str) -> None:
        """Remove a file. Raises NotReached if that fails."""
        filesystem, root = open_filesystem(self.place)
        try:
            filesystem.delete_file(f"{root.rstrip('/')}/{name}")
        except OSError as error:
            raise NotReached(f"{name} cannot be removed: {plain_reason(error)}.") from None

    def names(self, inner: str) -> set[str]:
        """The names of the files directly in the folder `inner` of this one."""
        return {info.base_name for info in files_in(join(self.place, inner))}

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """Keep other batches of this machine out of the folder. Raises FolderError if one is in it.

        Does nothing for a folder elsewhere.
        """
        if URI.match(self.place):
            yield
            return
        try:
            Path(self.place).mkdir(parents=True, exist_ok=True)
            claim = os.open(Path(self.place) / CLAIM, os.O_CREAT | os.O_RDWR)
        except OSError as error:
            raise FolderError(f"{self.place!r} cannot be written to: {plain_reason(error)}.") from None
        try:
            fcntl.flock(claim, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield
        except BlockingIOError:
            raise FolderError(f"Another batch is writing into {self.place!r}: wait, or give another folder.") from None
        finally:
            os.close(claim)

    def remove_partial(self, inner: str) -> None:
        """Remove what a killed writer has left in the folder `inner`. Nobody may be writing into it."""
        for name in self.names(inner):
            if name.endswith(PARTIAL):
                self.remove(f"{inner}/{name}")
