"""CONTROLNET_ATTENTION: its values, what xformers needs, and that UNet and nets use it on a pretended GPU."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers.models import attention_processor
from diffusers.models.attention_processor import Attention, AttnProcessor2_0, XFormersAttnProcessor
from random_bundle import write_bundle
from support.jobs import job, pixels
from support.pretended_cuda import CUDA, pretended_cuda
from torch.nn.functional import scaled_dot_product_attention

from controlnet.bundle import Bundle, open_bundle
from controlnet.generation.generator import Generator
from controlnet.models import attention, packed
from controlnet.models.attention import check_attention
from controlnet.settings import Settings, SettingsError
from controlnet.weights.manifest import Manifest

CPU = torch.device("cpu")


def test_what_can_be_had_is_taken(monkeypatch) -> None:
    monkeypatch.setattr(attention, "find_spec", lambda name: object())
    monkeypatch.setattr(attention, "_try_xformers", lambda device: None)
    for name, device in (("sdpa", CPU), ("sdpa", CUDA), ("xformers", CUDA)):
        check_attention(name, device)


def test_xformers_needs_a_gpu_and_the_package(monkeypatch) -> None:
    with pytest.raises(SettingsError, match=r"^CONTROLNET_ATTENTION=xformers needs a GPU, .* CPU\. Use sdpa\.$"):
        check_attention("xformers", CPU)
    monkeypatch.setattr(attention, "find_spec", lambda name: None)
    with pytest.raises(SettingsError, match="the package xformers is not installed"):
        check_attention("xformers", CUDA)


@pytest.mark.parametrize("error", [NotImplementedError, RuntimeError])
def test_xformers_without_kernels_for_the_gpu_is_refused(monkeypatch, error: type[Exception]) -> None:
    """Seen with the xformers of PyTorch 2.10 and CUDA 12.8 on PyTorch 2.11 and CUDA 13.0: each request failed."""

    def none(*_: torch.Tensor) -> None:
        raise error("No operator found for `memory_efficient_attention_forward` with inputs: ...")

    monkeypatch.setattr(attention, "find_spec", lambda name: object())
    monkeypatch.setitem(sys.modules, "xformers.ops", SimpleNamespace(memory_efficient_attention=none))
    with pretended_cuda(), pytest.raises(SettingsError, match=r"has no kernel for this GPU and .*\. Use sdpa\.$"):
        check_attention("xformers", CUDA)


def test_a_bundle_without_a_gpu_refuses_xformers() -> None:
    with pytest.raises(SettingsError, match="needs a GPU"):
        open_bundle(Settings(bundle="tiny", attention="xformers"))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weights")
    write_bundle("sd15", folder, small=True)
    return folder


def used(model: torch.nn.Module) -> set[type]:
    return {type(layer.processor) for layer in model.modules() if isinstance(layer, Attention)}


@pytest.mark.parametrize("low_memory", [False, True])
def test_unet_and_nets_use_xformers_on_a_pretended_gpu(root: Path, monkeypatch, low_memory: bool) -> None:
    """The stand-in for xformers is PyTorch's attention for tensors of (batch × heads, tokens, d)."""
    calls: list[int] = []

    def stand_in(query: Any, key: Any, value: Any, attn_bias: Any, op: Any, scale: float) -> torch.Tensor:
        calls.append(len(query))
        return scaled_dot_product_attention(query[:, None], key[:, None], value[:, None], scale=scale)[:, 0]

    fake = SimpleNamespace(ops=SimpleNamespace(memory_efficient_attention=stand_in))
    monkeypatch.setattr(attention_processor, "xformers", fake)
    monkeypatch.setattr(packed, "_pin", lambda buffer: None)
    monkeypatch.setattr(packed, "_unpin", lambda address: None)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace(synchronize=lambda: None))
    manifest, made = Manifest.read(root / "sd15.toml", {}), []
    for name in ("sdpa", "xformers"):
        with pretended_cuda():
            generator = Generator(Bundle(manifest, root, CUDA, torch.float32, low_memory, Settings(attention=name)))
            made.append(pixels(generator.generate(job())))
            expected = XFormersAttnProcessor if name == "xformers" else AttnProcessor2_0
            assert used(generator.base["unet"]) == used(generator.controlnets["canny"]) == {expected}
            assert used(generator.base["vae"]) == {AttnProcessor2_0}
        assert bool(calls) == (name == "xformers")
    first, second = (torch.frombuffer(bytearray(each[0]), dtype=torch.uint8).int() for each in made)
    assert (first - second).abs().max() <= 1
