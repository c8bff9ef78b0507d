"""Captured CUDA graphs: a network's operations on a GPU, recorded once and then started together.

At batch sizes of 1 and 2 a GPU finishes most operations of Stable Diffusion sooner than Python can start the next one.
A CUDA graph starts all of them with one call (PyTorch's documentation, "CUDA Graphs").

A graph reads its inputs from tensors of its own, so these are copied there first, unless they are the same as for the
last call. Results are copied out again. Each graph belongs to one network and to the shapes, layouts and other
arguments of a call. It is captured at the first such call and compared with the operations one by one. If the results
differ, or it cannot be captured, these calls run without a graph for some requests, and then it is tried again.
"""

import itertools
import weakref
from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from controlnet.log import say
from controlnet.speedups.cuda.recorder import Recorder
from controlnet.speedups.kept import kept_with, renew

LARGEST = 2 * 128 * 128
"""Calls for more latents than these, over the whole batch, run without a graph: more than a picture of 1024×1024 pixels
with guidance, or four of 512×512. A GPU is busy with them anyway."""
MOST_BYTES = 1_000_000_000
"""Memory that the inputs and results of all graphs may take. Least recently used graphs are freed beyond it."""
MOST = 64
"""How many graphs there may be. Each also takes some main memory."""
AGAIN_AFTER = 20
"""How many requests later a call whose capture failed is captured again. A failure costs three calls of the network:
under a hundredth of those in 20 requests of 20 steps."""
HELD = 338 * 64 * LARGEST // 2
"""The most numbers that a network holds at once between its inputs and results: 338 for each pixel of a guided picture
(controlnet/models/low_memory.py). They are in one pool for all graphs."""
PLAIN = (bool, int, float, str, type(None), torch.dtype)
"""Types of arguments, besides tensors, whose representation says all about them."""
Tensors = Sequence[torch.Tensor]


def room(dtype: torch.dtype) -> int:
    """Bytes of GPU memory that graphs may take, for networks in `dtype`."""
    return MOST_BYTES + HELD * dtype.itemsize


def open_graphs(device: torch.device) -> "Graphs | None":
    """Graphs for a device, or None if it has none."""
    if device.type != "cuda" or not torch.cuda.is_available():
        return None
    try:
        return Graphs(device)
    except RuntimeError as error:
        say(f"CUDA graphs: this GPU captures none, so requests take longer: {error}")
        return None


class Graphs:
    """The graphs of all networks. `of()` gives a network as a function that uses them."""

    def __init__(self, device: torch.device, most_bytes: int = MOST_BYTES) -> None:
        self._recorder = Recorder(device)
        self._most_bytes = most_bytes
        self._clock = itertools.count()
        self._is_full = False
        self._request = 0
        # A graph has the addresses of its network's weights, so it goes with the network.
        self._captured: weakref.WeakKeyDictionary[nn.Module, dict[Hashable, Captured | int]]
        """The graph of each call, or the number of the request that tries again to capture it."""
        self._captured = weakref.WeakKeyDictionary()

    def recover(self) -> None:
        """End a capture that cancellations have interrupted. Nothing may run on the GPU before."""
        self._recorder.recover()

    def begin(self) -> None:
        """Begin a request."""
        self.recover()
        self._is_full = False
        self._request += 1

    def of(self, network: Any, place: int = 0) -> Any:
        """The network as a Graphed, for one request. Its layers must stay as they are until the request ends.

        A network that a request uses twice has graphs for each `place`, so each keeps what belongs to its own inputs.
        """
        return Graphed(network, self, place)

    def run(self, network: nn.Module, given: "CallArguments", place: int = 0, scale: float = 1.0) -> Any:
        """The network's result for these arguments, times `scale`."""
        graph = self._graph(network, given, place) if given.fits else None
        if graph is None:
            return _times(given.call(network, given.tensors), scale)
        is_new, graph.used = graph.used is None, next(self._clock)
        if is_new:
            self._free()
        return graph.replay(given.tensors, scale)

    def _graph(self, network: nn.Module, given: "CallArguments", place: int) -> "Captured | None":
        own, key = self._captured.setdefault(network, {}), (place, given.key)
        graph = own.get(key, self._request)
        if isinstance(graph, int) and graph <= self._request and not self._is_full:
            graph = own[key] = self._capture(network, given)
        return graph if isinstance(graph, Captured) else None

    def _capture(self, network: nn.Module, given: "CallArguments") -> "Captured | int":
        """The graph of a call. If it has to run without one: the number of the request that tries again."""
        name, later = type(network).__name__, f"without for {AGAIN_AFTER} requests"
        try:
            captured = Captured(network, given, self._recorder)
            if captured.agrees():
                return captured
            say(f"CUDA graphs: the results of a {name} differ, so it runs {later}")
        except torch.OutOfMemoryError:
            self._is_full = True
            say(f"CUDA graphs: no memory for that of a {name}, so it runs {later}, and this request without new ones")
            torch.cuda.empty_cache()
        except RuntimeError as error:
            say(f"CUDA graphs: {name} cannot be captured, so it runs {later}: {error}")
        return self._request + AGAIN_AFTER

    def _free(self) -> None:
        """Free the least recently used graphs beyond the limits."""
        own = [
            (graph.used, graph.nbytes, graphs, key)
            for graphs in self._captured.values()
            for key, graph in graphs.items()
            if isinstance(graph, Captured)
        ]
        own.sort(key=lambda each: each[0] or 0)
        size = sum(nbytes for _, nbytes, _, _ in own)
        while len(own) > MOST or (size > self._most_bytes and len(own) > 1):
            _, nbytes, graphs, key = own.pop(0)
            size -= nbytes
            del graphs[key]


class Graphed:
    """A network whose calls are replayed from graphs. Everything else is the network's own."""

    def __init__(self, network: Any, graphs: Graphs, place: int) -> None:
        self.network, self._graphs, self._place = network, graphs, place

    def __getattr__(self, name: str) -> Any:
        return getattr(self.network, name)

    def __call__(self, *args: Any, conditioning_scale: float | list[float] | None = None, **named: Any) -> Any:
        """As the network. A ControlNet's scale is not part of the graph, which would always use the first one.

        The shares that a union's maps have in one call are, so other shares have another graph.
        """
        if isinstance(conditioning_scale, list):
            named["conditioning_scale"] = conditioning_scale
            conditioning_scale = None
        if conditioning_scale is None:
            return self._graphs.run(self.network, CallArguments(args, named), self._place)
        given = CallArguments(args, {**named, "conditioning_scale": 1.0})
        return self._graphs.run(self.network, given, self._place, conditioning_scale)


class CallArguments:
    """The arguments of a call, as tensors and the rest."""

    def __init__(self, args: Sequence[Any], named: Mapping[str, Any]) -> None:
        self.tensors: list[torch.Tensor] = []
        self._is_plain = True
        self._args = [self._split(value) for value in args]
        self._named = {name: self._split(value) for name, value in named.items()}
        layouts = tuple((tensor.shape, _strides(tensor), tensor.dtype) for tensor in self.tensors)
        self.key: Hashable = (repr(self._args), repr(self._named), layouts)

    @property
    def fits(self) -> bool:
        """Whether there may be a graph for the call: of a size that it serves, and of arguments that its key names."""
        return self._is_plain and self._latents <= LARGEST

    @property
    def _latents(self) -> int:
        """How many there are in the whole batch. The first tensor is (B, C, h, w), or one half of a guided batch."""
        return max(len(tensor) for tensor in self.tensors if tensor.ndim) * self.tensors[0].shape[-2:].numel()

    def call(self, network: Any, tensors: Tensors) -> Any:
        """The network's result for other tensors in the same places."""
        args = [self._join(value, tensors) for value in self._args]
        return network(*args, **{name: self._join(value, tensors) for name, value in self._named.items()})

    def _split(self, value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            # Time steps are whole numbers for some samplers only. The networks take them as float32.
            self.tensors.append(value if value.ndim else value.float())
            return _Place(len(self.tensors) - 1)
        if isinstance(value, Mapping):  # in an order of its own, so that of its items does not matter
            return {name: self._split(value[name]) for name in sorted(value, key=repr)}
        if isinstance(value, list | tuple):
            return [self._split(each) for each in value]
        self._is_plain &= isinstance(value, PLAIN)
        return value

    def _join(self, value: Any, tensors: Tensors) -> Any:
        if isinstance(value, _Place):
            return tensors[value]
        if isinstance(value, dict):
            return {name: self._join(each, tensors) for name, each in value.items()}
        return [self._join(each, tensors) for each in value] if isinstance(value, list) else value


def _strides(tensor: torch.Tensor) -> tuple[int, ...]:
    """Those of a copy. A part of a picture has the strides of the whole, its copy does not."""
    if tensor.is_contiguous() or (tensor.ndim == 4 and tensor.is_contiguous(memory_format=torch.channels_last)):
        return tensor.stride()
    return torch.empty_like(tensor, device="meta").stride()


class _Place(int):
    """The place of a tensor in a list."""

    def __repr__(self) -> str:
        return f"tensor {int(self)}"


class Captured:
    """One graph, with the tensors that it reads and writes."""

    used: int | None = None
    """When it was last replayed, as the number of a call."""

    def __init__(self, network: nn.Module, given: CallArguments, recorder: Recorder) -> None:
        """Raises OutOfMemoryError, and RuntimeError for an operation that cannot be captured."""
        self._inputs = inputs = [tensor.to(recorder.device).clone() for tensor in given.tensors]
        self._sources: list[tuple[weakref.ref[torch.Tensor], int] | None] = [None] * len(inputs)
        self._graph, self._made, expected = recorder.capture(lambda: given.call(network, inputs))
        self._expected: list[torch.Tensor] | None = [tensor.clone() for tensor in _flat(expected)]
        self._outputs = _flat(self._made)
        kept = [result for tensor in inputs for result in kept_with(tensor)]
        self.nbytes = sum(tensor.nbytes for tensor in (*inputs, *self._outputs, *kept))

    def agrees(self) -> bool:
        """Whether the graph gives what the operations gave one by one. To be asked once, before the first replay."""
        expected, self._expected = self._expected or [], None
        self._graph.replay()
        return all(map(_same, self._outputs, expected))

    def replay(self, tensors: Tensors, scale: float) -> Any:
        """The result for these tensors, times `scale`. It is a copy: another graph may write to the pool's memory."""
        self._read(tensors)
        self._graph.replay()
        return _times(self._made, scale)

    def _read(self, tensors: Tensors) -> None:
        changed = [
            i for i, (tensor, source) in enumerate(zip(tensors, self._sources, strict=True)) if not _is(source, tensor)
        ]
        for i in changed:
            self._sources[i] = None  # a request that is cancelled from here on must not leave a part
        here = [i for i in changed if tensors[i].device == self._inputs[i].device]
        if here:
            torch._foreach_copy_([self._inputs[i] for i in here], [tensors[i] for i in here])
        for i in changed:
            if tensors[i].device != self._inputs[i].device:  # a time step, which the GPU need not be waited for
                self._inputs[i].copy_(tensors[i], non_blocking=True)
            renew(self._inputs[i])
            self._sources[i] = weakref.ref(tensors[i]), tensors[i]._version


def _is(source: tuple[weakref.ref[torch.Tensor], int] | None, tensor: torch.Tensor) -> bool:
    """Whether a tensor is the one that was copied last, and was not changed in place since."""
    return source is not None and source[0]() is tensor and source[1] == tensor._version


def _same(made: torch.Tensor, other: torch.Tensor) -> bool:
    return bool(((made == other) | (made.isnan() & other.isnan())).all())


def _times(result: Any, scale: float) -> Any:
    """New tensors in place of those of a result."""
    return _like(result, iter(torch._foreach_mul(_flat(result), scale)))


def _flat(result: Any) -> list[torch.Tensor]:
    """The tensors of a result: one, None, or any of these in lists, tuples and dicts."""
    if result is None or isinstance(result, torch.Tensor):
        return [] if result is None else [result]
    return [tensor for each in (result.values() if isinstance(result, dict) else result) for tensor in _flat(each)]


def _like(result: Any, tensors: Iterator[torch.Tensor]) -> Any:
    """A result with other tensors."""
    if result is None or isinstance(result, torch.Tensor):
        return None if result is None else next(tensors)
    if isinstance(result, dict):  # of diffusers' own classes, too
        return type(result)(**{name: _like(each, tensors) for name, each in result.items()})
    return tuple(_like(each, tensors) for each in result)
