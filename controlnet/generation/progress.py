"""Progress bars that the readers of a log can follow."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tqdm.auto import tqdm

from controlnet.log import is_silent


class LogLines:
    """The file that tqdm writes a bar to: each state of the bar is a line of its own on stderr.

    With tqdm's carriage returns a bar is one line of a prediction's log. replicate's Python client reads only the
    beginning of a line (replicate/prediction.py), so it would see 0% until the end. tqdm writes its last state again
    when it is closed; a count is written once here.
    """

    def __init__(self) -> None:
        self._last = ""

    def write(self, text: str) -> None:
        state = text.strip("\r\n")
        count = state.partition("[")[0]
        if state and count != self._last and not is_silent():
            self._last = count
            sys.stderr.write(f"{state}\n")

    def flush(self) -> None:
        sys.stderr.flush()


class _Bar(tqdm):
    def __del__(self) -> None:
        """Not closed, since PictureBar closes it. One that a cancellation has left half made cannot be."""


class PictureBar:
    """The bar of one picture, over all its passes: each of a pipeline's own bars moves it on."""

    def __init__(self, name: str, total: int, shown: bool) -> None:
        # The name comes after the bar, because replicate's clients read progress from lines that begin with the
        # percentage.
        self._bar = _Bar(total=total, postfix=name, leave=True, disable=not shown, file=LogLines())

    def __enter__(self) -> "PictureBar":
        return self

    def __exit__(self, *_: Any) -> None:
        self._bar.close()

    def of_pass(self, weight: int = 1) -> Callable[..., Any]:
        """The method progress_bar of a pipeline each of whose steps moves this bar by `weight`."""

        @contextmanager
        def progress_bar(iterable: Any = None, total: int | None = None) -> Iterator["_Steps"]:
            yield _Steps(self._bar, weight)

        return progress_bar


class _Steps:
    def __init__(self, bar: Any, weight: int) -> None:
        self._bar, self._weight = bar, weight

    def update(self) -> None:
        self._bar.update(self._weight)
