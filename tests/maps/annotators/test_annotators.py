"""What holds for every annotator, and which files strict loading refuses."""

import inspect
import subprocess
import sys
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from annotator_weights import MAKERS
from PIL import Image
from safetensors.torch import load_file, save_file
from skimage import data
from support.warned import warned

from controlnet.maps.annotators import ANNOTATORS, SHORT_SIDE, Annotator, LoadedAnnotator, knobs_of
from controlnet.maps.annotators.skeletons import PoseAnnotator

CPU = torch.device("cpu")
OWN_RESOLUTION = {"hed", "hed_scribble", "mlsd", "normal_bae", "upernet", "lineart", "lineart_anime"}
"""Kinds that choose their private resolution themselves. 512 takes seconds on a CPU, so the tests lower it."""
SIZES = [(64, 64), (200, 136), (97, 131)]
ONE_SIZE = {"openpose_cmu"}
"""Kinds whose network cannot be small and takes a second for each map. Their own tests try other sizes."""


def lowered(kind: str, annotator: Any) -> Annotator:
    """The annotator at a small private short side, if the kind chooses it."""
    if kind == "openpose_cmu":
        return PoseAnnotator(partial(annotator.find, short_side=128), annotator.more)
    return partial(annotator, short_side=32) if kind in OWN_RESOLUTION else annotator


@cache
def photo(size: tuple[int, int]) -> Image.Image:
    return Image.fromarray(data.astronaut()).resize(size)


@pytest.mark.parametrize("kind", ANNOTATORS)
def test_a_map_is_rgb_of_the_same_size_and_deterministic(
    kind: str, loaded: Callable[[str], Annotator], recwarn: pytest.WarningsRecorder, capfd: pytest.CaptureFixture
) -> None:
    annotator = lowered(kind, loaded(kind))
    for size in SIZES[:1] if kind in ONE_SIZE else SIZES:
        image = photo(size).copy()
        control_map = annotator(image)
        assert (control_map.size, control_map.mode) == (size, "RGB")
        assert len(np.unique(np.array(control_map))) > 1, f"{kind} draws nothing at {size}"
        assert image.tobytes() == photo(size).tobytes(), "the input was changed"
    assert annotator(image).tobytes() == control_map.tobytes()
    assert warned(recwarn) == []
    assert capfd.readouterr().out == ""


def networks_of(annotator: Any) -> list[torch.nn.Module]:
    """All networks of an annotator."""
    pieces = [annotator.find, *annotator.more.values()] if isinstance(annotator, PoseAnnotator) else [annotator]
    return [part for piece in pieces for part in getattr(piece, "args", ()) if isinstance(part, torch.nn.Module)]


@pytest.mark.parametrize("kind", sorted({kind.name for kind in ANNOTATORS.values() if kind.parts}))
def test_networks_are_loaded_for_inference_in_float32(kind: str, loaded: Callable[[str], Annotator]) -> None:
    networks = networks_of(loaded(kind))
    # ONNX Runtime's networks are none of PyTorch's.
    assert len(networks) == {"openpose_cmu": 3, "openpose_dwpose": 0}.get(kind, len(ANNOTATORS[kind].parts))
    for network in networks:
        assert not any(module.training for module in network.modules())
        assert not any(parameter.requires_grad for parameter in network.parameters())
        assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}


def test_every_part_of_an_annotator_has_random_weights() -> None:
    assert {part for kind in ANNOTATORS.values() for part in kind.parts} == set(MAKERS)


@pytest.mark.parametrize("kind", ANNOTATORS)
def test_declared_knobs_are_optional_arguments_of_the_annotator(kind: str, loaded: Callable[[str], Annotator]) -> None:
    parameters = inspect.signature(loaded(kind)).parameters
    for knob in ANNOTATORS[kind].knobs:
        assert parameters[knob].default is not inspect.Parameter.empty
    assert set(parameters) - {"image"} == set(ANNOTATORS[kind].knobs)


def test_a_loaded_annotator_has_the_knobs_of_its_kind(loaded: Callable[[str], Annotator]) -> None:
    annotator = LoadedAnnotator(ANNOTATORS["canny"], loaded("canny"))
    assert knobs_of(annotator) == ("low_threshold", "high_threshold") and knobs_of(annotator.draw) == ()
    shown = annotator(photo((64, 64)), low_threshold=10, high_threshold=20)
    assert shown.tobytes() == annotator.draw(photo((64, 64)), 10, 20).tobytes() != annotator(photo((64, 64))).tobytes()


@pytest.mark.parametrize("kind", sorted({kind.name for kind in ANNOTATORS.values() if SHORT_SIDE in kind.knobs}))
def test_short_side_is_the_size_that_the_network_sees(kind: str, loaded: Callable[[str], Annotator]) -> None:
    """Two short sides give two maps, both of the picture's size."""
    annotator: Any = loaded(kind)
    shapes: list[torch.Size] = []
    layers = [layer for network in networks_of(annotator) for layer in network.modules()]
    # The first convolution instead of the network, because HED's class runs no hooks.
    first = [layer for layer in layers if isinstance(layer, torch.nn.Conv2d)][:1]
    hooks = [layer.register_forward_pre_hook(lambda _, inputs: shapes.append(inputs[0].shape[2:])) for layer in first]
    maps = [annotator(photo((200, 136)), short_side=side) for side in (64, 128)]
    for hook in hooks:
        hook.remove()
    assert [control_map.size for control_map in maps] == [(200, 136)] * 2
    assert maps[0].tobytes() != maps[1].tobytes()
    if kind != "lineart_standard":  # the only one without a network
        # lineart_anime stretches both sides up to multiples of 256.
        expected = (256, 256) if kind == "lineart_anime" else (64, 128)
        assert [min(shape) for shape in shapes] == pytest.approx(expected, abs=7)  # for patches and padding


def test_importing_the_list_of_annotators_imports_no_torch() -> None:
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


def test_a_checkpoint_of_bae_that_does_not_fit_names_its_tensor(tmp_path: Path) -> None:
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
