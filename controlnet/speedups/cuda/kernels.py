"""Kernels for a GPU that do at once what PyTorch does in several passes over memory (kernels.cu).

At batch sizes of 1 and 2, a step of Stable Diffusion spends more time on normalisation, activations, sums and changes
of layout than on products of matrices. With the channels last in memory, convolutions need no change of layout, but
PyTorch's group normalisation does. These kernels do not.

They are compiled by NVRTC, which comes with PyTorch, so the image needs no compiler. Their sums are added in a fixed
order, so equal inputs give equal bits.
"""

import ctypes
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from controlnet.log import say

SOURCE = Path(__file__).with_name("kernels.cu")
HALVES = {torch.float16: (), torch.bfloat16: (b"-DBF16",)}
"""The dtypes that there are kernels for, and the compiler's options for each."""
EIGHT = 8
"""A thread reads this many numbers, 16 bytes, at once."""
THREADS = 512
"""At most about this many threads in a block of the group normalisation."""
WARPS = 4
"""Rows of a block of the layer normalisation."""
LANES = 32
WIDTHS = (2, 3, 5)
"""There is a layer normalisation for rows of up to 256 times each of these."""
_POINTER, _INT, _LONG, _FLOAT = ctypes.c_void_p, ctypes.c_int, ctypes.c_longlong, ctypes.c_float
Argument = tuple[Any, Any]
"""A value and its type in C."""


class Form(NamedTuple):
    """What a kernel is asked for, apart from its numbers and how many there are."""

    kernel: str
    """The name of a method of Kernels."""
    channels: int
    """The width of what it gives. A normalisation also has:"""
    epsilon: float = 0.0
    groups: int = 0
    added: bool = False
    """Whether it is of a sum."""
    silu: bool = False
    """Whether SiLU follows."""


class CompilationError(RuntimeError):
    """The kernels could not be compiled for this GPU."""


READY: dict[tuple[torch.device, torch.dtype], "Kernels"] = {}
"""The kernels that are compiled, for tensors of a device and a dtype."""


def kernels_for(tensor: torch.Tensor) -> "Kernels | None":
    """The kernels for tensors like this one, if there are any."""
    return READY.get((tensor.device, tensor.dtype)) if READY else None


class Kernels:
    """The kernels for one device and dtype. Tensors with four dimensions have their channels last in memory."""

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        """Raises CompilationError."""
        major, minor = torch.cuda.get_device_capability(device)
        self._device = device
        self._processors = torch.cuda.get_device_properties(device).multi_processor_count
        torch.cuda.current_stream(device).synchronize()  # so PyTorch's context is this thread's
        self._functions = _load(compile_source(10 * major + minor, dtype))

    def group_norm(
        self, x: torch.Tensor, norm: nn.GroupNorm, added: torch.Tensor | None = None, silu: bool = False
    ) -> torch.Tensor:
        """norm(x + added), and then SiLU if `silu`. x is (N, C, H, W); added is (N, C) or None."""
        (count, channels, height, width), groups = x.shape, norm.num_groups
        pixels, across = height * width, channels // EIGHT
        down = max(1, THREADS // across)
        # Four pixels or more for each thread, and two blocks or fewer for each of the GPU's processors.
        parts = max(1, min(-(-pixels // (4 * down)), 2 * self._processors // count))
        rows = -(-pixels // (parts * down)) * down
        parts = -(-pixels // rows)
        sums = torch.empty(count, parts, groups, 2, device=x.device)
        out = torch.empty_like(x)
        grid, block = (parts, count), (across, down)
        sizes = [(pixels, _INT), (channels, _INT), (groups, _INT), (rows, _INT)]
        given = [_pointer(x), _pointer(added)]
        self._launch("group_sums", grid, block, [*given, _pointer(sums), *sizes], 2 * down * channels)
        slices = max(1, across * down // (2 * groups)) + 1
        parameters = [_pointer(sums), _pointer(norm.weight), _pointer(norm.bias), _pointer(out)]
        rest = [(parts, _INT), (int(silu), _INT), (norm.eps, _FLOAT)]
        shared = 2 * channels + 2 * groups * slices
        self._launch("group_normalise", grid, block, [*given, *parameters, *sizes, *rest], shared)
        return out

    def layer_norm(
        self, norm: nn.LayerNorm, a: torch.Tensor, b: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(a + b, norm(a + b)), or (a, norm(a)) without b. a and b are (..., C) and contiguous."""
        channels = a.shape[-1]
        rows = a.numel() // channels
        out, total = torch.empty_like(a), a if b is None else torch.empty_like(a)
        pointers = [_pointer(tensor) for tensor in (a, b, norm.weight, norm.bias, total, out)]
        most = next(each for each in WIDTHS if channels <= LANES * EIGHT * each)
        arguments = [*pointers, (rows, _INT), (channels, _INT), (norm.eps, _FLOAT)]
        self._launch(f"layer_norm_{most}", (-(-rows // WARPS), 1), (LANES, WARPS), arguments)
        return total, out

    def add_bias(self, a: torch.Tensor, b: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        """a + b + bias, with a and b (N, C, H, W) and bias (C,)."""
        out = torch.empty_like(a)
        self._each(out, "add_bias", [_pointer(a), _pointer(b), _pointer(bias), _pointer(out)], len(bias))
        return out

    def gated_gelu(self, x: torch.Tensor) -> torch.Tensor:
        """The first half of the last dimension times GELU of the second. x is contiguous."""
        width = x.shape[-1] // 2
        out = x.new_empty(*x.shape[:-1], width)
        self._each(out, "gated_gelu", [_pointer(x), _pointer(out)], width)
        return out

    def _each(self, out: torch.Tensor, name: str, pointers: Sequence[Argument], width: int) -> None:
        """Launch a kernel that computes each number of `out` for itself."""
        blocks = -(-out.numel() // (EIGHT * LANES * EIGHT))
        self._launch(name, (blocks, 1), (LANES * EIGHT, 1), [*pointers, (out.numel(), _LONG), (width, _INT)])

    def _launch(
        self, name: str, grid: tuple[int, int], block: tuple[int, int], arguments: Sequence[Argument], shared: int = 0
    ) -> None:
        """`shared` is the number of floats in shared memory."""
        driver = _driver()
        stream = torch.cuda.current_stream(self._device).cuda_stream
        given = tuple(zip(*arguments, strict=True))
        _check(driver.cuLaunchKernel(self._functions[name], *grid, 1, *block, 1, 4 * shared, stream, given, 0))


NAMES = ("group_sums", "group_normalise", "add_bias", "gated_gelu", *(f"layer_norm_{most}" for most in WIDTHS))


def compile_source(architecture: int, dtype: torch.dtype) -> bytes:
    """kernels.cu for GPUs of an `architecture`, such as 90 for compute capability 9.0. Raises CompilationError.

    It is machine code. For an architecture that NVRTC does not know, it is PTX for the next lower one that it knows,
    which the driver compiles when it is loaded.
    """
    try:
        from cuda.bindings import nvrtc  # type: ignore[attr-defined]
    except ImportError as error:
        raise CompilationError("the package cuda-bindings is not installed") from error
    (known,) = _check(nvrtc.nvrtcGetSupportedArchs())
    target = max((each for each in known if each <= architecture), default=architecture)
    as_ptx = target < architecture
    name = f"compute_{target}" if as_ptx else f"sm_{target}"
    if as_ptx:
        say(f"kernels: NVRTC knows no sm_{architecture}, so the driver compiles them from PTX of {name}")
    (program,) = _check(nvrtc.nvrtcCreateProgram(SOURCE.read_bytes(), SOURCE.name.encode(), 0, [], []))
    options = [f"--gpu-architecture={name}".encode(), *HALVES[dtype]]
    status, *_ = nvrtc.nvrtcCompileProgram(program, len(options), options)
    if status:
        (size,) = _check(nvrtc.nvrtcGetProgramLogSize(program))
        log = bytes(size)
        nvrtc.nvrtcGetProgramLog(program, log)
        said = log.decode(errors="replace").strip("\0\n ")
        raise CompilationError(f"{SOURCE.name} for {name}: {status.name} {said}")
    (size,) = _check((nvrtc.nvrtcGetPTXSize if as_ptx else nvrtc.nvrtcGetCUBINSize)(program))
    code = bytes(size)
    _check((nvrtc.nvrtcGetPTX if as_ptx else nvrtc.nvrtcGetCUBIN)(program, code))
    return code


def _load(code: bytes) -> dict[str, Any]:
    """The functions in machine code or PTX, by name."""
    driver = _driver()
    (module,) = _check(driver.cuModuleLoadData(code))
    return {name: _check(driver.cuModuleGetFunction(module, name.encode()))[0] for name in NAMES}


@cache
def _driver() -> Any:
    # Imported late, because a machine without a GPU has no driver.
    from cuda.bindings import driver  # type: ignore[attr-defined]

    return driver


def _check(result: Sequence[Any]) -> Sequence[Any]:
    """What a call returned after its status. Raises CompilationError if that is an error."""
    status, *values = result
    if status:
        raise CompilationError(f"{type(status).__name__} {status.name}")
    return values


def _pointer(tensor: torch.Tensor | None) -> Argument:
    return 0 if tensor is None else tensor.data_ptr(), _POINTER
