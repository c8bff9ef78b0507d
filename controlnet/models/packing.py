"""A model in one piece of memory, from which a copy for the GPU is made by moving that one piece."""

import copy
import math
import mmap
import weakref
from collections.abc import Sequence
from typing import Any, Generic, NamedTuple, TypeVar

import torch

from controlnet.models.loading import in_parallel

ALIGNMENT = 512
"""Bytes. PyTorch's own on a GPU: some kernels are chosen by it, and the same have to run, for the same result."""
Model = TypeVar("Model", bound=torch.nn.Module)


class PinningError(RuntimeError):
    """The system does not let main memory be locked in its place."""


class _Place(NamedTuple):
    """Where a tensor is in the buffer."""

    start: int
    """In bytes, a multiple of ALIGNMENT."""
    stop: int
    dtype: torch.dtype
    shape: torch.Size


class Packed(Generic[Model]):
    """A model whose tensors, floating-point ones in `dtype`, are all in one buffer in main memory."""

    def __init__(self, model: Model, dtype: torch.dtype, pinned: bool = False) -> None:
        """Move the tensors of `model` itself, wherever they are; of mapped ones nothing else is held in memory.

        `pinned`: the buffer is locked in its place, so that a GPU fetches it by itself, at the full speed of the bus.
        Raises PinningError.
        """
        tensors = tensors_of(model)
        self.model = model
        self.places = _places(tensors, dtype)
        self.buffer = main_memory(self.places[-1].stop if self.places else 0)
        if pinned:
            _pin(self.buffer)
            # Before the memory goes back to the system, which would leave the driver with a lock on somebody else's.
            weakref.finalize(self, _unpin, self.buffer.data_ptr()).atexit = False
        moved = dict(zip(map(id, tensors), _views(self.buffer, self.places), strict=True))
        in_parallel(lambda tensor: moved[id(tensor)].copy_(tensor.data), tensors)
        for tensor in tensors:
            tensor.data = moved[id(tensor)]

    def on(self, device: torch.device | str) -> Model:
        """A copy of the model on a device, equal bit for bit, in one new buffer there; ready when this returns."""
        buffer = self.buffer.to(device, non_blocking=True, copy=True)
        model = with_tensors(self.model, _views(buffer, self.places))  # while the bytes are on their way
        if buffer.is_cuda:
            torch.cuda.current_stream(buffer.device).synchronize()
        return model


def with_tensors(model: Model, tensors: Sequence[torch.Tensor]) -> Model:
    """A copy of a model with `tensors` in the place of tensors_of(model), which are not copied and stay as they are."""
    # A deep copy takes from its memo what is there.
    memo: dict[int, Any] = {
        id(old): torch.nn.Parameter(new, requires_grad=False) if isinstance(old, torch.nn.Parameter) else new
        for old, new in zip(tensors_of(model), tensors, strict=True)
    }
    return copy.deepcopy(model, memo)


def tensors_of(model: torch.nn.Module) -> list[torch.Tensor]:
    """Parameters and buffers, each once."""
    return [*model.parameters(), *model.buffers()]


def main_memory(size: int) -> torch.Tensor:
    """`size` bytes, uint8, zeros, on pages of their own."""
    # PyTorch's pin_memory=True would round it up to a power of two, in 2.10: 1.07 GB for a ControlNet's 0.72. And pages
    # that another allocation shares could not be locked twice.
    pages = mmap.mmap(-1, max(size, 1), mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return torch.frombuffer(pages, dtype=torch.uint8)[:size]


def _places(tensors: Sequence[torch.Tensor], dtype: torch.dtype) -> list[_Place]:
    places, start = [], 0
    for tensor in tensors:
        kind = dtype if tensor.is_floating_point() else tensor.dtype
        stop = start + tensor.numel() * kind.itemsize
        places.append(_Place(start, stop, kind, tensor.shape))
        start = math.ceil(stop / ALIGNMENT) * ALIGNMENT
    return places


def _views(buffer: torch.Tensor, places: Sequence[_Place]) -> list[torch.Tensor]:
    return [buffer[place.start : place.stop].view(place.dtype).view(place.shape) for place in places]


def _pin(buffer: torch.Tensor) -> None:
    cudart: Any = torch.cuda.cudart()
    if status := int(cudart.cudaHostRegister(buffer.data_ptr(), buffer.nbytes, 0)):
        raise PinningError(
            f"Low-memory mode could not lock {buffer.nbytes / 1e9:.2f} GB of main memory for a ControlNet (CUDA error "
            f"{status}). All ControlNets have to fit into it: give the container more, or set CONTROLNET_LOW_MEMORY=0."
        )


def _unpin(address: int) -> None:
    cudart: Any = torch.cuda.cudart()
    cudart.cudaHostUnregister(address)
