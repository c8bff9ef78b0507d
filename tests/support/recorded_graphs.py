"""CUDA graphs without a GPU: the operations of a capture are recorded, and repeated on the same memory.

As on a GPU, a replay reads the tensors that the captured operations read, and writes to those that they wrote to.
Python does not run again, so a number that Python computed during the capture stays what it was. Streams are only names
here, but as on a GPU, nothing may wait for a stream that captures. It shows nothing about pools of memory.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from controlnet.speedups.cuda import graphs


class _Stream:
    device = torch.device("cpu")

    def __init__(self, *_: Any) -> None:
        self.captures: RecordedGraph | None = None

    def wait_stream(self, other: "_Stream") -> None:
        if other.captures or self.captures:
            raise RuntimeError("dependency on a stream that captures")


class Streams:
    """The usual stream, and the current one."""

    usual = current = _Stream()

    @classmethod
    def set(cls, stream: _Stream) -> None:
        cls.current = stream


class RecordedGraph:
    """Stands for torch.cuda.CUDAGraph."""

    made: ClassVar[list["RecordedGraph"]] = []

    def __init__(self) -> None:
        self.replays = 0
        self._operations: list[tuple[Any, Any, Any, list[torch.Tensor]]] = []
        self._recorder = _Recorder(self._operations)

    def capture_begin(self, **_: Any) -> None:
        if Streams.current is Streams.usual or Streams.current.captures:
            raise RuntimeError("this stream cannot capture")
        Streams.current.captures = self
        self._recorder.__enter__()

    def capture_end(self) -> None:
        if Streams.current.captures is not self:
            raise RuntimeError("this stream does not capture")
        Streams.current.captures = None
        self._recorder.__exit__(None, None, None)

    def replay(self) -> None:
        self.replays += 1
        if self.replays == 1:  # not the graph that keeps the pool, which is never replayed
            RecordedGraph.made.append(self)
        for operation, args, named, results in self._operations:
            for result, new in zip(results, _tensors(operation(*args, **named)), strict=True):
                if result is not new and result.data_ptr() != new.data_ptr():
                    result.copy_(new)


class _Recorder(TorchDispatchMode):
    def __init__(self, operations: list[tuple[Any, Any, Any, list[torch.Tensor]]]) -> None:
        super().__init__()
        self._operations = operations

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = operation(*args, **(kwargs or {}))
        self._operations.append((operation, args, kwargs or {}, _tensors(result)))
        return result


def _tensors(result: Any) -> list[torch.Tensor]:
    if isinstance(result, torch.Tensor):
        return [result]
    return [tensor for each in result for tensor in _tensors(each)] if isinstance(result, list | tuple) else []


@contextmanager
def recorded_graphs() -> Iterator[list[RecordedGraph]]:
    """Inside, Graphs records. Yields all graphs that were replayed."""
    RecordedGraph.made = []
    Streams.usual = Streams.current = _Stream()
    pretended = {
        "Stream": _Stream,
        "CUDAGraph": RecordedGraph,
        "graph_pool_handle": lambda: None,
        "synchronize": lambda: None,
        "empty_cache": lambda: None,
        "set_stream": Streams.set,
        "current_stream": lambda *_: Streams.current,
        "is_current_stream_capturing": lambda: Streams.current.captures is not None,
    }
    with mock.patch.multiple(torch.cuda, **pretended):
        yield RecordedGraph.made


def open_recorded(*_: Any) -> graphs.Graphs:
    """In place of open_graphs()."""
    return graphs.Graphs(torch.device("cpu"))
