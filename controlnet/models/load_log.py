"""The log that setup() prints while it loads: a line per part, then the total size, speed and peak memory."""

import resource
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from controlnet.log import say


class LoadLog:
    """Counts and prints what is loaded. `root` is the folder of all bundles (weights/)."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.parts = 0
        self.bytes = 0
        """Size of the files whose tensors are in memory now."""
        self.mapped = 0
        """Size of the mapped files, whose tensors are read when they are used."""
        self.started = self.loaded = time.perf_counter()

    @contextmanager
    def __call__(self, what: str, files: Sequence[Path], mapped: bool = False) -> Iterator[None]:
        """Time the loading of `what` from `files` and print its line, or nothing if the loading raises."""
        started = time.perf_counter()
        yield
        seconds = time.perf_counter() - started
        sizes = {file: file.stat().st_size for file in files}
        self.parts += 1
        size = sum(sizes.values())
        if mapped:
            self.mapped += size
        else:
            self.bytes += size
        # A folder is represented by its largest file, which holds the weights.
        folders = dict.fromkeys(file.parent for file in files)
        largest = [max((f for f in files if f.parent == folder), key=lambda file: sizes[file]) for folder in folders]
        named = " and ".join(file.relative_to(self.root).as_posix() for file in largest)
        left = " left in the file" if mapped else ""
        say(f"{what}: {named}, {size / 1e6:.1f} MB{left}, {seconds:.2f} s")

    def summarise(self) -> None:
        """Print the totals, once everything is loaded."""
        self.loaded = time.perf_counter()
        seconds = self.loaded - self.started
        left = f", {self.mapped / 1e9:.2f} GB left in their files until used" if self.mapped else ""
        say(
            f"loaded: {self.parts} parts, {self.bytes / 1e9:.2f} GB in {seconds:.1f} s "
            f"({self.bytes / 1e9 / seconds:.2f} GB/s){left}; peak memory {peak_memory()}"
        )

    def ready(self) -> None:
        """Print how long the warm-up took. It runs after summarise()."""
        say(f"warm-up: {time.perf_counter() - self.loaded:.1f} s")


def peak_memory() -> str:
    """The most memory that this process has used so far, in GB, and the most GPU memory if there is a GPU.

    Pages of mapped files count while they are in memory, although the system may drop them at any time.
    """
    unit = 1 if sys.platform == "darwin" else 1024
    host = f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9:.2f} GB"
    if not torch.cuda.is_available():
        return host
    return f"{host}, {torch.cuda.max_memory_allocated() / 1e9:.2f} GB on the GPU"
