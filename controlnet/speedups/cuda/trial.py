"""A trial of the kernels at setup, next to PyTorch's operations in float64.

They have run on one kind of GPU only. On another one, or with another compiler, wrong results would be wrong pictures.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from controlnet.log import say
from controlnet.speedups.cuda.kernels import HALVES, READY, CompilationError, Form, Kernels
from controlnet.speedups.forms import kernel_forms

MOST = {torch.float16: 4e-4, torch.bfloat16: 3e-3}
"""The largest error of a result, as a share of it: less than a unit in the last place of its numbers (2^-11, 2^-8)."""
PICTURES = ((3, 3), (47, 33))
"""Height and width of what is normalised in groups: one part, and several (kernels.py), the last of them shorter."""
_NOT_USED = "kernels for this GPU are not used, so requests take longer"
Result = tuple[str, torch.Tensor, torch.Tensor]
"""A kernel's name, its result, and PyTorch's in float64: in float32 its group normalisation is less exact than ours."""
Numbers = Callable[..., torch.Tensor]
"""Takes a shape, and by name the mean of the random numbers."""


class KernelFault(RuntimeError):
    """A kernel gives wrong results on this GPU."""


def open_kernels(device: torch.device, dtype: torch.dtype) -> "TriedKernels | None":
    """The kernels for a device, or None if they cannot be compiled for it."""
    try:
        return TriedKernels(device, dtype)
    except RuntimeError as error:  # also what cuda-bindings raises if a library is missing
        say(f"{_NOT_USED}: {error}")
        return None


class TriedKernels:
    """The kernels for a device and a dtype, which kernels_for() has until one of them turns out to be wrong."""

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        """Compile them. Raises CompilationError, and RuntimeError if cuda-bindings does not find a library."""
        if dtype not in HALVES:
            raise CompilationError(f"there are kernels for float16 and bfloat16 only, not for {dtype}")
        self._for = torch.empty(0, device=device).device, dtype  # cuda:0 for cuda, as tensors say it
        READY[self._for] = Kernels(*self._for)
        self._tried: set[Form] = set()

    def serve(self, model: nn.Module) -> bool:
        """Whether they are right in each form that the model's layers use. If they ever were not, none is used.

        A model that they have served before keeps the layout of its weights then, which changes no picture.
        """
        if self._for not in READY:
            return False
        forms = kernel_forms(model) - self._tried
        try:
            try_kernels(READY[self._for], forms, *self._for)
        except RuntimeError as error:
            del READY[self._for]
            say(f"{_NOT_USED}: {error}")
            return False
        self._tried |= forms
        return True


@torch.no_grad()
def try_kernels(kernels: Any, forms: set[Form], device: torch.device, dtype: torch.dtype) -> None:
    """Run the kernels on random numbers in each form. Raises KernelFault, and RuntimeError if one cannot run."""
    generator = torch.Generator(device).manual_seed(0)

    def numbers(*shape: int, mean: float = 1.0) -> torch.Tensor:
        return (torch.randn(shape, generator=generator, device=device) * 2 + mean).to(dtype)

    for form in sorted(forms):
        for name, made, expected in _TRIALS[form.kernel](kernels, form, numbers):
            error = float((made.double() - expected).norm() / expected.norm())
            if not error <= MOST[dtype]:  # also if it is no number
                raise KernelFault(
                    f"{name} is {error:.1e} from PyTorch's result in float64, more than {MOST[dtype]:.0e}, as {form}"
                )


def _group_norm(kernels: Any, form: Form, numbers: Numbers) -> Iterator[Result]:
    norm = _with_numbers(nn.GroupNorm(form.groups, form.channels, form.epsilon), form, numbers)
    for size in PICTURES:
        x = _last(numbers(2, form.channels, *size, mean=50.0))
        added = numbers(2, form.channels) if form.added else None
        given = x.double() if added is None else x.double() + added.double()[:, :, None, None]
        expected = F.group_norm(given, form.groups, norm.weight.double(), norm.bias.double(), form.epsilon)
        yield "group_norm", kernels.group_norm(x, norm, added, form.silu), F.silu(expected) if form.silu else expected


def _layer_norm(kernels: Any, form: Form, numbers: Numbers) -> Iterator[Result]:
    norm = _with_numbers(nn.LayerNorm(form.channels, form.epsilon), form, numbers)
    a, b = numbers(3, 7, form.channels), numbers(3, 7, form.channels) if form.added else None
    total, made = kernels.layer_norm(norm, a, b)
    yield "the sum of layer_norm", total, (a if b is None else a + b).double()
    expected = F.layer_norm(total.double(), (form.channels,), norm.weight.double(), norm.bias.double(), form.epsilon)
    yield "layer_norm", made, expected


def _add_bias(kernels: Any, form: Form, numbers: Numbers) -> Iterator[Result]:
    x, y, bias = (*(_last(numbers(2, form.channels, 9, 7)) for _ in range(2)), numbers(form.channels))
    yield "add_bias", kernels.add_bias(x, y, bias), x.double() + y.double() + bias.double()[:, None, None]


def _gated_gelu(kernels: Any, form: Form, numbers: Numbers) -> Iterator[Result]:
    x = numbers(3, 7, 2 * form.channels)
    states, gate = x.double().chunk(2, -1)
    yield "gated_gelu", kernels.gated_gelu(x), states * F.gelu(gate)


def _with_numbers(norm: Any, form: Form, numbers: Numbers) -> Any:
    norm.weight, norm.bias = nn.Parameter(numbers(form.channels)), nn.Parameter(numbers(form.channels))
    return norm


def _last(x: torch.Tensor) -> torch.Tensor:
    return x.contiguous(memory_format=torch.channels_last)


_TRIALS = {"group_norm": _group_norm, "layer_norm": _layer_norm, "add_bias": _add_bias, "gated_gelu": _gated_gelu}
