"""Temporary files: this process's own folder for them, and what ended requests and processes have left on disk."""

import atexit
import fcntl
import os
import resource
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path

from coglet import server

PREFIX = "controlnet-"
COGLET = Path("/tmp/coglet/predictions")
"""Where Cog's server makes three folders for each prediction, whatever TMPDIR says, and leaves them. One for all."""
MOST_DOWNLOADED = 512 * 2**20
"""Bytes of a file that this process may write, so of an input that Cog downloads: no picture in use is as large."""
_YOUNG, _STARTING = 600, 60
"""Seconds for which folders of Cog's server and of other processes are left alone: they may be about to be used."""
_CLAIM = ".claim"
"""The file in a process's folder that is locked while the process lives."""
_AT_ONCE = 500
"""How many folders of Cog's server one request removes at most. It takes about 10 ms."""

_homes: dict[int, Path] = {}
"""Process id → the folder in which that process writes all its files."""


def home() -> Path:
    """The folder of this process, which is made if it is not there. It is removed when the process ends in order.

    A lock on a file in it shows other processes that its owner lives. The operating system drops it with the process.
    """
    # Known before anything is written into it. A cancellation in this function can leave at most one empty folder.
    process = os.getpid()
    if process not in _homes:
        _homes[process] = Path(tempfile.mkdtemp(prefix=PREFIX, dir=_shared()))
        fcntl.flock(os.open(_homes[process] / _CLAIM, os.O_CREAT), fcntl.LOCK_EX | fcntl.LOCK_NB)
        atexit.register(_leave, process, _homes[process])
    _homes[process].mkdir(mode=0o700, exist_ok=True)  # a cleaner of temporary files may have removed it
    return _homes[process]


def use_home() -> None:
    """Make Cog save the inputs that it downloads in this process's folder. Does nothing outside Cog's server.

    A file that grows beyond MOST_DOWNLOADED can then not be written (OSError), because Cog has no limit for downloads.
    """
    if not server.active:
        return
    with suppress(OSError):  # no folder for temporary files: the first request says so
        tempfile.tempdir = str(home())
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    most = MOST_DOWNLOADED if hard == resource.RLIM_INFINITY else min(MOST_DOWNLOADED, hard)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, hard))


def sweep(keep: Iterable[Path] = ()) -> None:
    """Remove the files that earlier requests left on disk. Called at the start of each request; `keep` are its inputs.

    The server removes the files that it returned, and a failed write cleans up. But a cancellation can come between any
    two instructions, even during that cleanup, and a download that is cut off stays. All are in one folder that is
    known in advance, so emptying it removes everything. Only safe with one request at a time, as here.

    Folders of other processes that have ended, and the empty ones that Cog's server leaves, are removed too.
    """
    kept = {str(path) for path in keep}
    own = _homes.get(os.getpid())
    if own is not None and own.is_dir():
        for path in own.iterdir():
            if path.name != _CLAIM and str(path) not in kept:
                _remove(path)  # what cannot be removed must not fail this request
    for folder in _abandoned(own):
        _remove(folder)
    for folder in islice(_empty(COGLET, time.time() - _YOUNG), _AT_ONCE):
        with suppress(OSError):  # rmdir removes no file: what is not empty after all stays
            for inner in folder.iterdir():
                inner.rmdir()
            folder.rmdir()


def _shared() -> Path:
    """The folder for temporary files of all processes, also after use_home()."""
    usual = Path(tempfile.gettempdir())
    return usual.parent if usual in _homes.values() else usual


def _leave(process: int, folder: Path) -> None:
    if process == os.getpid():  # not in a fork
        _remove(folder)


def _remove(path: Path) -> None:
    shutil.rmtree(path, ignore_errors=True)
    with suppress(OSError):
        path.unlink(missing_ok=True)


def _abandoned(own: Path | None) -> Iterator[Path]:
    """Folders of processes of this project that have ended without removing them."""
    oldest = time.time() - _STARTING
    for claim in _shared().glob(f"{PREFIX}*/{_CLAIM}"):
        with suppress(OSError):
            if claim.parent == own or claim.parent.stat().st_mtime > oldest:
                continue
            lock = os.open(claim, os.O_RDONLY | os.O_NOFOLLOW)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                yield claim.parent
            finally:
                os.close(lock)


def _empty(predictions: Path, before: float) -> Iterator[Path]:
    """Folders of predictions with nothing but empty folders in them, untouched since `before`.

    They do not say which server made them. A prediction that still runs does not miss them.
    """
    with suppress(OSError), os.scandir(predictions) as entries:
        for entry in entries:
            with suppress(OSError):
                if entry.is_dir(follow_symlinks=False) and entry.stat(follow_symlinks=False).st_mtime < before:
                    yield Path(entry.path)
