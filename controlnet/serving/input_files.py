"""How Cog's server takes in the files of a request, so that no cancellation can block it."""

import concurrent.futures
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from cog.types import URLPath
from coglet import server


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
