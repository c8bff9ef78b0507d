"""Low-memory mode: when it is chosen, what is reckoned, and that requests get the same from it, whatever broke off."""

import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from diffusers import ControlNetModel
from random_bundle import write_bundle
from safetensors.torch import load_file, save_file
from support.jobs import job, pixels

from controlnet.bundle import Bundle, open_bundle
from controlnet.generation.generator import Generator
from controlnet.models import low_memory, nets, packing
from controlnet.models.loading import load_pretrained
from controlnet.models.low_memory import (
    ACTIVATIONS,
    LIBRARIES,
    LOW_MEMORY,
    LowMemoryError,
    asked_mode,
    choose_mode,
    needed_memory,
)
from controlnet.models.nets import ControlNets
from controlnet.models.packing import Packed
from controlnet.stopwatch import Stopwatch
from controlnet.weights.manifest import WEIGHTS, Manifest

GB = 10**9
SD15 = WEIGHTS / "sd15.toml"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    root = tmp_path_factory.mktemp("weights")
    write_bundle("tiny", root, small=True)
    return open_bundle({"CONTROLNET_BUNDLE": "tiny"}, root)


@pytest.fixture(scope="module")
def low(bundle: Bundle) -> Bundle:
    return Bundle(bundle.manifest, bundle.root, bundle.device, bundle.dtype, low_memory=True)


# ---- the choice


def test_the_free_memory_decides_unless_the_environment_does() -> None:
    for asked, when_short, when_enough in ((None, True, False), (True, True, True), (False, False, False)):
        assert choose_mode(asked, 20 * GB - 1, 20 * GB)[0] == when_short
        assert choose_mode(asked, 20 * GB, 20 * GB)[0] == when_enough


def test_the_log_says_which_mode_and_why() -> None:
    assert choose_mode(None, 11_240_000_000, 19_350_000_000)[1] == "low-memory mode: 11.2 GB free, 19.4 GB needed"
    assert choose_mode(None, 80 * GB, 20 * GB)[1] == "all ControlNets on the GPU: 80.0 GB free, 20.0 GB needed"
    assert choose_mode(True, 80 * GB, 20 * GB)[1].startswith("low-memory mode (CONTROLNET_LOW_MEMORY=1): 80.0 GB free")
    assert choose_mode(False, GB, 20 * GB)[1].startswith("all ControlNets on the GPU (CONTROLNET_LOW_MEMORY=0): 1.0 GB")


def test_the_environment_asks_with_1_and_0_only() -> None:
    asked = [asked_mode(environ) for environ in ({}, {LOW_MEMORY: ""}, {LOW_MEMORY: "1"}, {LOW_MEMORY: "0"})]
    assert asked == [None, None, True, False]
    for named in ("yes", "true", "01", " 1", "-1"):
        with pytest.raises(LowMemoryError, match=rf"^CONTROLNET_LOW_MEMORY: expected 1 .*got '{named}'\.$"):
            asked_mode({LOW_MEMORY: named})


def test_a_wrong_variable_is_refused_before_anything_is_looked_for(tmp_path: Path) -> None:
    for name, value in ((LOW_MEMORY, "maybe"), ("CONTROLNET_DTYPE", "half")):
        shutil.copy(SD15, tmp_path)
        with pytest.raises(ValueError, match=f"^{name}: expected"):
            open_bundle({"CONTROLNET_BUNDLE": "sd15", name: value}, tmp_path)


@pytest.mark.parametrize(("free", "chosen"), [(2 * GB, True), (90 * GB, False)])
def test_a_bundle_on_a_gpu_is_opened_in_the_mode_that_fits(bundle: Bundle, monkeypatch, capsys, free, chosen) -> None:
    """With the GPU's figures made up: nothing of it is touched until parts are opened."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 95 * GB))
    opened = open_bundle({"CONTROLNET_BUNDLE": "tiny"}, bundle.root)
    assert (opened.low_memory, opened.dtype, opened.device.type) == (chosen, torch.float16, "cuda")
    first, second = capsys.readouterr().out.splitlines()
    mode = "low-memory mode" if chosen else "all ControlNets on the GPU"
    needed = needed_memory(bundle.manifest, bundle.root, torch.float16)
    assert first == "bundle: tiny on cuda in float16"
    assert second == f"{mode}: {free / 1e9:.1f} GB free, {needed / 1e9:.1f} GB needed"


@pytest.mark.skipif(torch.cuda.is_available(), reason="about machines without a GPU")
def test_without_a_gpu_there_is_no_such_mode(bundle: Bundle, capsys) -> None:
    opened = open_bundle({"CONTROLNET_BUNDLE": "tiny", LOW_MEMORY: "1"}, bundle.root)
    assert not opened.low_memory and "=1 changes nothing without a GPU" in capsys.readouterr().out


# ---- the arithmetic


def test_what_is_needed_is_the_weights_as_loaded_the_largest_picture_and_the_libraries(bundle: Bundle) -> None:
    for dtype in (torch.float16, torch.float32):
        generator_parts = Bundle(bundle.manifest, bundle.root, torch.device("cpu"), dtype)
        models = [generator_parts.base()[name] for name in ("unet", "vae", "text_encoder")]
        models += generator_parts.controlnets().values()
        tensors = [tensor for model in models for tensor in packing.tensors_of(model)]
        weights = sum(tensor.numel() * dtype.itemsize for tensor in tensors)
        weights += sum(file.stat().st_size for file in bundle.files("annotator/tiny") if file.suffix != ".json")
        room = bundle.manifest.limits.pixels * ACTIVATIONS * dtype.itemsize + LIBRARIES
        needed = needed_memory(bundle.manifest, bundle.root, dtype)
        # Files have headers, and are small here; in the full-size ones those are nothing.
        assert weights + room < needed < 1.5 * weights + room
    assert needed - room > 1.8 * (needed_memory(bundle.manifest, bundle.root, torch.float16) - LIBRARIES - room / 2)


def test_a_file_in_another_precision_counts_as_what_it_becomes(bundle: Bundle, tmp_path: Path) -> None:
    big = {"a": torch.zeros(1000, 1000), "b": torch.zeros(3, dtype=torch.int64)}
    for name, dtype in (("half", torch.float16), ("full", torch.float32)):
        save_file(big | {"a": big["a"].to(dtype)}, tmp_path / f"{name}.safetensors")
    torch.save(big, tmp_path / "full.bin")
    for file in ("half.safetensors", "full.safetensors", "full.bin"):
        assert low_memory._in_memory(tmp_path / file, torch.float16) == pytest.approx(2_000_000, rel=0.01), file
        assert low_memory._in_memory(tmp_path / file, torch.float32) == pytest.approx(4_000_000, rel=0.01), file
    assert low_memory._in_memory(tmp_path / "full.bin", None) == (tmp_path / "full.bin").stat().st_size


def test_sd15_fits_a_card_of_24_gb_and_none_of_16(monkeypatch, tmp_path: Path) -> None:
    """By the sizes of the published files, which script/make-random-bundle writes too."""
    sizes = {"unet": 1.719, "vae": 0.167, "text_encoder": 0.246, "safety_checker": 0.608, "controlnet/tile": 1.445}
    annotators = {"hed": 0.059, "mlsd": 0.006, "depth_anything": 0.099, "person_detector": 0.172, "vitpose": 0.344}
    annotators |= {"upernet": 0.328, "normal_bae": 0.291, "lineart": 0.017, "lineart_anime": 0.109}
    sizes |= {f"annotator/{name}": size for name, size in annotators.items()}
    manifest = Manifest.read(SD15)
    for part in manifest.parts:
        for path in part.paths:
            file = tmp_path / "sd15" / path
            file.parent.mkdir(parents=True, exist_ok=True)
            with file.open("wb") as opened:  # a hole: it takes no room on the disk
                opened.truncate(int(sizes.get(part.name, 0.723) * 1e9) if path.endswith(low_memory.TENSOR_FILES) else 1)
    halves = {True: torch.float16, False: torch.float32}
    monkeypatch.setattr(low_memory, "stored_dtype", lambda file: halves[".fp16." in file.name])
    needed = needed_memory(manifest, tmp_path, torch.float16)
    assert 2**34 < needed < 23.5 * 2**30, f"{needed / 1e9:.1f} GB"


# ---- the nets


def test_the_nets_are_packed_and_equal_bit_for_bit_to_those_loaded_directly(bundle: Bundle, low: Bundle) -> None:
    stored = low.controlnets()._stored
    assert list(stored) == list(bundle.controlnets()) and all(isinstance(net, Packed) for net in stored.values())
    ours, plain = low.controlnets(), bundle.controlnets()
    for name in ("canny", "scribble", "canny"):
        expected, got = plain[name].state_dict(), ours[name].state_dict()
        assert expected.keys() == got.keys() and all(torch.equal(expected[key], got[key]) for key in got), name
        assert all(tensor.device.type == low.device.type for tensor in got.values())


def test_a_pickle_in_another_precision_is_packed_as_it_would_be_loaded(bundle: Bundle, tmp_path: Path) -> None:
    """The tile net, which is published in float32."""
    folder = tmp_path / "tiny/controlnet/canny"
    folder.mkdir(parents=True)
    source = bundle.folder("controlnet/canny")
    (folder / "config.json").write_bytes((source / "config.json").read_bytes())
    (file,) = source.glob("*.safetensors")
    torch.manual_seed(0)
    tensors = {name: torch.randn(tensor.shape) for name, tensor in load_file(file).items()}
    torch.save(tensors, folder / "diffusion_pytorch_model.bin")
    stored = load_pretrained(ControlNetModel, folder, "cpu", None)
    net = Packed(stored, torch.float16).on("cpu").state_dict()
    assert all(torch.equal(net[name], tensor.half()) for name, tensor in tensors.items())


def test_a_then_b_then_a_gives_the_pictures_of_the_usual_mode(bundle: Bundle, low: Bundle) -> None:
    usual, swapping = Generator(bundle), Generator(low)
    for name in ("canny", "scribble", "canny"):
        asked = job(control={"conditioner": name})
        assert pixels(swapping.generate(asked)) == pixels(usual.generate(asked)), name


def test_only_nets_of_the_request_are_moved_and_the_time_is_told(low: Bundle, monkeypatch) -> None:
    moved: list[Packed] = []
    on = Packed.on
    monkeypatch.setattr(Packed, "on", lambda self, device: moved.append(self) or on(self, device))
    swapping = low.controlnets()
    told: list[tuple[str, float]] = []

    def moves(*names: str) -> list[str]:
        moved.clear()
        told.clear()
        swapping.together(names, Stopwatch(lambda *figure: told.append(figure)))
        assert [name for name, _ in told] == ["timing.swap"] * bool(moved)
        assert all(seconds >= 0 for _, seconds in told)
        return [name for packed in moved for name, stored in swapping._stored.items() if stored is packed]

    assert moves("canny", "scribble", "canny") == ["canny", "scribble"]
    assert moves("scribble") == [] and moves("canny", "scribble") == ["canny"]
    moved.clear()
    assert "hed" in swapping and "nothing" not in swapping
    assert not moved, "asking whether a net is there moved it"


# ---- requests that break off


class Cancelled(BaseException):
    pass


@contextmanager
def cancelled_at(instruction: int) -> Iterator[None]:
    """Raise Cancelled at the n-th instruction that Python runs in our two modules; AssertionError: there are fewer."""
    ours = {nets.__file__, packing.__file__}
    left = instruction

    def trace(frame: FrameType, event: str, _):
        nonlocal left
        if frame.f_code.co_filename not in ours:
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            left -= 1
            if left == 0:
                raise Cancelled
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield
    except Cancelled:
        return
    finally:
        sys.settrace(before)
    raise AssertionError(f"{left} instructions short")


def bits(net: torch.nn.Module) -> list[bytes]:
    return [bytes(tensor.cpu().flatten().view(torch.uint8).numpy()) for tensor in packing.tensors_of(net)]


def test_a_cancellation_at_any_instruction_leaves_the_nets_sound() -> None:
    small: dict[str, Any] = {name: torch.nn.Linear(2, 2).requires_grad_(False) for name in ("canny", "scribble", "hed")}
    expected = {name: bits(net) for name, net in small.items()}
    swapping = ControlNets({name: Packed(net, torch.float32) for name, net in small.items()}, torch.float32)
    for instruction in range(1, 100_000):
        swapping.together(["hed", "canny"])
        try:
            with cancelled_at(instruction):
                swapping.together(["canny", "scribble"])  # one stays, one goes, one comes
        except AssertionError:
            break
        names = ["scribble", "hed"] if instruction % 2 else ["canny"]
        assert [bits(net) for net in swapping.together(names)] == [expected[name] for name in names], instruction
        assert swapping._copies.keys() == set(names)
        assert all(swapping[name] is not swapping._stored[name].model for name in names), "in its place in main memory"
    assert 200 < instruction < 99_999


def test_running_out_of_memory_in_a_swap_leaves_the_nets_sound(low: Bundle, monkeypatch) -> None:
    swapping = low.controlnets()
    expected = bits(swapping["scribble"])
    held = swapping["canny"]
    to, calls = torch.Tensor.to, []

    def full(self, *args, **more):
        calls.append(self)
        if len(calls) == 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return to(self, *args, **more)

    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "to", full)
        with pytest.raises(torch.OutOfMemoryError):
            swapping.together(["hed", "scribble"])
    assert held not in swapping._copies.values(), "a net that the request did not name was kept when memory ran out"
    assert bits(swapping["scribble"]) == expected and list(swapping._copies) == ["scribble"]
