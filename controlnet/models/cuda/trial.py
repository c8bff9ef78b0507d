"""A trial of the kernels at setup, next to PyTorch's operations in float32.

They have run on one kind of GPU only. On another one, or with another compiler, wrong results would be wrong pictures.
"""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import nn

from controlnet.models.cuda.kernels import HALVES, READY, CompilationError, Kernels

MOST = {torch.float16: 4e-4, torch.bfloat16: 3e-3}
"""The largest error of a result, as a share of it: less than a unit in the last place of its numbers (2^-11, 2^-8)."""


Result = tuple[str, torch.Tensor, torch.Tensor]


class KernelFault(RuntimeError):
    """A kernel gives wrong results on this GPU."""


def prepare_kernels(device: torch.device, dtype: torch.dtype) -> None:
    """Compile the kernels and try them. From then on kernels_for() has them.

    Raises CompilationError, KernelFault, and RuntimeError if cuda-bindings does not find a library.
    """
    if dtype not in HALVES:
        raise CompilationError(f"there are kernels for float16 and bfloat16 only, not for {dtype}")
    numbered = torch.empty(0, device=device).device  # cuda:0 for cuda, as tensors say it
    kernels = Kernels(numbered, dtype)
    try_kernels(kernels, numbered, dtype)
    READY[numbered, dtype] = kernels


@torch.no_grad()
def try_kernels(kernels: Kernels, device: torch.device, dtype: torch.dtype) -> None:
    """Run each kernel on random numbers. Raises KernelFault, and RuntimeError if one cannot run."""
    generator = torch.Generator().manual_seed(0)

    def numbers(*shape: int, mean: float = 1.0) -> torch.Tensor:
        return (torch.randn(shape, generator=generator) * 2 + mean).to(device, dtype)

    for name, made, expected in _results(kernels, numbers):
        error = float((made.float() - expected).norm() / expected.norm())
        if not error <= MOST[dtype]:  # also if it is no number
            raise KernelFault(f"{name} is {error:.1e} from PyTorch's result in float32, more than {MOST[dtype]:.0e}")


def _results(kernels: Kernels, numbers: Callable[..., torch.Tensor]) -> Iterator[Result]:
    """Of each kernel: its name, its result, and PyTorch's in float32."""
    channels, groups = 320, 32
    weight, bias, added = numbers(channels), numbers(channels), numbers(2, channels)
    x, y = (numbers(2, channels, 9, 7, mean=50.0).contiguous(memory_format=torch.channels_last) for _ in range(2))
    group_norm, layer_norm = nn.GroupNorm(groups, channels), nn.LayerNorm(channels)
    for norm in (group_norm, layer_norm):
        norm.weight, norm.bias = nn.Parameter(weight), nn.Parameter(bias)
    given = x.float() + added.float()[:, :, None, None]
    expected = F.group_norm(given, groups, weight.float(), bias.float(), group_norm.eps)
    yield "group_norm", kernels.group_norm(x, group_norm, added, silu=True), F.silu(expected)
    yield "add_bias", kernels.add_bias(x, y, bias), x.float() + y.float() + bias.float()[:, None, None]
    a, b = numbers(3, 7, channels), numbers(3, 7, channels)
    total, made = kernels.layer_norm(layer_norm, a, b)
    yield "the sum of layer_norm", total, (a + b).float()
    yield "layer_norm", made, F.layer_norm(total.float(), (channels,), weight.float(), bias.float(), layer_norm.eps)
    states, gate = a.float().chunk(2, -1)
    yield "gated_gelu", kernels.gated_gelu(a), states * F.gelu(gate)
