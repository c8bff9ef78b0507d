"""A CUDA device that is only pretended: tensors that say cuda:0 and compute on the CPU.

Inside `pretended_cuda()`, `.to("cuda")` and `device="cuda"` give such tensors, on a machine without a GPU. Code that
takes its device as an argument then runs as on a GPU, with all values.

What it shows:
- No operation mixes devices. An operation of a CUDA tensor and a CPU tensor raises MixedDevices. Exceptions are the
  transfers (`.to`, `.cpu`, `copy_`), and CPU tensors without dimensions, which PyTorch takes for numbers. PyTorch also
  lets a CPU tensor index a CUDA one. That raises here, because it makes the CPU wait for the GPU.
- Nothing gives a CUDA tensor to NumPy: PyTorch itself refuses that.
- Dtypes fit. Operations in float16 really compute in float16, so PyTorch refuses float16 next to float32. On the CPU
  normalisation layers may mix the two. On CUDA they may not, so that raises MixedDtypes.

What it cannot show:
- That CUDA has a kernel for an operation, or that the kernel is right, fits into memory or is fast.
- Anything about streams and page-locked memory. Every transfer is complete when it returns.
- What code does that asks torch.cuda, such as `torch.cuda.is_available()`.
- Threads: PyTorch keeps its modes per thread. So loading.in_parallel moves one tensor after the other here.

PyTorch's FakeTensorMode is similar, but its tensors have no values. So it cannot run a sampler, which reads values, or
anything that ends in a picture. It can run networks of full size (tests/generation/test_fake_gpu.py).
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from controlnet.models import loading

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
aten = torch.ops.aten
NORMS = {
    operation.default
    for operation in (aten.layer_norm, aten.native_layer_norm, aten.group_norm, aten.native_group_norm)
}
WHOLE = {functional.scaled_dot_product_attention, functional.batch_norm}
"""Functions that ask the GPU which implementation to use. They run on the CPU as if they were one operation."""
SET_DATA = torch.Tensor.data.__set__  # type: ignore[attr-defined]


class MixedDevices(RuntimeError):
    """An operation got tensors of both devices."""


class MixedDtypes(RuntimeError):
    """A normalisation layer got tensors of several precisions."""


class PretendedTensor(torch.Tensor):
    """A tensor that says cuda:0. Its numbers are in the CPU tensor `values`."""

    values: torch.Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, values: torch.Tensor) -> "PretendedTensor":
        layout = {"strides": values.stride(), "storage_offset": values.storage_offset(), "dtype": values.dtype}
        with torch.inference_mode(False):  # a view of a weight cannot be an inference tensor
            made = torch.Tensor._make_wrapper_subclass(cls, values.size(), **layout, device=CUDA)
        made.values = values
        return made

    @classmethod
    def __torch_dispatch__(cls, operation: Any, *_: Any) -> Any:
        raise RuntimeError(f"{operation}: a pretended tensor outside of pretended_cuda(), or in another thread.")

    def __repr__(self) -> str:
        return f"PretendedTensor({self.values})"


class Operations(TorchDispatchMode):
    """Runs every operation on the CPU, after a check of devices and dtypes."""

    # PyTorch does not initialise CUDA while a mode with this key is active. It made the key for FakeTensorMode.
    _mode_key = torch._C._TorchDispatchModeKey.FAKE

    def __init__(self) -> None:
        super().__init__()
        self.count = 0
        """How many operations had a tensor on the pretended GPU."""
        self.uploads = 0
        """How many tensors were moved to it, not counting numbers."""

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if operation is aten.to.device:  # in inference mode; with the device among args
            with self:
                return operation.decompose(*args, **kwargs)
        from_gpu = PretendedTensor in types
        device = kwargs.get("device")  # of the result, in transfers and in operations that make new tensors
        to_gpu = from_gpu if device is None else torch.device(device).type == "cuda"
        if not from_gpu and not to_gpu:
            return operation(*args, **kwargs)
        self.count += 1
        given = tensors(args, kwargs)
        if operation is aten.copy_.default:
            to_gpu = isinstance(args[0], PretendedTensor)
        else:
            check(operation, given, numbers=torch.Tag.pointwise in operation.tags)
        self.uploads += to_gpu and any(x.ndim and not isinstance(x, PretendedTensor) for x in given)
        if device is not None and to_gpu:
            kwargs = kwargs | {"device": CPU}
        result = operation(*map(on_cpu, args), **{name: on_cpu(value) for name, value in kwargs.items()})
        if device is not None and from_gpu != to_gpu:
            result = result.clone()  # devices share no memory
        return on_gpu(result, given) if to_gpu else result


class Functions(TorchFunctionMode):
    """The few functions of PyTorch that look at the GPU or at the memory of a tensor without an operation."""

    def __init__(self, operations: Operations) -> None:
        super().__init__()
        self.operations = operations

    def __torch_function__(self, function: Callable, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function == SET_DATA:
            return _set_data(*args)
        if function is torch.Tensor.tolist:
            return function(args[0].cpu())
        if function in WHOLE and is_pretended(given := tensors(args, kwargs)):
            self.operations.count += 1
            check(function.__name__, given, numbers=False)
            result = function(*map(on_cpu, args), **{name: on_cpu(value) for name, value in kwargs.items()})
            return PretendedTensor(result)
        return function(*args, **kwargs)


def check(operation: Any, given: list[torch.Tensor], numbers: bool) -> None:
    """Raise MixedDevices or MixedDtypes if PyTorch does not run this on a GPU, or only with a wait.

    `numbers`: whether a CPU tensor without dimensions is allowed.
    """
    if not is_pretended(given):
        return
    cpu = [tensor for tensor in given if not isinstance(tensor, PretendedTensor)]
    if any(tensor.ndim or not numbers for tensor in cpu):
        places = ", ".join(f"{tuple(tensor.shape)} on {tensor.device.type}" for tensor in given)
        raise MixedDevices(f"{operation} got tensors of both devices: {places}")
    if operation in NORMS and len(dtypes := {str(tensor.dtype) for tensor in given}) > 1:
        raise MixedDtypes(f"{operation} got {' and '.join(sorted(dtypes))}")


def tensors(args: Any, kwargs: Mapping[str, Any]) -> list[torch.Tensor]:
    """The tensors among an operation's arguments, which are tensors, lists of tensors, and other values."""
    found: list[torch.Tensor] = []
    for argument in (*args, *kwargs.values()):
        leaves = argument if isinstance(argument, list | tuple) else [argument]
        found += [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
    return found


def is_pretended(given: list[torch.Tensor]) -> bool:
    """Whether any of the tensors is on the pretended GPU."""
    return any(isinstance(tensor, PretendedTensor) for tensor in given)


def on_cpu(argument: Any) -> Any:
    """An argument with the CPU tensors behind the pretended ones."""
    if isinstance(argument, list | tuple):
        return type(argument)(map(on_cpu, argument))
    return argument.values if isinstance(argument, PretendedTensor) else argument


def on_gpu(result: Any, given: list[torch.Tensor]) -> Any:
    """What an operation returned, as pretended tensors. An operation in place returns the tensor that it was given."""
    if isinstance(result, list | tuple):
        return type(result)(on_gpu(leaf, given) for leaf in result)
    if not isinstance(result, torch.Tensor):
        return result
    same = next((tensor for tensor in given if on_cpu(tensor) is result), None)
    assert same is None or same.shape == result.shape, "a change of shape in place is not pretended"
    return PretendedTensor(result) if same is None else same


def _set_data(tensor: torch.Tensor, new: torch.Tensor) -> None:
    """`tensor.data = new`. Of a pretended tensor PyTorch would only take over the shape and the device."""
    if not is_pretended([tensor, new]):
        SET_DATA(tensor, new)
    else:
        parameter = isinstance(tensor, torch.nn.Parameter)
        torch.utils.swap_tensors(tensor, torch.nn.Parameter(new, tensor.requires_grad) if parameter else new)


class OneAfterTheOther:
    """In place of a pool of threads."""

    def __init__(self, threads: int) -> None:
        pass

    def __enter__(self) -> "OneAfterTheOther":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    map = staticmethod(map)


@contextmanager
def pretended_cuda() -> Iterator[Operations]:
    """Pretend for this thread that there is a CUDA device. Yields the mode, which counts operations."""
    before = torch._C._only_lift_cpu_tensors()
    # Both as in FakeTensorMode. With the first, torch.tensor(…, device="cuda") is a transfer that the mode sees. With
    # the second, "cuda" stands for cuda:0 and no driver is asked.
    torch._C._set_only_lift_cpu_tensors(True)
    torch._C._ensureCUDADeviceGuardSet()
    operations = Operations()
    try:
        with mock.patch.object(loading, "ThreadPoolExecutor", OneAfterTheOther), Functions(operations), operations:
            yield operations
    finally:
        torch._C._set_only_lift_cpu_tensors(before)
