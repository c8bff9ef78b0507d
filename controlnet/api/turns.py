"""One request at a time in a model that several threads call."""

import os
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager


class Unavailable(RuntimeError):
    """A call would wait for ever: it is made within a call, or in a fork of a process that made a picture."""


class Turns:
    """Lets one thread in at a time; the others wait. What would wait for ever is refused."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside: int | None = None
        self._forked = False
        _TURNS.add(self)

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Wait for one's turn, which is the time of the block. Raises Unavailable."""
        if self._forked:
            raise Unavailable(
                "The model was making a picture when this process was forked, and that call ends in the other process: "
                "open a model here with open_model(), or start the process before."
            )
        if self._inside == threading.get_ident():
            raise Unavailable("The model was called within a call of its own: call it again after that one.")
        with self._lock:
            self._inside = threading.get_ident()
            try:
                yield
            finally:
                self._inside = None

    def note_fork(self) -> None:
        """In a child process: remember if the lock is held, because nobody is left who could release it."""
        self._forked = self._lock.locked()


_TURNS: "weakref.WeakSet[Turns]" = weakref.WeakSet()


def _note_fork() -> None:
    for turns in list(_TURNS):
        turns.note_fork()


os.register_at_fork(after_in_child=_note_fork)
