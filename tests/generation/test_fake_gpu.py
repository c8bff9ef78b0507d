"""Networks of Stable Diffusion 1.5's and XL's full size in fp16 on a GPU, run by PyTorch's FakeTensorMode.

Its tensors have a device, a shape and a dtype, but no memory and no values. It refuses operations that mix devices, and
shapes or dtypes that do not fit. It shows nothing about values, and cannot run what reads them: samplers, annotators,
repainting and the safety checker. tests/product/test_pretended_cuda.py runs these, with small networks.
"""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from diffusers.pipelines.controlnet.pipeline_controlnet_img2img import retrieve_latents
from PIL import Image
from random_models import FULL, UNION, build
from random_sdxl import FULL_XL
from support.acting import acting
from support.small_models import parts
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily

from controlnet.families import sd15
from controlnet.generation.composite import Acting, CompositeControlNet
from controlnet.generation.painting import _region
from controlnet.generation.windowed import WindowedControlNet, WindowedUNet, WindowedVae, unet_windows
from controlnet.request.modes import CONTROL_MODES

CUDA = torch.device("cuda", 0)
NAMES = ("unet", "vae", "text_encoder", "controlnet/canny", "controlnet/shuffle")
WIDTH, HEIGHT = 776, 520
"""The UNet halves latents of 97 × 65 three times, and each time rounds up."""
LATENTS = (4, HEIGHT // 8, WIDTH // 8)


def on_gpu(tensor: torch.Tensor) -> torch.Tensor:
    dtype = torch.float16 if tensor.is_floating_point() else tensor.dtype
    return torch.empty(tensor.shape, dtype=dtype, device=CUDA)


@pytest.fixture(scope="module")
def models() -> dict[str, Any]:
    """The networks on the GPU, and a tokenizer. shuffle's net is a pooled one."""
    # Made before the fake mode is on: other tests share the small parts, which must hold real numbers.
    tokenizer = parts()["tokenizer"]
    built = {name: build(name, FULL).requires_grad_(False).eval() for name in NAMES}
    with FakeTensorMode():
        return {name: model._apply(on_gpu) for name, model in built.items()} | {"tokenizer": tokenizer}


@pytest.fixture(scope="module")
def xl_models(models: dict[str, Any]) -> dict[str, Any]:
    with unset_fake_temporarily():
        built = {name: build(name, FULL_XL).requires_grad_(False).eval() for name in ("unet", UNION)}
    with next(models["unet"].parameters()).fake_mode:
        return {name: model._apply(on_gpu) for name, model in built.items()}


@pytest.fixture(autouse=True)
def fake_gpu(models: dict[str, Any]) -> Iterator[None]:
    with next(models["unet"].parameters()).fake_mode, torch.no_grad():
        yield


def on_the_gpu(*tensors: torch.Tensor) -> bool:
    return all(isinstance(x, FakeTensor) and (x.device, x.dtype) == (CUDA, torch.float16) for x in tensors)


def half(*shape: int) -> torch.Tensor:
    return torch.zeros(shape, dtype=torch.float16, device=CUDA)


@pytest.mark.parametrize(("mode", "guided"), [*((mode, True) for mode in CONTROL_MODES), ("prompt", False)])
def test_a_step_of_full_size_runs_on_a_gpu(models: dict[str, Any], mode: str, guided: bool) -> None:
    """A plain net and a pooled one, each with a region."""
    nets, batch = [models["controlnet/canny"], models["controlnet/shuffle"]], 2 if guided else 1
    regions = [_region(Image.new("L", (WIDTH, HEIGHT), 100), CUDA)] * 2
    composite = CompositeControlNet(acting(nets, regions), guided, CONTROL_MODES[mode])
    latents, words, hints = half(batch, *LATENTS), half(batch, 154, 768), [half(batch, 3, HEIGHT, WIDTH)] * 2
    time = torch.tensor(10, device=CUDA)
    down, middle = composite(latents, time, words, hints, [1.0, 0.5])
    residuals: dict[str, Any] = {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}
    (noise,) = models["unet"](latents, time, words, return_dict=False, **residuals)
    assert on_the_gpu(*down, middle, noise) and noise.shape == latents.shape


def test_windows_of_full_size_run_on_a_gpu(models: dict[str, Any]) -> None:
    """Two windows of 96 latents, and two of the VAE's."""
    unet, size = models["unet"], (8, 136)
    composite = WindowedControlNet(acting([models["controlnet/canny"]]), True, CONTROL_MODES["prompt"])
    latents, words, hint = half(2, 4, *size), half(2, 77, 768), half(2, 3, 8 * size[0], 8 * size[1])
    time = torch.tensor(10, device=CUDA)
    residuals, _ = composite(latents, time, words, [hint], [1.0])
    given: dict[str, Any] = {"down_block_additional_residuals": residuals, "mid_block_additional_residual": None}
    (noise,) = WindowedUNet(unet)(latents, time, encoder_hidden_states=words, return_dict=False, **given)
    vae = WindowedVae(models["vae"])
    encoded = retrieve_latents(vae.encode(hint[:1]), torch.Generator())
    (decoded,) = vae.decode(encoded, return_dict=False)
    assert len(unet_windows(unet, size)) == 2 and on_the_gpu(noise, encoded, decoded)
    assert noise.shape == latents.shape and decoded.shape == (1, *hint.shape[1:]) and encoded.shape == (1, 4, *size)


@pytest.mark.parametrize("clip_skip", [1, 2])
def test_the_full_size_text_encoder_runs_on_a_gpu(models: dict[str, Any], clip_skip: int) -> None:
    prompt = "a (red:1.3) ball " * 40
    embeddings = list(sd15.encode(models, prompt, "", clip_skip).values())
    assert on_the_gpu(*embeddings) and embeddings[0].shape == embeddings[1].shape and embeddings[0].shape[2] == 768


def test_the_full_size_vae_runs_on_a_gpu(models: dict[str, Any]) -> None:
    vae, picture = models["vae"], half(1, 3, HEIGHT, WIDTH)
    latents = retrieve_latents(vae.encode(picture), torch.Generator()) * vae.config.scaling_factor
    (decoded,) = vae.decode(latents / vae.config.scaling_factor, return_dict=False)
    assert on_the_gpu(latents, decoded) and latents.shape == (1, *LATENTS) and decoded.shape == picture.shape


def test_a_step_of_stable_diffusion_xl_runs_on_a_gpu(xl_models: dict[str, Any]) -> None:
    """Two maps in one call of the union, and a third in a region; latents of 129 × 97, which are halved twice."""
    union, size = xl_models["controlnet/union"], (97, 129)
    region = _region(Image.new("L", (8 * size[1], 8 * size[0]), 100), CUDA)
    called = [Acting(union, (0, 1), (3, 1)), Acting(union, (2,), (7,), region)]
    latents, words = half(2, 4, *size), half(2, 154, 2048)
    maps, time = [half(2, 3, 8 * size[0], 8 * size[1])] * 3, torch.tensor(10, device=CUDA)
    added = {"text_embeds": half(2, 1280), "time_ids": half(2, 6)}
    composite = CompositeControlNet(called, True, CONTROL_MODES["control"])
    down, middle = composite(latents, time, words, maps, [1.0, 0.5, 0.7], added_cond_kwargs=added)
    residuals: dict[str, Any] = {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}
    given = residuals | {"added_cond_kwargs": added}
    (noise,) = xl_models["unet"](latents, time, words, return_dict=False, **given)
    assert on_the_gpu(*down, middle, noise) and noise.shape == latents.shape


def test_the_fake_gpu_refuses_mixed_devices_and_dtypes(models: dict[str, Any]) -> None:
    with pytest.raises(RuntimeError, match="device"):
        models["vae"].decode(half(1, 4, 8, 8).cpu())
    with pytest.raises(RuntimeError, match="type"):
        models["vae"].decode(half(1, 4, 8, 8).float())
