"""Each kernel next to PyTorch's operations in float32, with fresh random numbers."""

import pytest
import torch
import torch.nn.functional as F
from random_models import FULL, build
from torch import nn

from controlnet.speedups.cuda.kernels import Kernels, kernels_for
from controlnet.speedups.cuda.trial import TriedKernels

DTYPES = (torch.float16, torch.bfloat16)
CUDA = torch.device("cuda", 0)


@pytest.fixture(params=DTYPES, ids=str)
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param


@pytest.fixture
def kernels(dtype: torch.dtype) -> Kernels:
    TriedKernels(CUDA, dtype)
    return kernels_for(torch.empty(0, device=CUDA, dtype=dtype))  # type: ignore[return-value]


def numbers(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    return (torch.randn(shape, device=CUDA) * 2 + 1).to(dtype)


def close(made: torch.Tensor, expected: torch.Tensor) -> bool:
    """Rounded once: a unit in the last place is 2^-11 or 2^-8 of a number."""
    most = {torch.float16: 4e-4, torch.bfloat16: 3e-3}[made.dtype]
    return bool((made.float() - expected).norm() <= most * expected.norm())


@pytest.mark.parametrize("added", [False, True])
@pytest.mark.parametrize("silu", [False, True])
@pytest.mark.parametrize(
    "shape",
    [(2, 320, 64, 64), (1, 640, 33, 17), (2, 960, 64, 64), (2, 2560, 8, 8), (1, 128, 512, 512), (8, 1280, 16, 16)],
    ids=str,
)
def test_group_norm(kernels: Kernels, dtype: torch.dtype, shape: tuple[int, ...], silu: bool, added: bool) -> None:
    norm = nn.GroupNorm(32, shape[1], eps=1e-6).to(CUDA, dtype)
    norm.weight.normal_()
    norm.bias.normal_()
    x = numbers(*shape, dtype=dtype).contiguous(memory_format=torch.channels_last)
    plus = numbers(*shape[:2], dtype=dtype) if added else None
    given = x.float() + (plus.float()[:, :, None, None] if plus is not None else 0)
    expected = F.group_norm(given, 32, norm.weight.float(), norm.bias.float(), norm.eps)
    made = kernels.group_norm(x, norm, plus, silu)
    assert close(made, F.silu(expected) if silu else expected)
    assert made.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(made, kernels.group_norm(x, norm, plus, silu)), "its sums depend on timing"


def test_group_norm_of_numbers_far_from_zero(kernels: Kernels, dtype: torch.dtype) -> None:
    x = (torch.randn(1, 320, 32, 32, device=CUDA) * 2 - 300).to(dtype).contiguous(memory_format=torch.channels_last)
    norm = nn.GroupNorm(32, 320).to(CUDA, dtype)
    expected = F.group_norm(x.double(), 32, norm.weight.double(), norm.bias.double(), norm.eps)
    assert close(kernels.group_norm(x, norm), expected.float())


@pytest.mark.parametrize("added", [False, True])
@pytest.mark.parametrize("shape", [(2, 4096, 320), (1, 1000, 640), (2, 77, 1280), (3, 5, 8)], ids=str)
def test_layer_norm(kernels: Kernels, dtype: torch.dtype, shape: tuple[int, ...], added: bool) -> None:
    norm = nn.LayerNorm(shape[-1]).to(CUDA, dtype)
    norm.weight.normal_()
    norm.bias.normal_()
    a, b = numbers(*shape, dtype=dtype), numbers(*shape, dtype=dtype) if added else None
    total, made = kernels.layer_norm(norm, a, b)
    assert torch.equal(total, a if b is None else a + b)
    expected = F.layer_norm(total.float(), shape[-1:], norm.weight.float(), norm.bias.float(), norm.eps)
    assert close(made, expected)


def test_add_bias_and_gated_gelu(kernels: Kernels, dtype: torch.dtype) -> None:
    a, b = (numbers(2, 320, 33, 17, dtype=dtype).contiguous(memory_format=torch.channels_last) for _ in range(2))
    bias = numbers(320, dtype=dtype)
    assert close(kernels.add_bias(a, b, bias), a.float() + b.float() + bias.float()[:, None, None])
    x = numbers(3, 77, 2560, dtype=dtype)
    states, gate = x.float().chunk(2, -1)
    assert close(kernels.gated_gelu(x), states * F.gelu(gate))


def test_the_trial_at_setup_passes_in_each_form_of_full_size(dtype: torch.dtype, capsys) -> None:
    tried = TriedKernels(CUDA, dtype)
    for name in ("unet", "controlnet/canny", "vae"):
        assert tried.serve(build(name, FULL).eval()), capsys.readouterr().out


def test_kernels_that_the_driver_compiles_are_right(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    """As on a card that NVRTC does not know."""
    from cuda.bindings import nvrtc  # type: ignore[attr-defined]

    major, minor = torch.cuda.get_device_capability(CUDA)
    _, known = nvrtc.nvrtcGetSupportedArchs()
    lower = [each for each in known if each < 10 * major + minor]
    monkeypatch.setattr(nvrtc, "nvrtcGetSupportedArchs", lambda: (0, lower))
    tried = TriedKernels(CUDA, dtype)
    assert f"from PTX of compute_{max(lower)}" in capsys.readouterr().out
    assert tried.serve(build("unet", FULL).eval()), capsys.readouterr().out
