"""What script/predict shows in the terminal."""

import re
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any

PROGRESS_BAR = re.compile(r"\d+%\|")
"""Matches a line that tqdm prints."""


class Display:
    """Prints the lines of a log on stderr. A terminal shows a progress bar in one line; elsewhere only its last state.

    A quiet display shows one line while a bundle is loaded, then the lines of the request, such as warnings. A verbose
    one shows all lines.
    """

    def __init__(self, verbose: bool = False) -> None:
        self.verbose = verbose
        self.terminal = sys.stderr.isatty()
        self._stderr = sys.stderr
        self._on_line = False
        """Whether the cursor is behind a line that the next one replaces."""
        self._loading = ""
        self._bar = ""
        """The last state of a full bar, if it is not a terminal's. tqdm sends that state twice."""

    @contextmanager
    def instead_of_output(self) -> Iterator[None]:
        """Show each line that the block prints."""
        lines: Any = _Lines(self)
        with redirect_stdout(lines), redirect_stderr(lines):
            yield

    @contextmanager
    def loading(self, name: str, reason: str) -> Iterator[None]:
        """Show in the block that the bundle `name` is loaded, then how long it took and why this bundle was chosen."""
        self._loading, started = f"Loading {name}", time.monotonic()
        if not self.verbose:
            self._overwrite(self._loading)
        yield
        self.end_line()
        self._loading = ""
        self._print(f"Loaded {name} in {time.monotonic() - started:.1f} s{f' ({reason})' if reason else ''}")

    def show(self, line: str) -> None:
        """Show one line of the log."""
        if self._loading and not self.verbose:
            self._overwrite(f"{self._loading}: {line}")
        elif not PROGRESS_BAR.search(line):
            if self.verbose or not line.startswith("seed: "):  # the last line of the command has the seed
                self.say(line)
        elif self.terminal:
            self._overwrite(line)
        elif "100%" in line:
            self._bar = line
        else:
            self.end_line()

    def say(self, line: str) -> None:
        """Print a line, or several, below what is there."""
        self.end_line()
        self._print(line)

    def end_line(self) -> None:
        """Go to a new line, so that other output does not follow a progress bar."""
        if self._on_line:
            # A bar is worth keeping. What was being loaded is not.
            self._print("\r\x1b[K" if self._loading and not self.verbose else "\n", end="")
        if self._bar:
            self._print(self._bar)
        self._on_line, self._bar = False, ""

    def _overwrite(self, line: str) -> None:
        if self.terminal:
            self._print(f"\r\x1b[K{line[: shutil.get_terminal_size().columns - 1]}", end="")
            self._on_line = True

    def _print(self, text: str, end: str = "\n") -> None:
        print(text, end=end, file=self._stderr, flush=True)


class _Lines:
    """A file for text, each of whose lines a display shows."""

    def __init__(self, display: Display) -> None:
        self._display, self._rest = display, ""

    def write(self, text: str) -> int:
        *lines, self._rest = re.split(r"[\r\n]", self._rest + text)
        for line in filter(None, lines):
            self._display.show(line)
        return len(text)

    def flush(self) -> None:
        pass
