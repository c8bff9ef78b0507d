"""Each kernel for GPUs next to PyTorch's operations in float32, on a CPU (tests/support/emulated_kernels.py)."""

import shutil
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from random_models import SMALL, build
from support.emulated_kernels import EmulatedKernels
from torch import nn

from controlnet.speedups.cuda.trial import KernelFault, try_kernels
from controlnet.speedups.forms import kernel_forms

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="g++ compiles the kernels")
LAST = torch.channels_last
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kernels")


@pytest.fixture(params=[torch.float16, torch.bfloat16], ids=str)
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param


@pytest.fixture
def kernels(folder: Path, dtype: torch.dtype):
    with torch.no_grad():
        yield EmulatedKernels(folder, dtype)


def numbers(*shape: int, dtype: torch.dtype, mean: float = 1.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return (torch.randn(shape, generator=generator) * 2 + mean).to(dtype)


def close(made: torch.Tensor, expected: torch.Tensor) -> bool:
    """Rounded once: a unit in the last place is 2^-11 or 2^-8 of a number."""
    most = {torch.float16: 4e-4, torch.bfloat16: 3e-3}[made.dtype]
    return bool((made.float() - expected).norm() <= most * expected.norm())


def group_norm(channels: int, groups: int, dtype: torch.dtype) -> nn.GroupNorm:
    torch.manual_seed(channels)
    norm = nn.GroupNorm(groups, channels, eps=1e-6).to(dtype)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    return norm


@pytest.mark.parametrize("added", [False, True])
@pytest.mark.parametrize(
    ("shape", "groups"),
    [((2, 320, 5, 7), 32), ((1, 64, 12, 12), 32), ((2, 960, 3, 3), 32), ((1, 2560, 2, 2), 32), ((3, 8, 1, 1), 4)],
    ids=str,
)
def test_group_norm(kernels: EmulatedKernels, dtype: torch.dtype, shape, groups: int, added: bool) -> None:
    norm, x = group_norm(shape[1], groups, dtype), numbers(*shape, dtype=dtype).contiguous(memory_format=LAST)
    plus = numbers(*shape[:2], dtype=dtype) if added else None
    given = x.float() + (plus.float()[:, :, None, None] if plus is not None else 0)
    expected = F.group_norm(given, groups, norm.weight.float(), norm.bias.float(), norm.eps)
    for silu in (False, True):
        made = kernels.group_norm(x, norm, plus, silu)
        assert made.is_contiguous(memory_format=LAST)
        assert close(made, F.silu(expected) if silu else expected)


def test_group_norm_in_more_blocks_than_slices(folder: Path) -> None:
    """Seven slices of threads add up the sums of nine blocks."""
    kernels, norm = EmulatedKernels(folder, torch.float16, processors=8), group_norm(320, 32, torch.float16)
    x = numbers(1, 320, 20, 20, dtype=torch.float16).contiguous(memory_format=LAST)
    expected = F.group_norm(x.float(), 32, norm.weight.float(), norm.bias.float(), norm.eps)
    assert close(kernels.group_norm(x, norm), expected)


@pytest.mark.parametrize("mean", [50.0, -300.0])
def test_group_norm_of_numbers_far_from_zero(kernels: EmulatedKernels, dtype: torch.dtype, mean: float) -> None:
    """The square of the mean is 600 to 20,000 times the variance: sums of squares alone would lose it."""
    norm = group_norm(64, 8, dtype)
    x = numbers(1, 64, 16, 16, dtype=dtype, mean=mean).contiguous(memory_format=LAST)
    expected = F.group_norm(x.double(), 8, norm.weight.double(), norm.bias.double(), norm.eps)
    assert close(kernels.group_norm(x, norm), expected.float())


def test_a_broken_number_is_not_hidden(kernels: EmulatedKernels, dtype: torch.dtype) -> None:
    x = numbers(1, 16, 4, 4, dtype=dtype).contiguous(memory_format=LAST)
    x[0, 9, 2, 1] = torch.nan
    made = kernels.group_norm(x, group_norm(16, 2, dtype))
    assert made[0, 8:].isnan().all() and made[0, :8].isfinite().all()


FORMS = kernel_forms(build("unet", SMALL).eval())


def test_the_trial_at_setup_passes(kernels: EmulatedKernels, dtype: torch.dtype) -> None:
    try_kernels(kernels, FORMS, CPU, dtype)


@pytest.mark.parametrize("name", ["group_norm", "add_bias", "layer_norm", "gated_gelu"])
@pytest.mark.parametrize("factor", [1.001, torch.nan])
def test_a_wrong_result_is_found_at_setup(folder: Path, monkeypatch, name: str, factor: float) -> None:
    kernels = EmulatedKernels(folder, torch.float16)
    right = getattr(kernels, name)

    def wrong(*given, **named):
        made = right(*given, **named)
        return (made[0], made[1] * factor) if name == "layer_norm" else made * factor

    monkeypatch.setattr(kernels, name, wrong)
    with pytest.raises(KernelFault, match=f"^{name} is .* from PyTorch's result in float64"):
        try_kernels(kernels, FORMS, CPU, torch.float16)


@pytest.mark.parametrize("added", [False, True])
@pytest.mark.parametrize("shape", [(2, 9, 320), (1, 5, 640), (2, 3, 1280), (3, 1, 8), (1, 6, 72)], ids=str)
def test_layer_norm(kernels: EmulatedKernels, dtype: torch.dtype, shape: tuple[int, ...], added: bool) -> None:
    norm = nn.LayerNorm(shape[-1]).to(dtype)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    a, b = numbers(*shape, dtype=dtype, mean=20.0), numbers(*shape, dtype=dtype) if added else None
    total, made = kernels.layer_norm(norm, a, b)
    assert torch.equal(total, a if b is None else a + b)
    assert close(made, F.layer_norm(total.float(), shape[-1:], norm.weight.float(), norm.bias.float(), norm.eps))


def test_add_bias(kernels: EmulatedKernels, dtype: torch.dtype) -> None:
    a, b = (numbers(2, 40, 5, height, dtype=dtype)[..., :3].contiguous(memory_format=LAST) for height in (3, 4))
    bias = numbers(40, dtype=dtype)
    made = kernels.add_bias(a, b, bias)
    assert close(made, a.float() + b.float() + bias.float()[:, None, None]) and made.is_contiguous(memory_format=LAST)


def test_gated_gelu(kernels: EmulatedKernels, dtype: torch.dtype) -> None:
    x = numbers(3, 7, 2 * 104, dtype=dtype)
    states, gate = x.float().chunk(2, -1)
    assert close(kernels.gated_gelu(x), states * F.gelu(gate))
