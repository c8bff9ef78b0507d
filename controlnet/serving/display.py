"""What script/predict shows of a server's log in the terminal."""

import re
import shutil
import sys
import threading
import time

PROGRESS_BAR = re.compile(r"\d+%\|")
"""Matches a line that tqdm prints."""


class Display:
    """Prints the log on stderr. A terminal shows a progress bar in one line; other outputs get its last state only.

    A quiet display shows one line while a bundle is loaded, then the lines of the request, such as warnings. A verbose
    one shows all lines.
    """

    def __init__(self, verbose: bool = False) -> None:
        self.verbose = verbose
        self.terminal = sys.stderr.isatty()
        self._lock = threading.RLock()  # a log is read on another thread
        self._on_line = False
        """Whether the cursor is behind a line that the next one replaces."""
        self._loading = ""
        self._shown = 0
        """How many lines of the request were seen."""
        self._bar = ""
        """The last state of a full bar, if it is not a terminal's. tqdm sends that state twice."""
        self._over = False

    def start_loading(self, name: str) -> None:
        """Show that the bundle `name` is being loaded, until loaded() is called."""
        with self._lock:
            self._loading, self._started = name, time.monotonic()
            if not self.verbose:
                self._overwrite(f"Loading {name}")

    def loaded(self, reason: str = "") -> None:
        """Say how long the loading took, and why this bundle was chosen."""
        with self._lock:
            seconds = time.monotonic() - self._started
            self._end_line()
            text = f"Loaded {self._loading} in {seconds:.1f} s{f' ({reason})' if reason else ''}"
            print(text, file=sys.stderr, flush=True)
            self._loading = ""

    def show(self, source: str, text: str) -> None:
        """Show one line of the server's log. The sources are those of controlnet.serving.server.Server."""
        text = text.strip("\r\n")
        of_request = source == "prediction"
        with self._lock:
            if self._over or not text:
                return
            self._shown += of_request
            if self.verbose:
                self._show_line(f"[{source}] {text}" if source == "coglet" else text)
            elif of_request and not text.startswith("seed: "):  # the last line of the command has the seed
                self._show_line(text)
            elif self._loading and source != "coglet":
                self._overwrite(f"Loading {self._loading}: {text}")

    def catch_up(self, logs: str, complete: bool = True) -> None:
        """Show the lines of the request's whole log that show() was not given yet.

        If it is `complete`, later calls of show() do nothing. Otherwise its last line may not be at its end.
        """
        lines = re.split(r"[\r\n]", logs)
        lines = [line for line in (lines if complete else lines[:-1]) if line]
        with self._lock:
            for line in lines[self._shown :]:
                self.show("prediction", line)
            self._over = self._over or complete

    def say(self, *lines: str) -> None:
        """Print lines of the command itself."""
        with self._lock:
            self._end_line()
            print(*lines, sep="\n", file=sys.stderr, flush=True)

    def end_line(self) -> None:
        """Go to a new line, so that other output does not follow a progress bar."""
        with self._lock:
            self._end_line()

    def _show_line(self, text: str) -> None:
        if not PROGRESS_BAR.search(text):
            self._end_line()
            print(text, file=sys.stderr, flush=True)
        elif self.terminal:
            self._overwrite(text)
        elif "100%" in text:
            self._bar = text
        else:
            self._end_line()

    def _overwrite(self, text: str) -> None:
        if self.terminal:
            width = shutil.get_terminal_size().columns - 1
            print(f"\r\x1b[K{text[:width]}", end="", file=sys.stderr, flush=True)
            self._on_line = True

    def _end_line(self) -> None:
        if self._on_line:
            # A bar is worth keeping. What was being loaded is not.
            print("\r\x1b[K" if self._loading and not self.verbose else "\n", end="", file=sys.stderr, flush=True)
        if self._bar:
            print(self._bar, file=sys.stderr, flush=True)
        self._on_line, self._bar = False, ""
