"""What setup() says while it loads: a line per part, and at the end how much, how fast, and in how much memory."""

import resource
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch


class LoadLog:
    """Counts what is loaded from below `root`, the folder of the bundles (weights/), and prints it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.parts = 0
        self.bytes = 0
        """Of the files whose tensors are in memory now."""
        self.mapped = 0
        """Of the files whose tensors are left where they are until they are used."""
        self.started = self.loaded = time.perf_counter()

    @contextmanager
    def __call__(self, what: str, files: Sequence[Path], mapped: bool = False) -> Iterator[None]:
        """Time the loading of `what` from `files`, and print its line. Nothing is said where that raises."""
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
        # The largest file of each folder, which holds the weights, stands for those beside it.
        folders = dict.fromkeys(file.parent for file in files)
        largest = [max((f for f in files if f.parent == folder), key=lambda file: sizes[file]) for folder in folders]
        named = " and ".join(file.relative_to(self.root).as_posix() for file in largest)
        print(f"{what}: {named}, {size / 1e6:.1f} MB{' left there' if mapped else ''}, {seconds:.2f} s", flush=True)

    def summarise(self) -> None:
        """Print the totals, once everything is loaded."""
        self.loaded = time.perf_counter()
        seconds = self.loaded - self.started
        left = f", {self.mapped / 1e9:.2f} GB left in their files until used" if self.mapped else ""
        print(
            f"loaded: {self.parts} parts, {self.bytes / 1e9:.2f} GB in {seconds:.1f} s "
            f"({self.bytes / 1e9 / seconds:.2f} GB/s){left}; peak memory {peak_memory()}",
            flush=True,
        )

    def ready(self) -> None:
        """Print how long the warm-up took, which comes after the summary."""
        print(f"warm-up: {time.perf_counter() - self.loaded:.1f} s", flush=True)


def peak_memory() -> str:
    """The most that this process has held so far, in GB, and on its GPU where it has one.

    Pages of mapped files count while they are in memory, though the system may take them back at any time.
    """
    unit = 1 if sys.platform == "darwin" else 1024
    host = f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9:.2f} GB"
    if not torch.cuda.is_available():
        return host
    return f"{host}, {torch.cuda.max_memory_allocated() / 1e9:.2f} GB on the GPU"
