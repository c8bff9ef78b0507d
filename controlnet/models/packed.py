"""A packed model: all its tensors are in one block of memory, so it is copied to the GPU in one transfer."""

import copy
import math
import mmap
import weakref
from collections.abc import Sequence
from typing import Any, Generic, NamedTuple, TypeVar

import torch

from controlnet.models.loading import in_parallel

ALIGNMENT = 512
"""Bytes; PyTorch aligns tensors on a GPU to this.

Some kernels are chosen by alignment, and an equal result needs the same kernels.
"""
Model = TypeVar("Model", bound=torch.nn.Module)


class PinningError(RuntimeError):
    """Main memory could not be pinned."""


class _Place(NamedTuple):
    """The place of a tensor in the buffer."""

    start: int
    """Offset in bytes, a multiple of ALIGNMENT."""
    stop: int
    dtype: torch.dtype
    shape: torch.Size
    channels_last: bool
    """Whether a tensor of four dimensions, (out, in, height, width), has `in` last in memory."""


class Packed(Generic[Model]):
    """A model whose tensors are all in one buffer in main memory, the floating-point ones in `dtype`."""

    def __init__(self, model: Model, dtype: torch.dtype, pinned: bool = False, channels_last: bool = False) -> None:
        """Move the tensors of `model` into a buffer. The model itself is changed; mapped tensors are not held twice.

        `channels_last` is the order of the weights of convolutions in memory (torch.channels_last).
        A `pinned` buffer is page-locked, so the GPU can fetch it at the full speed of the bus. Raises PinningError.
        """
        tensors = tensors_of(model)
        self.model = model
        self.places = _places(tensors, dtype, channels_last)
        self.buffer = main_memory(self.places[-1].stop if self.places else 0)
        if pinned:
            _pin(self.buffer)
            # Unlock before the memory is freed. Otherwise the driver would hold a lock on memory with another owner.
            weakref.finalize(self, _unpin, self.buffer.data_ptr()).atexit = False
        moved = dict(zip(map(id, tensors), _views(self.buffer, self.places), strict=True))
        in_parallel(lambda tensor: moved[id(tensor)].copy_(tensor.data), tensors)
        for tensor in tensors:
            tensor.data = moved[id(tensor)]

    def on(self, device: torch.device | str) -> Model:
        """A copy of the model on a device, equal bit for bit, in one new buffer. It is complete when this returns."""
        buffer = self.buffer.to(device, non_blocking=True, copy=True)
        model = with_tensors(self.model, _views(buffer, self.places))  # while the bytes are being transferred
        if buffer.is_cuda:
            torch.cuda.current_stream(buffer.device).synchronize()
        return model


def with_tensors(model: Model, tensors: Sequence[torch.Tensor]) -> Model:
    """A copy of a model with `tensors` in place of tensors_of(model). The replaced ones are not copied or changed."""
    # deepcopy does not copy what it finds in its memo.
    memo: dict[int, Any] = {
        id(old): torch.nn.Parameter(new, requires_grad=False) if isinstance(old, torch.nn.Parameter) else new
        for old, new in zip(tensors_of(model), tensors, strict=True)
    }
    return copy.deepcopy(model, memo)


def shared_copy(model: Model) -> Model:
    """A copy of a model that shares all its tensors. Its modules are others, so the model itself never changes."""
    return with_tensors(model, [tensor.detach() for tensor in tensors_of(model)])


def tensors_of(model: torch.nn.Module) -> list[torch.Tensor]:
    """All parameters and buffers. A tensor that layers share appears once."""
    return [*model.parameters(), *model.buffers()]


def main_memory(size: int) -> torch.Tensor:
    """A uint8 tensor of `size` zeros that starts on a page and shares no page with other memory."""
    # PyTorch 2.10's pin_memory=True would round the size up to a power of two: 1.07 GB for a ControlNet of 0.72 GB. A
    # page that two buffers share could not be locked twice.
    pages = mmap.mmap(-1, max(size, 1), mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return torch.frombuffer(pages, dtype=torch.uint8)[:size]


def _places(tensors: Sequence[torch.Tensor], dtype: torch.dtype, channels_last: bool) -> list[_Place]:
    places, start = [], 0
    for tensor in tensors:
        packed_dtype = dtype if tensor.is_floating_point() else tensor.dtype
        stop = start + tensor.numel() * packed_dtype.itemsize
        places.append(_Place(start, stop, packed_dtype, tensor.shape, channels_last and tensor.ndim == 4))
        start = math.ceil(stop / ALIGNMENT) * ALIGNMENT
    return places


def _views(buffer: torch.Tensor, places: Sequence[_Place]) -> list[torch.Tensor]:
    return [_view(buffer[place.start : place.stop].view(place.dtype), place) for place in places]


def _view(numbers: torch.Tensor, place: _Place) -> torch.Tensor:
    if not place.channels_last:
        return numbers.view(place.shape)
    out, into, height, width = place.shape
    return numbers.view(out, height, width, into).permute(0, 3, 1, 2)


def _pin(buffer: torch.Tensor) -> None:
    cudart: Any = torch.cuda.cudart()
    if status := int(cudart.cudaHostRegister(buffer.data_ptr(), buffer.nbytes, 0)):
        raise PinningError(
            f"Low-memory mode could not lock {buffer.nbytes / 1e9:.2f} GB of main memory for a ControlNet (CUDA error "
            f"{status}). All ControlNets have to fit into main memory: give the container more memory, or set "
            "CONTROLNET_LOW_MEMORY=0."
        )


def _unpin(address: int) -> None:
    cudart: Any = torch.cuda.cudart()
    cudart.cudaHostUnregister(address)
