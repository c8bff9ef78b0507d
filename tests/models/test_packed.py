"""Packed models: one buffer, equal copies, an unchanged packed model, and its size in main memory only once."""

import gc
import json
import os
import struct
import weakref
from pathlib import Path

import pytest
import torch
from diffusers import ControlNetModel
from safetensors.torch import load_file
from support import memory
from torch import nn

from controlnet.models.loading import load_pretrained
from controlnet.models.packed import ALIGNMENT, Packed, PinningError, main_memory, tensors_of, with_tensors


def mixed() -> nn.Module:
    """Odd sizes, an integer buffer, a scalar and a tensor that two layers share."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Linear(5, 5), nn.Linear(5, 5)).eval()
    model[3].weight = model[2].weight
    model.register_parameter("scalar", nn.Parameter(torch.tensor(2.5)))
    model.register_buffer("nothing", torch.empty(0, 4))
    return model.requires_grad_(False)


def contents(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    same_form = all(a[name].dtype == b[name].dtype and a[name].shape == b[name].shape for name in a)
    return a.keys() == b.keys() and same_form and all(torch.equal(a[name].cpu(), b[name].cpu()) for name in a)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_packing_changes_only_the_precision(dtype: torch.dtype) -> None:
    expected = contents(mixed().to(dtype))
    packed = Packed(mixed(), dtype)
    assert equal(contents(packed.model), expected)
    assert equal(contents(packed.on("cpu")), expected)


def test_packed_tensors_are_aligned_in_one_buffer() -> None:
    packed = Packed(mixed(), torch.float16)
    for model, buffer in ((packed.model, packed.buffer), (copied := packed.on("cpu"), None)):
        tensors = [tensor for tensor in tensors_of(model) if tensor.numel()]
        (storage,) = {tensor.untyped_storage().data_ptr() for tensor in tensors}
        starts = [tensor.data_ptr() - storage for tensor in tensors]
        assert all(start % ALIGNMENT == 0 for start in starts) and len(set(starts)) == len(starts)
        assert buffer is None or storage == buffer.data_ptr()
    assert copied[3].weight is copied[2].weight, "a shared tensor is two"
    assert isinstance(copied[0].weight, nn.Parameter) and not copied[0].weight.requires_grad


def test_a_packed_copy_takes_one_transfer_and_shares_no_memory(monkeypatch) -> None:
    packed = Packed(mixed(), torch.float32)
    moved = []
    to = torch.Tensor.to
    monkeypatch.setattr(torch.Tensor, "to", lambda self, *args, **more: moved.append(self) or to(self, *args, **more))
    before, copied = contents(packed.model), packed.on("cpu")
    assert len(moved) == 1 and moved[0] is packed.buffer
    for tensor in tensors_of(copied):
        tensor.zero_()
    assert equal(contents(packed.model), before) and equal(contents(packed.on("cpu")), before)


def test_packed_copies_have_the_config_and_separate_modules(tiny_root: Path) -> None:
    packed = Packed(load_pretrained(ControlNetModel, tiny_root / "tiny/controlnet/canny", "cpu", None), torch.float32)
    first, second = packed.on("cpu"), packed.on("cpu")
    first.conv_in = nn.Identity()
    assert isinstance(second.conv_in, nn.Conv2d) and isinstance(packed.model.conv_in, nn.Conv2d)
    assert second.config == packed.model.config and second.dtype == torch.float32 and not second.training


def test_with_tensors_refuses_another_number_of_tensors() -> None:
    with pytest.raises(ValueError, match="zip"):
        with_tensors(mixed(), [])


def test_main_memory_has_the_exact_size_and_starts_on_a_page() -> None:
    for size in (0, 1, 5000):
        buffer = main_memory(size)
        assert buffer.dtype == torch.uint8 and buffer.shape == (size,)
        assert size == 0 or buffer.data_ptr() % 4096 == 0
    big = main_memory(3_000_001)
    assert big.untyped_storage().nbytes() == 3_000_001
    big.fill_(7)
    assert int(big.long().sum()) == 21_000_007


class Driver:
    """A stand-in for CUDA's runtime. It keeps what is locked and answers with a given status."""

    def __init__(self, status: int = 0) -> None:
        self.status = status
        self.locked: dict[int, int] = {}

    def cudaHostRegister(self, address: int, size: int, flags: int) -> int:
        self.locked[address] = size
        return self.status

    def cudaHostUnregister(self, address: int) -> None:
        del self.locked[address]


def test_pinned_memory_is_locked_whole_and_unlocked_before_free(monkeypatch) -> None:
    driver = Driver()
    monkeypatch.setattr(torch.cuda, "cudart", lambda: driver)
    Packed(mixed(), torch.float32)
    assert not driver.locked
    packed = Packed(mixed(), torch.float32, pinned=True)
    assert driver.locked == {packed.buffer.data_ptr(): packed.buffer.nbytes}
    locked_when_freed = []
    weakref.finalize(packed.buffer, lambda: locked_when_freed.append(dict(driver.locked)))
    del packed
    gc.collect()
    assert locked_when_freed == [{}] and not driver.locked


def test_memory_that_cannot_be_pinned_is_a_clear_error(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "cudart", lambda: Driver(status=2))
    model = mixed()
    before = contents(model)
    with pytest.raises(PinningError, match=r"could not lock 0\.00 GB .*CUDA error 2.*CONTROLNET_LOW_MEMORY=0"):
        Packed(model, torch.float32, pinned=True)
    assert equal(contents(model), before)


def mapped_linears(file: Path, count: int, side: int) -> nn.Module:
    """A model of `count` square layers of zeros, its tensors mapped from a file that is a hole and so costs nothing."""
    size = side * side * 4
    tensors = {
        f"{i}.weight": {"dtype": "F32", "shape": [side, side], "data_offsets": [i * size, (i + 1) * size]}
        for i in range(count)
    }
    header = json.dumps(tensors).encode()
    file.write_bytes(struct.pack("<Q", len(header)) + header)
    os.truncate(file, 8 + len(header) + count * size)
    with torch.device("meta"):
        model = nn.Sequential(*(nn.Linear(side, side, bias=False) for _ in range(count)))
    model.load_state_dict(load_file(file), assign=True)
    return model.requires_grad_(False)


@memory.needs_linux
def test_packing_a_mapped_model_takes_its_size_in_memory_once(tmp_path: Path) -> None:
    model = mapped_linears(tmp_path / "model.safetensors", count=16, side=1024)
    size = 16 * 4 * 2**20
    gc.collect()
    memory.reset_peak()
    anonymous, resident = memory.anonymous(), memory.resident()
    packed = Packed(model, torch.float32)
    assert 0.95 * size < memory.anonymous() - anonymous < 1.1 * size
    assert memory.peak() - resident < 2.2 * size, "more than the buffer and the pages of the file, at some moment"
    assert packed.buffer.nbytes == size


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_a_pinned_model_gives_equal_copies() -> None:
    packed = Packed(mixed(), torch.float16, pinned=True)
    assert packed.buffer.is_pinned()
    copied = packed.on("cuda")
    assert all(tensor.is_cuda for tensor in tensors_of(copied)) and equal(contents(copied), contents(packed.model))
