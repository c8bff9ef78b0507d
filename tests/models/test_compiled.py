"""CONTROLNET_COMPILE: its values, the compiler that it needs, and one layer as torch.compile really makes it."""

import copy
import shutil
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from diffusers.models.resnet import ResnetBlock2D
from support.compiling import compiling
from torch._inductor import config as inductor

from controlnet.bundle import open_bundle
from controlnet.models.attention import ATTENTION
from controlnet.models.compiled import COMPILE, CompileError, asked_compile, compile_regions, prepare_compiler
from controlnet.models.exact import removed_from
from controlnet.models.switch import SwitchError

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


@pytest.fixture(autouse=True)
def own_settings() -> Iterator[None]:
    with compiling():
        yield


def test_layers_are_compiled_only_if_asked() -> None:
    assert [asked_compile({COMPILE: value}) for value in ("", "0", "1")] == [False, False, True]
    assert not asked_compile({})
    with pytest.raises(SwitchError, match=r"^CONTROLNET_COMPILE: expected 1 .*got 'yes'\.$"):
        asked_compile({COMPILE: "yes"})


@pytest.mark.parametrize(("device", "name"), [(CPU, "g++"), (CUDA, "gcc")])
def test_a_missing_compiler_is_named(monkeypatch, device: torch.device, name: str) -> None:
    asked: list[str] = []
    monkeypatch.setattr(shutil, "which", asked.append)
    with pytest.raises(CompileError, match=rf"^CONTROLNET_COMPILE=1 needs a .* Add {name.replace('+', '.')} to the"):
        prepare_compiler(device, {})
    assert asked == [name]


def test_the_compiler_that_the_environment_names_is_looked_for(monkeypatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: name if name == "clang++" else None)
    prepare_compiler(CPU, {"CXX": "clang++"})
    with pytest.raises(CompileError, match="gcc-99 was not found"):
        prepare_compiler(CUDA, {"CC": "gcc-99"})


def test_a_bundle_without_a_compiler_is_not_opened(monkeypatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(CompileError, match="needs a"):
        open_bundle({"CONTROLNET_BUNDLE": "tiny", COMPILE: "1"})
    open_bundle({"CONTROLNET_BUNDLE": "tiny"})


def test_compiling_and_xformers_are_refused_together() -> None:
    with pytest.raises(CompileError, match=r"^CONTROLNET_COMPILE=1 and CONTROLNET_ATTENTION=xformers"):
        prepare_compiler(CUDA, {ATTENTION: "xformers"})


def test_nothing_is_compiled_by_other_threads_or_processes(monkeypatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: name)
    monkeypatch.setattr(inductor, "compile_threads", 2)
    prepare_compiler(CPU, {})
    assert inductor.compile_threads == 1


def test_a_layer_is_compiled_once_and_a_copy_of_it_again() -> None:
    layer = resnet()
    compile_regions([layer, layer], backend="eager")
    function: Any = layer._compiled_call_impl
    compile_regions([layer], backend="eager")
    assert function is not None and layer._compiled_call_impl is function
    assert copy.deepcopy(layer)._compiled_call_impl is None, "then compile_regions need not be called for copies"


@pytest.mark.skipif(not shutil.which("g++"), reason="there is no C++ compiler, which torch.compile needs on a CPU")
@torch.no_grad()
def test_a_compiled_layer_gives_the_same_result() -> None:
    prepare_compiler(CPU, {})
    layer = resnet()
    given = torch.randn(2, 8, 4, 6), torch.randn(2, 16)
    plain = layer(*given)
    compile_regions([layer])
    # Without vector instructions and a compiled header, which would take most of the time.
    with removed_from([layer]), inductor.patch({"cpp.simdlen": 1, "cpp_cache_precompile_headers": False}):
        ours = layer(*given)
        with torch._dynamo.config.patch(error_on_recompile=True):
            layer(torch.randn(2, 8, 6, 6), given[1])
    assert (ours - plain).abs().max() <= 1e-5 * plain.abs().max()
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


def resnet() -> ResnetBlock2D:
    torch.manual_seed(1)
    return ResnetBlock2D(in_channels=8, temb_channels=16, groups=2, groups_out=2).eval().requires_grad_(False)
