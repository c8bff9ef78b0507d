"""The capture of operations on a GPU as a CUDA graph, which a request may be cancelled in."""

import gc
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch


class Recorder:
    """Captures operations on a stream of its own, into one pool of memory.

    A request may be cancelled at any moment in between. recover() then brings the streams back.
    """

    def __init__(self, device: torch.device) -> None:
        """Raises RuntimeError if this GPU captures nothing."""
        self.device = device
        self._stream, self._usual = torch.cuda.Stream(device), torch.cuda.current_stream(device)
        self._pool = torch.cuda.graph_pool_handle()
        self._graph: torch.cuda.CUDAGraph | None = None
        self._collects = False
        """Whether the garbage collector was on before the capture."""
        # PyTorch cannot use a pool again whose last graph was freed. This one, of one addition, keeps it.
        number = torch.ones(1, device=device)
        self._anchor, *_ = self.capture(lambda: number.add(1))

    def capture(self, run: Callable[[], Any]) -> tuple[torch.cuda.CUDAGraph, Any, Any]:
        """The graph of run(), the result that it writes to, and a result of run() itself.

        Raises OutOfMemoryError, and RuntimeError for an operation that cannot be captured.
        """
        try:
            return self._capture(run)
        finally:
            self.recover()  # again, as a cancellation may have ended the other one

    def _capture(self, run: Callable[[], Any]) -> tuple[torch.cuda.CUDAGraph, Any, Any]:
        self._usual, self._collects = torch.cuda.current_stream(self.device), gc.isenabled()
        graph = self._graph = torch.cuda.CUDAGraph()
        try:
            self._switch(to_own=True)
            # Libraries do one-time work at their first calls, and what is kept with an input (kept.py) is made here.
            for _ in range(2):
                expected = run()
            torch.cuda.synchronize()
            torch.cuda.empty_cache()  # a capture cannot use what is free elsewhere
            # A graph or an event that is freed meanwhile ends the capture (github.com/pytorch/pytorch/pull/161037).
            gc.disable()
            graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
            made = run()
            graph.capture_end()
            return graph, made, expected
        finally:
            self.recover()

    def recover(self) -> None:
        """After a capture, whether it ended or was interrupted: the usual stream again, and garbage collection."""
        if self._graph is None:
            return
        if self._collects:
            gc.enable()
        torch.cuda.set_stream(self._stream)
        if torch.cuda.is_current_stream_capturing():
            with suppress(RuntimeError):  # the error that interrupted it says more
                self._graph.capture_end()
        self._switch(to_own=False)
        self._graph = None

    def _switch(self, to_own: bool) -> None:
        """Let the next operations run on the own stream or the usual one, after those of the other."""
        before, after = (self._usual, self._stream) if to_own else (self._stream, self._usual)
        after.wait_stream(before)
        torch.cuda.set_stream(after)
