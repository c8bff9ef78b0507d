"""How Cog's server takes in the files of a request: where it saves them, and so that no cancellation can block it."""

import concurrent.futures
import resource
import tempfile
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any

from cog.types import URLPath
from coglet import server

from controlnet.temporary import MOST_BYTES, home


class InputExecutor(ThreadPoolExecutor):
    """A ThreadPoolExecutor that fetches and decodes inputs (URLPath.convert) in the thread that asks for it.

    Cog's server makes a pool of threads for each request with files, and a cancellation is an exception that CPython
    sets on the request's thread by its id. Until a new thread runs, its state in CPython 3.11 has the id of the thread
    that starts it, so a cancellation in that moment ends the new thread, and Thread.start() waits for it for ever: the
    server stays BUSY (seen in about 1 of 500 predictions that were cancelled within 0.4 s).
    """

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future:
        if not isinstance(getattr(fn, "__self__", None), URLPath):
            return super().submit(fn, *args, **kwargs)
        future: Future = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:  # not a cancellation, which must end the request at once
            future.set_exception(error)
        return future


def take_in_without_threads() -> None:
    """Make Cog's server use InputExecutor. Does nothing outside it."""
    if server.active:
        concurrent.futures.ThreadPoolExecutor = InputExecutor  # which the server looks up at each request


def use_home() -> None:
    """Make Cog save the inputs that it downloads in this process's folder. Does nothing outside Cog's server.

    A file that grows beyond MOST_BYTES can then not be written (OSError), because Cog has no limit for downloads.
    """
    if not server.active:
        return
    with suppress(OSError):  # no folder for temporary files: the first request says so
        tempfile.tempdir = str(home())
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    most = MOST_BYTES if hard == resource.RLIM_INFINITY else min(MOST_BYTES, hard)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, hard))
