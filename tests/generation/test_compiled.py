"""Whole requests with CONTROLNET_COMPILE=1: setup compiles, no request does, and latents are those of other requests.

torch.compile's own code generator is left out (tests/models/test_compiled.py has it): it takes minutes. What it gets
to compile, and when, is the same.
"""

import copy
import hashlib
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from random_loras import ATTENTION, random_layers, save_diffusers
from support.compiling import compiling
from support.jobs import hint, job
from support.latents import latents
from support.small_models import SmallBundle, parts

from controlnet.generation import generator as module
from controlnet.generation.generator import Generator
from controlnet.generation.job import Job
from controlnet.maps.controls import Control
from controlnet.models.compiled import COMPILE, REGIONS, compile_regions, prepare_compiler
from controlnet.models.controlnets import ControlNets
from controlnet.pictures.canvas import InitialPicture
from controlnet.weights.lora_files import Lora

WIDE = hint(4).resize((128, 64))
CHANGES: dict[str, dict[str, Any]] = {
    "nothing": {},
    "scale": {"control": {"scale": 0.3}},
    "scale 0": {"control": {"scale": 0.0}},
    "window": {"control": {"start": 0.4, "end": 0.8}},
    "prompt": {"prompt": "a blue box " * 40},
    "net": {"control": {"conditioner": "scribble"}},
    "pooled net": {"control": {"conditioner": "shuffle"}},
    "control mode": {"control_mode": "control"},
    "no guidance": {"guidance_scale": 1.0},
    "size": {"control": {"control_map": WIDE}},
    "sampler": {"scheduler": "K_EULER"},
    "initial picture": {"initial": InitialPicture(hint(9), 0.6)},
}


class FrozenBundle(SmallBundle):
    """The small parts as loaded models are: their weights need no gradients. And what the warm-up reads of it."""

    manifest = SimpleNamespace(defaults=SimpleNamespace(guidance_scale=4.0, scheduler="DDIM", resolution=64))

    def __init__(self) -> None:
        self.parts: dict[str, Any] = copy.deepcopy(parts())
        for part in self.parts.values():
            if isinstance(part, torch.nn.Module):
                part.requires_grad_(False)

    def base(self) -> dict:
        return {name: self.parts[name] for name in super().base()}

    def controlnets(self) -> ControlNets:
        return ControlNets({name: self.parts[name] for name in super().controlnets()}, torch.float32)


@pytest.fixture(scope="module")
def plain() -> Generator:
    return Generator(SmallBundle(), {})


@pytest.fixture(scope="module")
def compiled() -> Iterator[Generator]:
    """After its warm-up, as in setup()."""
    with compiling(), pytest.MonkeyPatch.context() as patch:
        prepare_compiler(torch.device("cpu"), {"CXX": "true"})  # a program that is there
        patch.setattr(module, "compile_regions", partial(compile_regions, backend="eager"))
        generator = Generator(FrozenBundle(), {COMPILE: "1"})
        generator.warm_up()
        assert functions() > 0
        yield generator


def functions() -> int:
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


def assert_nothing_compiled(compiled: Generator, asked: Job) -> torch.Tensor:
    before = functions()
    with torch._dynamo.config.patch(error_on_recompile=True):
        made = latents(compiled, asked)[0]
    assert functions() == before
    return made


@pytest.mark.parametrize("change", CHANGES)
def test_no_request_compiles_and_latents_are_those_without(compiled, plain, change: str) -> None:
    asked = job(**CHANGES[change])
    ours, other = assert_nothing_compiled(compiled, asked), latents(plain, asked)[0]
    assert (ours - other).abs().max() <= 1e-5 * other.abs().max()


def test_two_scales_give_two_pictures(compiled) -> None:
    first, second = (assert_nothing_compiled(compiled, job(control={"scale": scale})) for scale in (1.0, 0.3))
    assert (first - second).abs().max() > 1e-3 * first.abs().max()


def test_several_nets_compile_nothing(compiled) -> None:
    controls = Control("canny", hint(1)), Control("scribble", hint(2), start=0.5), Control("shuffle", hint(3))
    assert_nothing_compiled(compiled, replace(job(), controls=controls))


def test_a_larger_second_pass_compiles_nothing(compiled) -> None:
    assert_nothing_compiled(compiled, job(upscale=2.0))


def test_a_lora_s_copies_use_the_compiled_functions(compiled, plain, tmp_path: Path) -> None:
    file = save_diffusers(tmp_path / "a.safetensors", {"unet": random_layers(parts()["unet"], ATTENTION)})
    asked = job(loras=(Lora(file, hashlib.sha256(file.read_bytes()).hexdigest(), 1.0),))
    ours, other = assert_nothing_compiled(compiled, asked), latents(plain, asked)[0]
    assert (ours - other).abs().max() <= 1e-5 * other.abs().max()
    assert (ours - latents(compiled, job())[0]).abs().max() > 1e-3 * ours.abs().max(), "the LoRA does not act"
    copies = compiled._adapted._kept["unet"]
    assert copies is not compiled.base["unet"] and all(layer._compiled_call_impl for layer in regions(copies))


def test_a_request_without_compiling_leaves_layers_as_they_are(plain) -> None:
    plain.generate(job())
    assert not any(layer._compiled_call_impl for layer in regions(parts()["unet"]))


def regions(model: torch.nn.Module) -> list[torch.nn.Module]:
    return [layer for layer in model.modules() if isinstance(layer, REGIONS)]
