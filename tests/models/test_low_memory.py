"""Low-memory mode: when it is chosen, how needed memory is estimated, and equal pictures even after interruptions."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import ControlNetModel
from safetensors.torch import load_file, save_file
from support.cancelling import TooFew, cancelled_at
from support.jobs import job, pixels

from controlnet.bundle import Bundle, open_bundle
from controlnet.generation.generator import Generator
from controlnet.models import controlnets, low_memory, packed
from controlnet.models.controlnets import ControlNets
from controlnet.models.loading import load_pretrained
from controlnet.models.low_memory import (
    ACTIVATIONS,
    LIBRARIES,
    choose_mode,
    needed_memory,
)
from controlnet.models.packed import Packed
from controlnet.settings import Settings
from controlnet.speedups.cuda.graphs import room
from controlnet.stopwatch import Stopwatch
from controlnet.weights.manifest import WEIGHTS, Manifest

GB = 10**9
SD15 = WEIGHTS / "sd15.toml"


@pytest.fixture(scope="module")
def bundle(tiny_root: Path) -> Bundle:
    return open_bundle(Settings(bundle="tiny"), tiny_root)


@pytest.fixture(scope="module")
def low(bundle: Bundle) -> Bundle:
    return Bundle(bundle.manifest, bundle.root, bundle.device, bundle.dtype, low_memory=True)


# ---- the choice


def test_free_memory_decides_unless_the_environment_variable_is_set() -> None:
    for asked, when_short, when_enough in ((None, True, False), (True, True, True), (False, False, False)):
        assert choose_mode(asked, 20 * GB - 1, 20 * GB)[0] == when_short
        assert choose_mode(asked, 20 * GB, 20 * GB)[0] == when_enough


def test_the_log_names_the_memory_mode_and_the_reason() -> None:
    assert choose_mode(None, 11_240_000_000, 19_350_000_000)[1] == "low-memory mode: 11.2 GB free, 19.4 GB needed"
    assert choose_mode(None, 80 * GB, 20 * GB)[1] == "all ControlNets on the GPU: 80.0 GB free, 20.0 GB needed"
    assert choose_mode(True, 80 * GB, 20 * GB)[1].startswith("low-memory mode (CONTROLNET_LOW_MEMORY=1): 80.0 GB free")
    assert choose_mode(False, GB, 20 * GB)[1].startswith("all ControlNets on the GPU (CONTROLNET_LOW_MEMORY=0): 1.0 GB")


@pytest.mark.parametrize(("free", "chosen"), [(2 * GB, True), (90 * GB, False)])
def test_free_gpu_memory_decides_the_mode_of_a_bundle(bundle: Bundle, monkeypatch, capsys, free, chosen) -> None:
    """The memory of the GPU is simulated. Nothing uses the GPU until parts are opened."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 95 * GB))
    opened = open_bundle(Settings(bundle="tiny", kernels=False), bundle.root)
    assert (opened.low_memory, opened.dtype, opened.device.type) == (chosen, torch.float16, "cuda")
    first, second = capsys.readouterr().out.splitlines()
    mode = "low-memory mode" if chosen else "all ControlNets on the GPU"
    needed = needed_memory(bundle.manifest, bundle.root, torch.float16)
    assert opened.graphs is not chosen
    assert first == "bundle: tiny on cuda in float16"
    assert second == f"{mode}: {free / 1e9:.1f} GB free, {needed / 1e9:.1f} GB needed"


def test_graphs_take_no_room_that_the_bundle_needs(bundle: Bundle, monkeypatch, capsys) -> None:
    needed = needed_memory(bundle.manifest, bundle.root, torch.float16)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for more, graphs in ((1.0, True), (0.9, False)):
        free = needed + int(more * room(torch.float16))
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device, free=free: (free, 95 * GB))
        opened = open_bundle(Settings(bundle="tiny", kernels=False), bundle.root)
        assert (opened.graphs, opened.low_memory) == (graphs, False)
        assert ("no CUDA graphs, which would need 1.7 GB more" in capsys.readouterr().out) is not graphs


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")
def test_low_memory_mode_does_nothing_without_a_gpu(bundle: Bundle, capsys) -> None:
    opened = open_bundle(Settings(bundle="tiny", low_memory=True), bundle.root)
    assert not opened.low_memory and "=1 changes nothing without a GPU" in capsys.readouterr().out


# ---- the arithmetic


def test_needed_memory_is_weights_largest_picture_and_libraries(bundle: Bundle) -> None:
    for dtype in (torch.float16, torch.float32):
        loaded = Bundle(bundle.manifest, bundle.root, torch.device("cpu"), dtype)
        base = loaded.base()
        models = [base[name] for name in ("unet", "vae", "text_encoder")]
        models += loaded.controlnets().values()
        references: Any = loaded.references(base["unet"])
        models += [references._encoder, references._projection, *references._processors.values()]
        tensors = [tensor for model in models for tensor in packed.tensors_of(model)]
        weights = sum(tensor.numel() * dtype.itemsize for tensor in tensors)
        weights += sum(file.stat().st_size for file in bundle.files("annotator/tiny") if file.suffix != ".json")
        room = bundle.manifest.limits.pixels * ACTIVATIONS * dtype.itemsize + LIBRARIES
        needed = needed_memory(bundle.manifest, bundle.root, dtype)
        # Files have headers. They count here because the files are small.
        assert weights + room < needed < 1.5 * weights + room
    assert needed - room > 1.8 * (needed_memory(bundle.manifest, bundle.root, torch.float16) - LIBRARIES - room / 2)


def test_a_file_counts_in_the_precision_it_is_loaded_in(bundle: Bundle, tmp_path: Path) -> None:
    big = {"a": torch.zeros(1000, 1000), "b": torch.zeros(3, dtype=torch.int64)}
    for name, dtype in (("half", torch.float16), ("full", torch.float32)):
        save_file(big | {"a": big["a"].to(dtype)}, tmp_path / f"{name}.safetensors")
    torch.save(big, tmp_path / "full.bin")
    for file in ("half.safetensors", "full.safetensors", "full.bin"):
        assert low_memory._in_memory(tmp_path / file, torch.float16) == pytest.approx(2_000_000, rel=0.01), file
        assert low_memory._in_memory(tmp_path / file, torch.float32) == pytest.approx(4_000_000, rel=0.01), file
    assert low_memory._in_memory(tmp_path / "full.bin", None) == (tmp_path / "full.bin").stat().st_size


def test_sd15_fits_a_card_of_24_gb_and_none_of_16(monkeypatch, tmp_path: Path) -> None:
    """Calculated from the sizes of the published files, which script/make-random-bundle also writes."""
    sizes = {"unet": 1.719, "vae": 0.167, "text_encoder": 0.246, "safety_checker": 0.608, "controlnet/tile": 1.445}
    annotators = {"hed": 0.059, "mlsd": 0.006, "depth_anything": 0.099, "person_detector": 0.172, "vitpose": 0.344}
    annotators |= {"upernet": 0.328, "normal_bae": 0.291, "lineart": 0.017, "lineart_anime": 0.109}
    sizes |= {f"annotator/{name}": size for name, size in annotators.items()}
    manifest = Manifest.read(SD15)
    for part in manifest.parts:
        for path in part.paths:
            file = tmp_path / "sd15" / path
            file.parent.mkdir(parents=True, exist_ok=True)
            with file.open("wb") as opened:  # a hole takes no disk space
                opened.truncate(int(sizes.get(part.name, 0.723) * 1e9) if path.endswith(low_memory.TENSOR_FILES) else 1)
    halves = {True: torch.float16, False: torch.float32}
    monkeypatch.setattr(low_memory, "stored_dtype", lambda file: halves[".fp16." in file.name])
    needed = needed_memory(manifest, tmp_path, torch.float16)
    assert 2**34 < needed < 23.5 * 2**30, f"{needed / 1e9:.1f} GB"


# ---- the ControlNets


def test_packed_controlnets_equal_directly_loaded_ones_bit_for_bit(bundle: Bundle, low: Bundle) -> None:
    ours, plain = low.controlnets(), bundle.controlnets()
    assert list(ours) == list(plain) and all(isinstance(net, Packed) for net in ours._stored.values())
    for name in ("canny", "scribble", "canny"):
        expected, got = plain[name].state_dict(), ours[name].state_dict()
        assert expected.keys() == got.keys() and all(torch.equal(expected[key], got[key]) for key in got), name
        assert all(tensor.device.type == low.device.type for tensor in got.values())


def test_a_pickle_in_float32_is_packed_in_the_working_precision(bundle: Bundle, tmp_path: Path) -> None:
    """For example the tile ControlNet, which is published in float32."""
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


def test_low_memory_mode_makes_the_same_pictures(bundle: Bundle, low: Bundle) -> None:
    usual, swapping = Generator(bundle), Generator(low)
    for name in ("canny", "scribble", "canny"):
        asked = job(control={"conditioner": name})
        assert pixels(swapping.generate(asked)) == pixels(usual.generate(asked)), name


def test_only_controlnets_of_the_request_are_moved_and_timed(low: Bundle, monkeypatch) -> None:
    moved: list[Packed] = []
    on = Packed.on
    monkeypatch.setattr(Packed, "on", lambda self, device: moved.append(self) or on(self, device))
    swapping = low.controlnets()
    timed: list[tuple[str, float]] = []

    def moves(*names: str) -> list[str]:
        moved.clear()
        timed.clear()
        swapping.prepare(names, Stopwatch(lambda *figure: timed.append(figure)))
        assert [name for name, _ in timed] == ["timing.swap"] * bool(moved)
        assert all(seconds >= 0 for _, seconds in timed)
        return [name for net in moved for name, stored in swapping._stored.items() if stored is net]

    assert moves("canny", "scribble", "canny") == ["canny", "scribble"]
    assert moves("scribble") == [] and moves("canny", "scribble") == ["canny"]
    moved.clear()
    assert "hed" in swapping and "nothing" not in swapping
    assert not moved, "`in` moved a net"


# ---- interrupted requests


def bits(net: torch.nn.Module) -> list[bytes]:
    return [bytes(tensor.cpu().flatten().view(torch.uint8).numpy()) for tensor in packed.tensors_of(net)]


def test_cancelling_a_swap_at_any_point_keeps_controlnets_intact() -> None:
    small: dict[str, Any] = {name: torch.nn.Linear(2, 2).requires_grad_(False) for name in ("canny", "scribble", "hed")}
    expected = {name: bits(net) for name, net in small.items()}
    swapping = ControlNets({name: Packed(net, torch.float32) for name, net in small.items()}, torch.float32)
    for instruction in range(1, 100_000):
        swapping.prepare(["hed", "canny"])
        try:
            with cancelled_at(instruction, controlnets, packed):
                swapping.prepare(["canny", "scribble"])  # one stays, one goes, one comes
        except TooFew:
            break
        names = ["scribble", "hed"] if instruction % 2 else ["canny"]
        assert [bits(net) for net in swapping.prepare(names)] == [expected[name] for name in names], instruction
        assert swapping._copies.keys() == set(names)
        assert all(swapping[name] is not swapping._stored[name].model for name in names), (
            "the net in main memory was moved"
        )
    assert 200 < instruction < 99_999


def test_out_of_memory_in_a_swap_keeps_controlnets_intact(low: Bundle, monkeypatch) -> None:
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
            swapping.prepare(["hed", "scribble"])
    assert held not in swapping._copies.values(), "a net that the request did not name was not freed"
    assert bits(swapping["scribble"]) == expected and list(swapping._copies) == ["scribble"]
