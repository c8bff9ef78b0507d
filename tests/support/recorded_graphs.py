"""CUDA graphs without a GPU: the operations of a capture are recorded, and repeated on the same memory.

As on a GPU, a replay reads the tensors that the captured operations read, and writes to those that they wrote to.
Python does not run again, so a number that Python computed during the capture stays what it was. It shows nothing about
streams and pools of memory.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from controlnet.models.cuda import graphs

capturing: list["RecordedGraph"] = []


class RecordedGraph:
    """Stands for torch.cuda.CUDAGraph."""

    made: ClassVar[list["RecordedGraph"]] = []

    def __init__(self) -> None:
        self.replays = 0
        self._operations: list[tuple[Any, Any, Any, list[torch.Tensor]]] = []
        self._recorder = _Recorder(self._operations)

    def capture_begin(self, **_: Any) -> None:
        capturing.append(self)
        self._recorder.__enter__()

    def capture_end(self) -> None:
        capturing.remove(self)
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


class _Stream:
    device = torch.device("cpu")

    def __init__(self, *_: Any) -> None:
        pass

    def wait_stream(self, other: Any) -> None:
        pass


@contextmanager
def recorded_graphs() -> Iterator[list[RecordedGraph]]:
    """Inside, Graphs records. Yields all graphs that were replayed."""
    RecordedGraph.made = []
    pretended = {
        "Stream": _Stream,
        "CUDAGraph": RecordedGraph,
        "graph_pool_handle": lambda: None,
        "synchronize": lambda: None,
        "set_stream": lambda stream: None,
        "current_stream": _Stream,
        "default_stream": _Stream,
        "is_current_stream_capturing": lambda: bool(capturing),
    }
    with mock.patch.multiple(torch.cuda, **pretended):
        yield RecordedGraph.made


def open_recorded(*_: Any) -> graphs.Graphs:
    """In place of open_graphs()."""
    return graphs.Graphs(torch.device("cpu"))
