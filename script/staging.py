"""Files that are written in a folder of their own and put in place at the end, all of them or none."""

import fcntl
import os
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_STARTING = 60
"""Seconds for which a folder that nobody has locked is left alone: its owner may be about to lock it."""


class _Shield:
    """While it is up, a signal waits instead of interrupting. After the first one it stays up, to clear away."""

    def __init__(self) -> None:
        self.up, self.waiting = True, False

    def __call__(self, *signalled: object) -> None:
        self.waiting = self.up
        if not self.up:
            self.up = True
            raise KeyboardInterrupt

    def lower(self) -> None:
        self.up = False
        if self.waiting:
            self(None)


class Staging:
    """A folder to write into. What is in it is removed, unless it is put in place."""

    def __init__(self, folder: Path, shield: _Shield) -> None:
        self.folder, self._shield = folder, shield

    def put_in_place(self, names: Sequence[str]) -> None:
        """Move these files and folders next to the folder, in their order, over those of the same names.

        If one cannot be moved, all are as they were. No interrupt comes between: it is too late for one afterwards.
        """
        self._shield.up = True
        replaced = Path(tempfile.mkdtemp(dir=self.folder))
        moved: list[tuple[Path, Path]] = []
        try:
            for name in names:
                target = self.folder.parent / name
                if os.path.lexists(target):
                    target.rename(replaced / name)
                    moved.append((target, replaced / name))
                (self.folder / name).rename(target)
                moved.append((self.folder / name, target))
        except OSError:
            for before, after in reversed(moved):
                after.rename(before)
            raise


@contextmanager
def staging(root: Path, prefix: str) -> Iterator[Staging]:
    """A new folder in `root`, whose name begins with `prefix`, for the time of the block.

    Ctrl-C and the signals that end a process raise KeyboardInterrupt in the block, once. Folders that killed processes
    have left are removed first.
    """
    shield, before = _Shield(), {}
    if threading.current_thread() is threading.main_thread():
        heard = [each for each in _SIGNALS if signal.getsignal(each) is not signal.SIG_IGN]
        before = {each: signal.signal(each, shield) for each in heard}
    try:
        _remove_abandoned(root, prefix)
        folder = Path(tempfile.mkdtemp(prefix=prefix, dir=root))
        claim = os.open(folder, os.O_RDONLY)
        try:
            try:
                fcntl.flock(claim, fcntl.LOCK_EX)
                shield.lower()
                yield Staging(folder, shield)
            finally:
                shield.up = True  # an interrupt may still come before this line, and then it is up too
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(claim)
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def _remove_abandoned(root: Path, prefix: str) -> None:
    for folder in root.glob(f"{prefix}*"):
        with suppress(OSError):
            if folder.stat().st_mtime > time.time() - _STARTING:
                continue
            claim = os.open(folder, os.O_RDONLY | os.O_NOFOLLOW)
            try:
                fcntl.flock(claim, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(claim)
