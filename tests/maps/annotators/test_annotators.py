"""What every annotator promises, and what strict loading refuses."""

import inspect
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from annotator_weights import MAKERS, make_part
from PIL import Image
from safetensors.torch import load_file, save_file
from skimage import data

from controlnet.maps.annotators import ANNOTATORS, SHORT_SIDE, Annotator, LoadedAnnotator, knobs_of
from controlnet.maps.annotators.skeletons import PoseAnnotator

CPU = torch.device("cpu")
OWN_RESOLUTION = {"hed", "hed_scribble", "mlsd", "normal_bae", "upernet", "lineart", "lineart_anime"}
"""Kinds whose private resolution is their own, not their processor's: 512 takes seconds on a CPU, so tests lower it."""
SIZES = [(64, 64), (200, 136), (97, 131)]
ONE_SIZE = {"openpose_cmu"}
"""Kinds whose network cannot be small and takes seconds each time; their own tests try other sizes."""


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Networks this small gain nothing from threads, and on a busy machine threads wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    root = tmp_path_factory.getbasetemp() / "bundle"  # shared with the other test files
    return cache(lambda part: make_part(part, root))


@pytest.fixture(scope="module")
def annotator_of(folder_of: Callable[[str], Path]) -> Callable[[str], Annotator]:
    @cache
    def load(kind: str) -> Annotator:
        annotator: Any = ANNOTATORS[kind].load(folder_of, CPU)
        return partial(annotator, short_side=32) if kind in OWN_RESOLUTION else annotator

    return load


@cache
def photo(size: tuple[int, int]) -> Image.Image:
    return Image.fromarray(data.astronaut()).resize(size)


@pytest.mark.parametrize("kind", ANNOTATORS)
def test_a_map_is_rgb_of_the_same_size_and_the_same_every_time(
    kind: str, annotator_of: Callable[[str], Annotator], recwarn: pytest.WarningsRecorder, capfd: pytest.CaptureFixture
) -> None:
    annotator = annotator_of(kind)
    for size in SIZES[:1] if kind in ONE_SIZE else SIZES:
        image = photo(size).copy()
        control_map = annotator(image)
        assert (control_map.size, control_map.mode) == (size, "RGB")
        assert len(np.unique(np.array(control_map))) > 1, f"{kind} sees nothing at {size}"
        assert image.tobytes() == photo(size).tobytes(), "the input was changed"
    assert annotator(image).tobytes() == control_map.tobytes()
    assert [str(warning.message) for warning in recwarn] == []
    assert capfd.readouterr().out == ""


def networks_of(annotator: Any) -> list[torch.nn.Module]:
    """Every network that an annotator was made with."""
    pieces = [annotator.find, *annotator.more.values()] if isinstance(annotator, PoseAnnotator) else [annotator]
    return [part for piece in pieces for part in piece.args if isinstance(part, torch.nn.Module)]


@pytest.mark.parametrize("kind", sorted({kind.name for kind in ANNOTATORS.values() if kind.parts}))
def test_networks_are_loaded_for_inference_in_float32(kind: str, annotator_of: Callable[[str], Annotator]) -> None:
    networks = networks_of(annotator_of(kind))
    assert len(networks) == (3 if kind == "openpose_cmu" else len(ANNOTATORS[kind].parts))
    for network in networks:
        assert not any(module.training for module in network.modules())
        assert not any(parameter.requires_grad for parameter in network.parameters())
        assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}


def test_every_part_that_a_kind_needs_is_tested() -> None:
    assert {part for kind in ANNOTATORS.values() for part in kind.parts} == set(MAKERS)
    assert all(name == kind.name for name, kind in ANNOTATORS.items())


@pytest.mark.parametrize("kind", ANNOTATORS)
def test_a_kind_declares_knobs_that_its_annotator_takes_and_has_defaults_for(
    kind: str, folder_of: Callable[[str], Path]
) -> None:
    parameters = inspect.signature(ANNOTATORS[kind].load(folder_of, CPU)).parameters
    for knob in ANNOTATORS[kind].knobs:
        assert parameters[knob].default is not inspect.Parameter.empty
    # tile's factor is no knob: its net was trained on one.
    assert set(parameters) - {"image", "factor"} == set(ANNOTATORS[kind].knobs)


def test_knobs_are_those_of_the_kind_and_a_function_has_none(folder_of: Callable[[str], Path]) -> None:
    kind = ANNOTATORS["canny"]
    annotator = LoadedAnnotator(kind, kind.load(folder_of, CPU))
    assert knobs_of(annotator) == ("low_threshold", "high_threshold") and knobs_of(annotator.draw) == ()
    shown = annotator(photo((64, 64)), low_threshold=10, high_threshold=20)
    assert shown.tobytes() == annotator.draw(photo((64, 64)), 10, 20).tobytes() != annotator(photo((64, 64))).tobytes()


# Not tiny_openpose: random weights see a person at every pixel, or none.
@pytest.mark.parametrize(
    "kind", sorted({kind.name for kind in ANNOTATORS.values() if SHORT_SIDE in kind.knobs} - {"tiny_openpose"})
)
def test_the_private_short_side_is_what_the_network_sees(kind: str, folder_of: Callable[[str], Path]) -> None:
    """Two short sides give two maps, both of the picture's size."""
    annotator: Any = ANNOTATORS[kind].load(folder_of, CPU)
    maps = [annotator(photo((200, 136)), short_side=side) for side in (64, 128)]
    assert [control_map.size for control_map in maps] == [(200, 136)] * 2
    assert maps[0].tobytes() != maps[1].tobytes()


def test_reading_the_list_imports_no_torch() -> None:
    code = (
        "import sys, controlnet.maps.annotators; print({'torch', 'transformers', 'controlnet_aux'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


PICKLED = {
    "hed": ("annotator/hed", "ControlNetHED.pth", "block3.convs.1.weight"),
    "mlsd": ("annotator/mlsd", "mlsd_large_512_fp32.pth", "block23.conv3.bias"),
    "lineart": ("annotator/lineart", "sk_model.pth", "model2.1.conv_block.5.weight"),
    "lineart_anime": ("annotator/lineart_anime", "netG.pth", "module.model.model.0.weight"),
}
SAVED = {
    "depth_anything": ("annotator/depth_anything", "head.conv1.weight"),
    "upernet": ("annotator/upernet", "decode_head.classifier.bias"),
    "openpose": ("annotator/vitpose", "head.conv.weight"),
}


def drop(tensors: dict[str, torch.Tensor], name: str) -> None:
    del tensors[name]


def add(tensors: dict[str, torch.Tensor], name: str) -> None:
    tensors[name + ".more"] = torch.zeros(1)


def reshape(tensors: dict[str, torch.Tensor], name: str) -> None:
    tensors[name] = torch.zeros(7)


DAMAGES = {drop: "missing: {}", add: "unexpected: {}.more", reshape: "of another shape: {}"}


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
@pytest.mark.parametrize("kind", PICKLED)
def test_a_pickle_that_does_not_fit_names_its_tensor(
    kind: str, damage: Callable, folder_of: Callable[[str], Path], tmp_path: Path
) -> None:
    part, file, name = PICKLED[kind]
    tensors = torch.load(folder_of(part) / file, weights_only=True)
    damage(tensors, name)
    torch.save(tensors, tmp_path / file)
    refused(kind, part, tmp_path, folder_of, DAMAGES[damage].format(name.removeprefix("module.")))


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
@pytest.mark.parametrize("kind", SAVED)
def test_a_transformers_model_that_does_not_fit_names_its_tensor(
    kind: str, damage: Callable, folder_of: Callable[[str], Path], tmp_path: Path
) -> None:
    part, name = SAVED[kind]
    for file in folder_of(part).iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    tensors = load_file(tmp_path / "model.safetensors")
    damage(tensors, name)
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    refused(kind, part, tmp_path, folder_of, DAMAGES[damage].format(name))


def test_normal_bae_refuses_a_bare_state_dict_and_names_a_missing_tensor(tmp_path: Path) -> None:
    torch.save({"module.encoder.weight": torch.zeros(1)}, tmp_path / "scannet.pt")
    refused("normal_bae", "annotator/normal_bae", tmp_path, None, "scannet.pt does not hold a network's tensors")
    torch.save({"model": {"module.extra": torch.zeros(1)}}, tmp_path / "scannet.pt")
    refused("normal_bae", "annotator/normal_bae", tmp_path, None, "missing: decoder.conv2.bias")
    refused("normal_bae", "annotator/normal_bae", tmp_path, None, "unexpected: extra")


class Spell:
    def __reduce__(self) -> tuple:
        return (print, ("code of a pickle was run",))


def test_a_pickle_with_code_in_it_is_not_run(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    torch.save({"spell": Spell()}, tmp_path / "ControlNetHED.pth")
    refused("hed", "annotator/hed", tmp_path, None, "does not hold a network's tensors")
    assert "was run" not in capfd.readouterr().out


def refused(kind: str, part: str, folder: Path, folder_of: Callable[[str], Path] | None, message: str) -> None:
    from controlnet.models.loading import WeightsMismatch

    with pytest.raises(WeightsMismatch) as caught:
        ANNOTATORS[kind].load(lambda name: folder if name == part or folder_of is None else folder_of(name), CPU)
    assert message in str(caught.value)
    assert str(folder) not in str(caught.value)
