"""Temporary files: this process's own folder for them, and what ended requests and processes have left in it."""

import atexit
import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

PREFIX = "controlnet-"
MOST_BYTES = 512 * 2**20
"""Of one file that a request sends: no picture in use is as large. Cog has no limit of its own."""
_STARTING = 60
"""Seconds for which folders of other processes are left alone: they may be about to be used."""
_CLAIM = ".claim"
"""The file in a process's folder that is locked while the process lives."""

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


def sweep(keep: Iterable[Path] = ()) -> None:
    """Remove what earlier requests left in this process's folder, apart from `keep`, and folders of ended processes.

    A cancellation can come between any two instructions, even while a failed write cleans up, and a download that is
    cut off stays. All are in one folder that is known in advance, so emptying it removes everything. Only safe with one
    request at a time, as here.
    """
    kept = {str(path) for path in keep}
    own = _homes.get(os.getpid())
    if own is not None and own.is_dir():
        for path in own.iterdir():
            if path.name != _CLAIM and str(path) not in kept:
                _remove(path)  # what cannot be removed must not fail this request
    for folder in _abandoned(own):
        _remove(folder)


def _shared() -> Path:
    """The folder for temporary files of all processes, also after Cog's server was told to use home()."""
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
