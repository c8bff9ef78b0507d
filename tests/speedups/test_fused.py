"""Layers with kernels for a GPU, which PyTorch's operations stand for here (tests/support/torch_kernels.py)."""

import copy
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL
from random_models import FULL, SMALL, build
from support.small_models import parts
from support.torch_kernels import TorchKernels, torch_kernels
from torch import nn

from controlnet.models.packed import Packed, tensors_of
from controlnet.speedups.cuda.kernels import (
    HALVES,
    NAMES,
    CompilationError,
    Form,
    Kernels,
    compile_source,
)
from controlnet.speedups.cuda.trial import TriedKernels
from controlnet.speedups.forms import OWN_CLASS, in_fast_forms, kernel_forms
from controlnet.speedups.fused import FUSED


@pytest.fixture(autouse=True)
def without_gradients():
    with torch.no_grad():
        yield


@pytest.fixture
def models() -> dict[str, Any]:
    small: dict[str, Any] = {name: copy.deepcopy(parts()[name]) for name in ("unet", "canny")}
    torch.manual_seed(0)
    # Kernels take eight channels at a time, and the VAE of small_models.py has fewer.
    small["vae"] = AutoencoderKL(**SMALL["vae"] | {"block_out_channels": (8, 8, 16, 16)}).eval()
    return {name: model.to(memory_format=torch.channels_last) for name, model in small.items()}


def step(models: dict[str, Any], batch: int, side: int = 8, device: str = "cpu") -> torch.Tensor:
    """The noise that UNet and ControlNet predict for two prompts; `batch` 1 gives them one half of the latents."""
    generator = torch.Generator().manual_seed(3)
    width = models["unet"].config.cross_attention_dim
    x, words = torch.randn(1, 4, side, side, generator=generator), torch.randn(2, 32, width, generator=generator)
    hint = torch.rand(1, 3, 8 * side, 8 * side, generator=generator)
    x, hint = x.expand(batch, -1, -1, -1), hint.expand(batch, -1, -1, -1)
    x, words, hint, time = (each.to(device) for each in (x, words, hint, torch.tensor(500)))
    down, middle = models["canny"](x, time, words, controlnet_cond=hint, conditioning_scale=0.7, return_dict=False)
    residuals = {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}
    return models["unet"](x, time, words, **residuals, return_dict=False)[0]


def close(made: torch.Tensor, expected: torch.Tensor) -> bool:
    return bool((made - expected).abs().max() <= 1e-5 * expected.abs().max())


@pytest.mark.parametrize(("batch", "side"), [(1, 8), (2, 8), (1, 12)])
def test_a_step_with_kernels_equals_that_of_diffusers(models: dict[str, Any], batch: int, side: int) -> None:
    expected = step(models, 2, side)
    with torch_kernels() as kernels, in_fast_forms([models["unet"], models["canny"]]) as complete:
        made = step(models, batch, side)
    assert complete and close(made, expected)
    assert all(map(kernels.times, ("group_norm", "layer_norm", "add_bias", "gated_gelu")))


def test_decoding_with_kernels_equals_that_of_diffusers(models: dict[str, Any]) -> None:
    vae, latents, pixels = models["vae"], torch.randn(1, 4, 8, 8), torch.rand(1, 3, 64, 64)
    expected = vae.decode(latents).sample, vae.encode(pixels).latent_dist.mean
    with torch_kernels() as kernels, in_fast_forms([vae]):
        made = vae.decode(latents).sample, vae.encode(pixels).latent_dist.mean
    assert all(map(close, made, expected)) and kernels.times("add_bias") > 10


def test_every_layer_that_has_a_kernel_uses_it(models: dict[str, Any]) -> None:
    with torch_kernels(), in_fast_forms(models.values()):
        used = {type(layer) for model in models.values() for layer in model.modules()}
    assert used >= set(FUSED.values())
    after = {type(layer) for model in models.values() for layer in model.modules()}
    assert not after & OWN_CLASS.keys(), "a layer keeps the form after the block"


def test_without_kernels_no_layer_uses_one(models: dict[str, Any]) -> None:
    with torch_kernels(torch.float16), in_fast_forms(models.values()):
        used = {type(layer) for model in models.values() for layer in model.modules()}
    assert not used & set(FUSED.values()), "the kernels are for another dtype"


@pytest.mark.parametrize(
    "layer",
    [nn.GroupNorm(1, 12), nn.GroupNorm(2, 8, affine=False), nn.GroupNorm(2, 8 * 513 * 2)],
    ids=["channels", "no weights", "too many channels"],
)
def test_a_layer_that_no_kernel_fits_stays_as_it_is(layer: nn.Module) -> None:
    layer.eval()
    with torch_kernels(), in_fast_forms([layer]):
        assert type(layer) is nn.GroupNorm


def test_an_input_that_no_kernel_fits_goes_to_pytorch() -> None:
    norm, x = nn.GroupNorm(2, 8).eval(), torch.randn(2, 8, 6)
    picture = torch.randn(2, 8, 4, 4)
    expected = norm(x), norm(picture)
    with torch_kernels() as kernels, in_fast_forms([norm]):
        assert torch.equal(norm(x), expected[0]) and torch.equal(norm(picture), expected[1])
        assert not kernels.launched
        assert close(norm(picture.contiguous(memory_format=torch.channels_last)), expected[1])
        assert kernels.times("group_norm") == 1


def test_packed_weights_of_convolutions_have_their_channels_last() -> None:
    net = copy.deepcopy(parts()["canny"])
    expected = [tensor.clone() for tensor in tensors_of(net)]
    on_device = Packed(net, torch.float32, channels_last=True).on("cpu")
    for tensor, other in zip(tensors_of(on_device), expected, strict=True):
        assert torch.equal(tensor, other) and tensor.shape == other.shape
        assert tensor.ndim != 4 or tensor.is_contiguous(memory_format=torch.channels_last)


def test_there_are_no_kernels_for_float32() -> None:
    with pytest.raises(CompilationError, match="for float16 and bfloat16 only"):
        TriedKernels(torch.device("cpu"), torch.float32)


@pytest.mark.skipif(torch.version.cuda is None, reason="PyTorch for a CPU comes without NVRTC")
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("architecture", [75, 80, 90, 120])
def test_the_kernels_compile_without_a_gpu(architecture: int, dtype: torch.dtype) -> None:
    """For Turing, Ampere, Hopper and Blackwell."""
    if architecture == 75 and dtype == torch.bfloat16:
        with pytest.raises(CompilationError, match=r"kernels.cu for sm_75: \S+ "):
            compile_source(architecture, dtype)
    else:
        assert compile_source(architecture, dtype).startswith(b"\x7fELF")


@pytest.mark.skipif(torch.version.cuda is None, reason="PyTorch for a CPU comes without NVRTC")
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize(("architecture", "lower"), [(103, 100), (110, 100), (121, 120)])
def test_an_architecture_that_nvrtc_does_not_know_gets_ptx_of_the_next_lower_one(
    architecture: int, lower: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    """NVRTC of CUDA 12.8 knows none of the three, later ones do."""
    nvrtc = pytest.importorskip("cuda.bindings.nvrtc")
    monkeypatch.setattr(nvrtc, "nvrtcGetSupportedArchs", lambda: (0, [75, 80, 90, 100, 120]))
    code = compile_source(architecture, dtype).decode()
    assert f"\n.target sm_{lower}\n" in code and code.endswith("\0"), "the driver reads PTX up to a zero"
    assert all(f".visible .entry {name}(" in code for name in NAMES)
    assert (
        f"knows no sm_{architecture}, so the driver compiles them from PTX of compute_{lower}"
        in capsys.readouterr().out
    )


@pytest.mark.skipif(torch.version.cuda is None, reason="PyTorch for a CPU comes without NVRTC")
def test_an_architecture_below_all_that_nvrtc_knows_is_refused() -> None:
    with pytest.raises(CompilationError, match=r"kernels\.cu for sm_35: NVRTC_ERROR"):
        compile_source(35, torch.float16)


def test_the_stand_in_has_the_methods_of_the_kernels() -> None:
    public = {name for name in vars(Kernels) if not name.startswith("_")}
    assert public == {name for name in vars(TorchKernels) if not name.startswith("_")} - {"times"}


@pytest.fixture
def full_size() -> dict[str, Any]:
    """Stable Diffusion 1.5. The meta device stands for a GPU."""
    return {name.split("/")[-1]: build(name, FULL).eval() for name in ("unet", "controlnet/canny", "vae")}


def test_full_size_layers_all_fit(full_size: dict[str, Any]) -> None:
    """No normalisation is left that a kernel does not fit."""
    models = list(full_size.values())
    with torch_kernels(device="meta"), in_fast_forms(models):
        left = {type(layer) for model in models for layer in model.modules()}
    assert not left & {OWN_CLASS[form] for form in FUSED.values()}


@pytest.mark.parametrize(("size", "device"), [("models", "cpu"), ("full_size", "meta")])
def test_the_forms_that_are_tried_at_setup_are_those_of_requests(request, size: str, device: str) -> None:
    models = request.getfixturevalue(size)
    latents, pixels = torch.zeros(1, 4, 8, 8, device=device), torch.zeros(1, 3, 64, 64, device=device)
    with torch_kernels(device=device) as kernels, in_fast_forms(models.values()):
        for batch in (1, 2):
            step(models, batch, device=device)
        models["vae"].decode(latents)
        models["vae"].encode(pixels)
    tried = set[Form]().union(*map(kernel_forms, models.values()))
    assert kernels.launched.keys() <= tried
    # The VAE's attention normalises tokens, which its normalisation leaves to PyTorch.
    norms = {
        attention.group_norm
        for name in ("encoder", "decoder")
        for attention in getattr(models["vae"], name).mid_block.attentions
    }
    assert tried - kernels.launched.keys() <= {
        Form("group_norm", norm.num_channels, norm.eps, norm.num_groups) for norm in norms
    }
    assert len(tried) > 12
