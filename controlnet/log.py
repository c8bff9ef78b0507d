"""The lines that the package prints while it loads and works. Cog's server makes them the log of a prediction."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_silent: ContextVar[bool] = ContextVar("silent", default=False)
"""Of each thread, so that a program's other threads still print."""


def say(text: str) -> None:
    """Print a line, unless this thread is in silence()."""
    if not is_silent():
        print(text, flush=True)


def is_silent() -> bool:
    """Whether this thread is in silence()."""
    return _silent.get()


@contextmanager
def silence(wanted: bool = True) -> Iterator[None]:
    """Print nothing in this thread, neither lines nor progress, if that is `wanted`."""
    token = _silent.set(wanted or is_silent())
    try:
        yield
    finally:
        _silent.reset(token)
