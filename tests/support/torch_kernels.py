"""The kernels for a GPU (controlnet/speedups/cuda/kernels.py) in PyTorch's own operations, for any device."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import torch
import torch.nn.functional as F
from torch import nn

from controlnet.speedups.cuda import kernels
from controlnet.speedups.cuda.kernels import Form


class TorchKernels:
    """What each kernel computes, in float64, rounded once. It also checks what a kernel takes for granted."""

    def __init__(self) -> None:
        self.launched: Counter[Form] = Counter()

    def times(self, kernel: str) -> int:
        """How often a kernel was launched in any form."""
        return sum(times for form, times in self.launched.items() if form.kernel == kernel)

    def group_norm(
        self, x: torch.Tensor, norm: nn.GroupNorm, added: torch.Tensor | None = None, silu: bool = False
    ) -> torch.Tensor:
        self.launched[Form("group_norm", x.shape[1], norm.eps, norm.num_groups, added is not None, silu)] += 1
        assert x.is_contiguous(memory_format=torch.channels_last) and x.shape[1] % 8 == 0
        given = x.double()
        if added is not None:
            assert added.shape == x.shape[:2] and added.is_contiguous()
            given = given + added.double()[:, :, None, None]
        made = F.group_norm(given, norm.num_groups, norm.weight.double(), norm.bias.double(), norm.eps)
        return (F.silu(made) if silu else made).to(x.dtype).contiguous(memory_format=torch.channels_last)

    def layer_norm(
        self, norm: nn.LayerNorm, a: torch.Tensor, b: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        self.launched[Form("layer_norm", a.shape[-1], norm.eps, added=b is not None)] += 1
        assert a.is_contiguous() and (b is None or (b.is_contiguous() and b.shape == a.shape))
        total = a if b is None else a + b
        made = F.layer_norm(total.double(), norm.normalized_shape, norm.weight.double(), norm.bias.double(), norm.eps)
        return total, made.to(a.dtype)

    def add_bias(self, a: torch.Tensor, b: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        self.launched[Form("add_bias", len(bias))] += 1
        assert all(each.is_contiguous(memory_format=torch.channels_last) for each in (a, b)) and a.shape == b.shape
        return (a.double() + b.double() + bias.double()[:, None, None]).to(a.dtype)

    def gated_gelu(self, x: torch.Tensor) -> torch.Tensor:
        self.launched[Form("gated_gelu", x.shape[-1] // 2)] += 1
        assert x.is_contiguous()
        states, gate = x.double().chunk(2, -1)
        return (states * F.gelu(gate)).to(x.dtype)


@contextmanager
def torch_kernels(dtype: torch.dtype = torch.float32, device: str = "cpu") -> Iterator[TorchKernels]:
    """Inside, these kernels are ready for tensors of a dtype and a device."""
    made = TorchKernels()
    with mock.patch.dict(kernels.READY, {(torch.device(device), dtype): made}):
        yield made
