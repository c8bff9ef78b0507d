"""Models are equal, bit for bit, to those loaded by diffusers and transformers, although the bytes move differently."""

import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from diffusers import AutoencoderKL, ControlNetModel, UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from random_bundle import write_part
from random_models import SMALL
from safetensors.torch import load_file, save_file
from transformers import (
    CLIPTextModel,
    DepthAnythingForDepthEstimation,
    PreTrainedModel,
    RTDetrForObjectDetection,
    UperNetForSemanticSegmentation,
    VitPoseForPoseEstimation,
)

from controlnet.models.loading import WeightsMismatch, in_parallel, load_network, load_pretrained, move, read_ahead
from controlnet.weights.manifest import WEIGHTS, Manifest

CPU = torch.device("cpu")
FILE = "diffusion_pytorch_model.fp16.safetensors"
CLASSES = {
    "unet": UNet2DConditionModel,
    "vae": AutoencoderKL,
    "text_encoder": CLIPTextModel,
    "safety_checker": StableDiffusionSafetyChecker,
    "controlnet/canny": ControlNetModel,
    "annotator/depth_anything": DepthAnythingForDepthEstimation,
    "annotator/person_detector": RTDetrForObjectDetection,
    "annotator/vitpose": VitPoseForPoseEstimation,
    "annotator/upernet": UperNetForSemanticSegmentation,
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weights")
    for part in Manifest.read(WEIGHTS / "sd15.toml").parts:
        if part.name in CLASSES:
            write_part(part, folder, SMALL, seed=0)
    return folder


@pytest.fixture
def canny(root: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(root / "controlnet/canny", tmp_path / "canny"))


def plain(model_class, folder: Path, dtype: torch.dtype):
    """Load a model with from_pretrained only."""
    transformers = issubclass(model_class, PreTrainedModel)
    variant = "fp16" if any(folder.glob("*.fp16.*")) else None
    return model_class.from_pretrained(
        folder, variant=variant, local_files_only=True, **{"dtype" if transformers else "torch_dtype": dtype}
    )


def all_tensors(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return dict(model.named_parameters()) | dict(model.named_buffers())


def equal(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    """Equal names, precision and bits, also of buffers that are in no file."""
    left, right = all_tensors(one), all_tensors(other)
    return left.keys() == right.keys() and all(
        left[name].dtype == right[name].dtype and torch.equal(left[name], right[name]) for name in left
    )


def is_mapped(file: Path) -> bool:
    return str(file) in Path("/proc/self/maps").read_text()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("part", CLASSES)
def test_a_model_equals_from_pretrained_bit_for_bit(root: Path, part: str, dtype: torch.dtype) -> None:
    ours = load_pretrained(CLASSES[part], root / part, CPU, dtype)
    assert equal(ours, plain(CLASSES[part], root / part, dtype))
    assert not ours.training and not any(parameter.requires_grad for parameter in ours.parameters())


def test_a_controlnet_in_its_files_precision_stays_mapped(canny: Path) -> None:
    net = load_pretrained(ControlNetModel, canny, CPU, None)
    assert {parameter.dtype for parameter in net.parameters()} == {torch.float16}
    assert is_mapped(canny / FILE)
    in_memory = load_pretrained(ControlNetModel, canny, CPU, torch.float32)
    del net
    assert not is_mapped(canny / FILE), "a cast net still holds its file"
    assert in_memory.dtype == torch.float32


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("stored", [torch.float16, torch.float32], ids=str)
def test_a_bin_file_is_mapped_if_it_is_a_zip(canny: Path, stored: torch.dtype, zipped: bool, caplog) -> None:
    """ControlNets are published as .bin files in both precisions. Old .pth files are not zip files."""
    expected = load_pretrained(ControlNetModel, canny, CPU)
    tensors = {name: tensor.to(stored) for name, tensor in load_file(canny / FILE).items()}
    (canny / FILE).unlink()
    file = canny / "diffusion_pytorch_model.bin"
    torch.save(tensors, file, _use_new_zipfile_serialization=zipped)
    net = load_pretrained(ControlNetModel, canny, CPU, None)
    assert net.dtype == stored and is_mapped(file) == zipped
    assert equal(load_pretrained(ControlNetModel, canny, CPU), expected)
    assert not caplog.records, "a warning that nobody can act on"


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickled_network_is_mapped_if_it_is_a_zip(tmp_path: Path, zipped: bool) -> None:
    saved = torch.nn.Linear(3, 2)
    torch.save(saved.half().state_dict(), tmp_path / "net.pth", _use_new_zipfile_serialization=zipped)
    network = load_network(lambda: torch.nn.Linear(3, 2), tmp_path / "net.pth", CPU)
    assert torch.equal(network.weight, saved.weight.float())
    torch.save(saved.float().state_dict(), tmp_path / "net.pth", _use_new_zipfile_serialization=zipped)
    network = load_network(lambda: torch.nn.Linear(3, 2), tmp_path / "net.pth", CPU)
    assert torch.equal(network.weight, saved.weight) and is_mapped(tmp_path / "net.pth") == zipped


def test_a_file_with_two_precisions_is_loaded_exactly(canny: Path) -> None:
    tensors = load_file(canny / FILE)
    name = "conv_in.weight"
    tensors[name] = tensors[name].float() + 1e-6
    save_file(tensors, canny / FILE, metadata={"format": "pt"})
    assert torch.equal(load_pretrained(ControlNetModel, canny, CPU).conv_in.weight, tensors[name])


@pytest.mark.parametrize("fault", ["missing", "unexpected", "of another shape"])
@pytest.mark.parametrize("dtype", [torch.float32, None], ids=str)
def test_weights_mismatch_names_the_tensor(canny: Path, fault: str, dtype: torch.dtype | None) -> None:
    tensors = load_file(canny / FILE)
    name = "conv_in.weight"
    if fault == "missing":
        del tensors[name]
    elif fault == "unexpected":
        tensors[name := "stray.weight"] = torch.zeros(2, dtype=torch.float16)
    else:
        tensors[name] = tensors[name][:-1].clone()
    save_file(tensors, canny / FILE, metadata={"format": "pt"})
    with pytest.raises(WeightsMismatch, match=rf"^canny does not fit its network \({fault}: {name}\)"):
        load_pretrained(ControlNetModel, canny, CPU, dtype)


def test_old_names_of_a_vaes_attention_load(root: Path, tmp_path: Path) -> None:
    """Other repositories' copies of Stable Diffusion's VAE have them."""
    shutil.copytree(root / "vae", tmp_path / "vae")
    names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    tensors = load_file(tmp_path / "vae" / FILE)
    for new, old in names.items():
        tensors = {name.replace(f".{new}.", f".{old}."): tensor for name, tensor in tensors.items()}
    assert "encoder.mid_block.attentions.0.query.weight" in tensors
    save_file(tensors, tmp_path / "vae" / FILE, metadata={"format": "pt"})
    assert equal(
        load_pretrained(AutoencoderKL, tmp_path / "vae", CPU), load_pretrained(AutoencoderKL, root / "vae", CPU)
    )


def test_old_position_ids_are_dropped_and_other_extras_refused(canny: Path, tmp_path: Path) -> None:
    """Files of CLIP models from before transformers 4.31 hold them. transformers ignores them, but not diffusers."""
    position_ids = {"text_model.embeddings.position_ids": torch.arange(4)[None]}
    expected = load_pretrained(ControlNetModel, canny, CPU)
    save_file(load_file(canny / FILE) | position_ids, canny / FILE, metadata={"format": "pt"})
    assert equal(load_pretrained(ControlNetModel, canny, CPU), expected)
    saved = torch.nn.Linear(3, 2).state_dict()
    torch.save(saved | position_ids, tmp_path / "net.pth")
    assert torch.equal(load_network(lambda: torch.nn.Linear(3, 2), tmp_path / "net.pth", CPU).weight, saved["weight"])
    torch.save(saved | position_ids | {"stray_position_ids": torch.zeros(2)}, tmp_path / "net.pth")
    with pytest.raises(WeightsMismatch, match=r"^net\.pth does not fit its network \(unexpected: stray_position_ids\)"):
        load_network(lambda: torch.nn.Linear(3, 2), tmp_path / "net.pth", CPU)


def test_a_folder_without_weights_is_an_error_that_names_it(canny: Path) -> None:
    (canny / FILE).unlink()
    with pytest.raises(WeightsMismatch, match=r"^canny has no file of tensors\."):
        load_pretrained(ControlNetModel, canny, CPU)


def test_move_casts_floats_and_keeps_integers() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    weight = model[0].weight
    assert move(model, CPU, torch.float16) is model
    assert model[0].weight is weight and weight.dtype == model[1].running_mean.dtype == torch.float16
    assert model[1].num_batches_tracked.dtype == torch.int64
    assert {tensor.device.type for tensor in all_tensors(move(model, CPU, torch.float32)).values()} == {"cpu"}


def test_in_parallel_keeps_the_order_and_raises_errors_of_threads() -> None:
    tensors = [torch.tensor(float(i)) for i in range(40)]
    assert in_parallel(lambda tensor: int(tensor) * 2, tensors) == [2 * i for i in range(40)]
    with pytest.raises(ZeroDivisionError):
        in_parallel(lambda tensor: 1 // int(tensor), tensors)


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="not on macOS")
def test_read_ahead_advises_the_system_of_every_file_in_order(root: Path, monkeypatch) -> None:
    advised = []

    def advise(descriptor: int, *advice: int) -> None:
        advised.append((os.fstat(descriptor).st_ino, *advice))

    monkeypatch.setattr("controlnet.models.loading.os.posix_fadvise", advise)
    monkeypatch.setattr(
        "controlnet.models.loading.threading.Thread", lambda target, daemon: SimpleNamespace(start=target)
    )
    files = sorted(root.rglob("*.safetensors"), reverse=True)
    read_ahead(files)
    assert advised == [(file.stat().st_ino, 0, 0, os.POSIX_FADV_WILLNEED) for file in files]
    assert len(files) > 1
