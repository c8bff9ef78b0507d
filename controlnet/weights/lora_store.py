"""LoRA files on disk: fetched once, checked, and kept until the folder is full. Several processes may share it.

A file is known by the address that a request names. What lies there later is not looked at: the same request gives the
same picture. To use a changed file, name its commit, or add a query to its address.

Every file in the folder is complete, and its name has its SHA-256. It gets this name by a rename, from a file that only
its writer knows. A request holds a lock on its files, which the operating system drops with the open file, so a
cancellation may land anywhere. What is locked is never removed.
"""

import fcntl
import hashlib
import os
import re
import stat
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

from controlnet.settings import Settings
from controlnet.transient import Transient
from controlnet.weights.lora_fetch import fetch
from controlnet.weights.lora_files import FileRefused, Lora, LoraError, LoraNotFetched
from controlnet.weights.lora_sources import Inline, LoraSource

FOLDER, GIGABYTES = Settings.variable("lora_folder"), Settings.variable("lora_gigabytes")
REMEMBERED = 600.0
"""Seconds for which a file that was refused is not fetched again, or a batch would fetch it for each of its jobs."""
_MARK = ".controlnet-loras"
"""A file in the folder that says whose it is."""
_WHOLE, _PARTIAL = re.compile(r"[0-9a-f]{32}-(?P<sha256>[0-9a-f]{64})\.safetensors"), ".partial"
"""The names of files: which address, and which content."""

Check = Callable[[Lora], None]
"""Raises LoraError for a file that no request can use, by its header. The message begins with the LoRA's name."""


class LoraStore:
    """The folder of LoRA files. One request at a time in each process."""

    def __init__(self, settings: Settings) -> None:
        """The folder is made with the first file."""
        usual = Path(tempfile.gettempdir()) / f"controlnet-loras-{os.geteuid()}"
        self.folder, self.most = Path(settings.lora_folder or usual), int(settings.lora_gigabytes * 1e9)
        self._verified: set[tuple[str, int, int, int]] = set()
        self._passed: set[str] = set()
        self._refused: dict[str, tuple[float, str]] = {}

    def fetch(self, source: LoraSource, name: str, scale: float, check: Check) -> Lora:
        """The LoRA at an address, whose file stays as long as it is referred to. `name` is that of its input.

        Raises LoraError, which begins with `name`: LoraNotFetched for what may pass, others for what will not.
        """
        address = source.content if isinstance(source, Inline) else repr(source).encode()
        key = hashlib.sha256(address).hexdigest()[:32]
        try:
            self._refuse_again(key)
            try:
                return self._fetched(source, key, Lora(Path(), "", scale, name, str(source)), check)
            except FileRefused as error:
                if not isinstance(source, Inline):
                    self._remember(key, error)
                raise
        except LoraError as error:
            raise type(error)(f"{name}: {error}") from error
        except OSError as error:
            print(f"{name}: {error}", file=sys.stderr)  # it may name a path
            raise LoraNotFetched(
                f"{name}: it could not be saved on this server, whose log says why. Whoever runs it has to give it "
                f"more space, or a folder that is its own ({FOLDER})."
            ) from error

    def _fetched(self, source: LoraSource, key: str, asked: Lora, check: Check) -> Lora:
        """The LoRA that is `asked` for, with its file."""
        with self._locked():
            lora = self._found(key, asked)
        if lora and self._intact(lora):
            self._check(lora, check)
            return lora
        with self._new(key) as (partial, file):
            sha256 = _written(source, file, asked.name)
            lora = replace(asked, file=partial, sha256=sha256, held=file)
            self._check(lora, check)
            with self._locked():
                if (other := self._found(key, asked)) and other.sha256 == sha256:
                    return other  # another process was faster, and may be using that one
                self._make_room(os.fstat(file.fileno()).st_size)
                fcntl.flock(file, fcntl.LOCK_SH)
                path = self.folder / f"{key}-{sha256}.safetensors"
                partial.rename(path)
            return replace(lora, file=path)

    # ---- its files

    def _found(self, key: str, asked: Lora) -> Lora | None:
        """The file of an address, open and locked for use. Called while the folder is locked."""
        for path in sorted(self.folder.glob(f"{key}-*.safetensors")):
            if (named := _WHOLE.fullmatch(path.name)) and (file := _opened(path)):
                fcntl.flock(file, fcntl.LOCK_SH)
                os.utime(file.fileno(), ns=(time.time_ns(), os.fstat(file.fileno()).st_mtime_ns))  # used now
                return replace(asked, file=path, sha256=named["sha256"], held=file)
        return None

    def _intact(self, lora: Lora) -> bool:
        """Whether a file still has the content that was fetched; if not, it is removed.

        It is read once, and again after it was changed.
        """
        with lora.file.open("rb") as file:
            state = os.fstat(file.fileno())
            mark = (lora.sha256, state.st_ino, state.st_size, state.st_mtime_ns)
            if mark not in self._verified:
                if hashlib.file_digest(file, "sha256").hexdigest() != lora.sha256:
                    lora.file.unlink(missing_ok=True)
                    return False
                self._verified.add(mark)
        return True

    @contextmanager
    def _new(self, key: str) -> Iterator[tuple[Path, BinaryIO]]:
        """An empty file that no other process touches. It is removed afterwards unless it was given another name."""
        with self._locked():
            for left in self.folder.glob(f"*{_PARTIAL}"):  # by a process that was killed, or a cancellation
                _remove_unused(left)
            descriptor, name = tempfile.mkstemp(_PARTIAL, f"{key}-", self.folder)
            file = os.fdopen(descriptor, "w+b")
            fcntl.flock(file, fcntl.LOCK_EX)
        try:
            yield Path(name), file
        finally:
            Path(name).unlink(missing_ok=True)

    def _make_room(self, needed: int) -> None:
        """Remove the files that were not used for longest, until `needed` bytes more fit. Spares what is in use.

        Called while the folder is locked.
        """
        files = [(path.lstat(), path) for path in self.folder.iterdir() if _WHOLE.fullmatch(path.name)]
        held = sum(state.st_size for state, _ in files)
        for state, path in sorted(files, key=lambda each: each[0].st_atime_ns):
            if held + needed > self.most and _remove_unused(path):
                held -= state.st_size
        if held + needed > self.most:
            raise LoraNotFetched(
                f"this server keeps at most {self.most / 1e9:.2g} GB of LoRAs, and this one does not fit beside those "
                f"in use. Whoever runs it can raise that ({GIGABYTES})."
            )

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Keep other processes from adding and removing files. Raises OSError unless the folder is ours, or can be."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            state = os.fstat(folder)
            if state.st_uid != os.geteuid():
                raise PermissionError(f"{self.folder} belongs to another user")
            _lock(folder)
            names = os.listdir(folder)
            if names and _MARK not in names:
                raise PermissionError(f"{self.folder} has files that are no LoRAs of this server: name an empty folder")
            if stat.S_IMODE(state.st_mode) != 0o700:
                os.fchmod(folder, 0o700)
            if not names:
                os.close(os.open(_MARK, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600, dir_fd=folder))
            yield
        finally:
            os.close(folder)

    # ---- what is refused

    def _check(self, lora: Lora, check: Check) -> None:
        """Run the check of a file, once for each content. A file that is refused is not kept, unless others use it."""
        if lora.sha256 in self._passed:
            return
        try:
            check(lora)
        except LoraError as error:
            plain = str(error).removeprefix(f"{lora.name}: ")
            if isinstance(error, Transient):
                raise LoraNotFetched(plain) from error
            with self._locked(), suppress(BlockingIOError):
                fcntl.flock(lora.held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                lora.file.unlink(missing_ok=True)
            raise FileRefused(plain) from error
        self._passed.add(lora.sha256)

    def _remember(self, key: str, error: FileRefused) -> None:
        now = time.monotonic()
        self._refused = {other: each for other, each in self._refused.items() if each[0] > now}
        self._refused[key] = (now + REMEMBERED, str(error))

    def _refuse_again(self, key: str) -> None:
        until, message = self._refused.get(key, (0.0, ""))
        if (left := until - time.monotonic()) > 0:
            raise FileRefused(f"{message} This address is looked at again in {left / 60:.0f} minutes.")


def _written(source: LoraSource, file: BinaryIO, name: str) -> str:
    """Write a LoRA to an empty file. Returns its SHA-256."""
    if not isinstance(source, Inline):
        return fetch(source, file, name)
    file.write(source.content)
    file.flush()
    return hashlib.sha256(source.content).hexdigest()


def _lock(folder: int) -> None:
    """Lock an open folder. Others keep it for milliseconds. Raises TimeoutError if one does not give it back."""
    for _ in range(500):
        with suppress(BlockingIOError):
            return fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        time.sleep(0.02)  # a cancellation comes between two tries
    raise TimeoutError("another process keeps the folder of LoRAs locked")


def _opened(path: Path) -> BinaryIO | None:
    """A file that is open for reading; None for a link, and for what is not there."""
    with suppress(OSError):
        return os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW), "rb")
    return None


def _remove_unused(path: Path) -> bool:
    """Remove a file unless it is in use. Returns whether it is gone."""
    with suppress(BlockingIOError), _opened(path) or nullcontext() as file:
        if file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink(missing_ok=True)
        return True
    return False
