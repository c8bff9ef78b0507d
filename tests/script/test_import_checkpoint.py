"""script/import-checkpoint: a checkpoint in one file becomes a bundle that shares all else with its base."""

import json
import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from checkpoint_kinds import CheckpointError
from import_checkpoint import Wanted, import_checkpoint, main
from random_bundle import write_part
from random_models import SMALL
from safetensors.torch import load_file, save_file
from support.ldm_names import single_file
from support.own_bundles import folder_with, opened, picture

from controlnet.weights.files import verify
from controlnet.weights.lockfile import WeightsError
from controlnet.weights.manifest import WEIGHTS, Manifest

# Of diffusers, about the small UNet's sample_size.
pytestmark = pytest.mark.filterwarnings("ignore:The configuration file of the unet:FutureWarning")
PARTS = ("unet", "vae", "text_encoder")


@pytest.fixture
def root(sd15_root: Path, tmp_path: Path) -> Path:
    return folder_with(sd15_root, tmp_path)


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The models of a checkpoint, in diffusers' layout, with other numbers than those of the small sd15."""
    folder = tmp_path_factory.mktemp("models")
    for number, part in enumerate(Manifest.read(WEIGHTS / "sd15.toml", {}).parts[:3]):
        write_part(part, folder, SMALL, seed=100 + number)
    return folder


@pytest.fixture(scope="session")
def checkpoint(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The models in one file."""
    return single_file(models, tmp_path_factory.mktemp("downloads") / "realistic_v5.safetensors")


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        pytest.fail("something was sent over the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def test_a_checkpoint_becomes_a_bundle_on_its_base(root: Path, models: Path, checkpoint: Path, capsys) -> None:
    assert main([str(checkpoint), "--name", "realistic", "--clip-skip", "2", "--licence", "MIT"], root) == 0
    assert capsys.readouterr().out.splitlines()[-1] == (
        "weights/realistic.toml is written. Use it: CONTROLNET_BUNDLE=realistic"
    )
    bundle = opened(root)
    manifest = bundle.manifest
    assert (bundle.defaults.clip_skip, manifest.part("unet").licence) == (2, "MIT")
    assert [part.name for part in manifest.parts if part.bundle == "realistic"] == list(PARTS)
    assert [part.name for part in manifest.parts] == [part.name for part in Manifest.read(root / "sd15.toml").parts]
    verify(manifest.layers[1], root)
    for part in PARTS:
        assert (bundle.folder(part) / "config.json").read_text() == (models / part / "config.json").read_text()
        (ours,), (theirs,) = ((each / part).glob("*.fp16.safetensors") for each in (root / "realistic", models))
        got, expected = load_file(ours), load_file(theirs)
        expected = {name.removeprefix("text_model."): tensor for name, tensor in expected.items()}
        expected.pop("embeddings.position_ids", None)
        assert got.keys() == expected.keys()
        assert all(torch.equal(tensor, expected[name]) for name, tensor in got.items())


def test_its_pictures_are_those_of_the_models_in_the_file(root: Path, models: Path, checkpoint: Path) -> None:
    import_checkpoint(checkpoint, Wanted("realistic", clip_skip=2), root)
    whole = root.parent / "whole"  # sd15 with the file's models in the places of its own
    shutil.copytree(root / "sd15", whole / "sd15", symlinks=False, ignore=shutil.ignore_patterns("annotator", *PARTS))
    for part in PARTS:
        shutil.copytree(models / part, whole / "sd15" / part)
    (whole / "sd15/annotator").symlink_to(root / "sd15/annotator")
    text = (root / "sd15.toml").read_text()
    (whole / "sd15.toml").write_text(text.replace("[defaults]", "[defaults]\nclip_skip = 2"))
    made = picture(opened(root))
    assert made == picture(opened(whole, "sd15"))
    assert made != picture(opened(root, "sd15"))


def test_parts_that_the_file_lacks_or_shares_are_the_bases(root: Path, models: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    file = single_file(models, tmp_path / "unet_only.safetensors", "unet")
    import_checkpoint(file, Wanted("realistic"), root, lines.append)
    assert [line.partition(" of realistic")[0] for line in lines[:2]] == [
        "vae: not in the file, so that of sd15 is used.",
        "text_encoder: not in the file, so that of sd15 is used.",
    ]
    bundle = opened(root)
    assert {part: bundle.folder(part).parent.name for part in PARTS} == {
        "unet": "realistic", "vae": "sd15", "text_encoder": "sd15",
    }  # fmt: skip
    both = {**load_file(file), **load_file(single_file(root / "sd15", tmp_path / "vae.safetensors", "vae"))}
    save_file(both, tmp_path / "both.safetensors")
    import_checkpoint(tmp_path / "both.safetensors", Wanted("realistic", replace=True), root, lines.append)
    assert "vae: the same as that of sd15, so it is shared." in lines
    assert not (root / "realistic/vae").exists() and opened(root).folder("vae").parent.name == "sd15"


@pytest.mark.parametrize(
    ("asked", "tensors", "metadata", "expected"),
    [
        (None, {}, {}, None),
        ("v_prediction", {}, {}, "v_prediction"),
        (None, {"v_pred": torch.zeros(0)}, {}, "v_prediction"),
        (None, {}, {"modelspec.prediction_type": "v"}, "v_prediction"),
        (None, {}, {"modelspec.prediction_type": "epsilon"}, None),
        ("epsilon", {"v_pred": torch.zeros(0)}, {}, None),
    ],
)
def test_the_prediction_type_is_the_schedulers(
    root: Path, models: Path, tmp_path: Path, asked: str | None, tensors: dict, metadata: dict, expected: str | None
) -> None:
    file = single_file(models, tmp_path / "v.safetensors", "unet")
    save_file(load_file(file) | tensors, file, metadata | {"format": "pt"})
    import_checkpoint(file, Wanted("realistic", prediction_type=asked), root)
    bundle = opened(root)
    base = json.loads((root / "sd15/scheduler/scheduler_config.json").read_text())
    own = json.loads((bundle.folder("scheduler") / "scheduler_config.json").read_text())
    assert own == base | ({"prediction_type": expected} if expected else {})
    assert (bundle.manifest.part("scheduler").bundle == "realistic") == (expected is not None)


def test_what_training_left_is_no_part_and_strangers_are_named(root: Path, models: Path, tmp_path: Path) -> None:
    left = {name: torch.ones(2) for name in ("model_ema.decay", "alphas_cumprod", "betas", "model_ema.x")}
    lines: list[str] = []
    file = single_file(models, tmp_path / "trained.safetensors", "unet", **left)
    import_checkpoint(file, Wanted("realistic"), root, lines.append)
    assert not any("Not used" in line for line in lines)
    file = single_file(models, tmp_path / "strange.safetensors", "unet", **left, stray=torch.ones(2))
    import_checkpoint(file, Wanted("realistic", replace=True), root, lines.append)
    assert "Not used: 1 tensors that are of no part, such as stray." in lines


def test_a_bundle_can_be_made_on_tiny(models: Path, tmp_path: Path) -> None:
    """tiny has another kind of VAE, which a checkpoint for Stable Diffusion cannot replace."""
    for name in ("tiny.toml", "tiny.lock"):
        shutil.copy(WEIGHTS / name, tmp_path)
    (tmp_path / "tiny").symlink_to(WEIGHTS / "tiny")
    file = single_file(WEIGHTS / "tiny", tmp_path / "toy.safetensors", "unet")
    first = sorted(tensors := load_file(file))[0]
    save_file(tensors | {first: tensors[first] * 1.5}, file)
    save_file(load_file(file) | load_file(single_file(models, tmp_path / "vae.safetensors", "vae")), file)
    lines: list[str] = []
    import_checkpoint(file, Wanted("toy", base="tiny"), tmp_path, lines.append)
    assert "vae: left out, because tiny has another kind of it." in lines
    bundle = opened(tmp_path, "toy")
    assert bundle.base()["scheduler"].config.prediction_type == "v_prediction", "tiny's own"
    assert picture(bundle) != picture(opened(tmp_path, "tiny"))
    verify(bundle.manifest, tmp_path)


def other(*names: str, shape: tuple[int, ...] = (2, 2)) -> dict[str, torch.Tensor]:
    return {name: torch.ones(shape) for name in names}


def unet(channels: int = 4, width: int = 768) -> dict[str, torch.Tensor]:
    attention = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
    first = "model.diffusion_model.input_blocks.0.0.weight"
    return {first: torch.ones(2, channels, 3, 3), attention: torch.ones(2, width)}


@pytest.mark.parametrize(
    ("tensors", "what"),
    [
        (unet(4, 1024), "is a checkpoint of Stable Diffusion 2: expected a Stable Diffusion 1.5 checkpoint in one"),
        (unet(9, 1024), "is a checkpoint of Stable Diffusion 2 (inpainting): "),
        (unet(4, 2048), "is a checkpoint of SDXL: "),
        (unet(4, 1280), "is a checkpoint of the SDXL refiner: "),
        (unet(9, 16), "is an inpainting checkpoint whose UNet takes 9 channels, not 4: "),
        (unet(8, 16), "is an InstructPix2Pix checkpoint whose UNet takes 8 channels, not 4: "),
        (unet(6, 16), "is a checkpoint whose UNet takes 6 channels, not 4: "),
        (unet(4, 17), "is a checkpoint for another text encoder than the bundle's (17 wide): "),
        (
            unet(4, 16) | other("cond_stage_model.transformer.embeddings.token_embedding.weight"),
            "is a checkpoint whose text encoder has other names than CLIP's: ",
        ),
        (other("model.diffusion_model.joint_blocks.0.x_block.attn.qkv"), "is a checkpoint of Stable Diffusion 3"),
        (other("model.diffusion_model.double_blocks.0.img_attn.qkv.weight"), "is a checkpoint of FLUX: "),
        (other("transformer.single_transformer_blocks.0.attn.to_q.weight"), "is a checkpoint of FLUX: "),
        (other("lora_unet_down_blocks_0.lora_down.weight", "lora_unet_x.alpha"), "is a LoRA, which is sent with a"),
        (other("unet.down_blocks.0.attn1.to_q.lora_A.weight"), "is a LoRA, which is sent with a"),
        (other("lora_unet_x.hada_w1_a"), "is a LoHa or LoKr, which changes a checkpoint: "),
        (other("lora_unet_x.lokr_w1"), "is a LoHa or LoKr, which changes a checkpoint: "),
        (other("control_model.zero_convs.0.0.weight"), "is a ControlNet (docs/bring-your-own.md says how to "),
        (other("controlnet_cond_embedding.conv_in.weight"), "is a ControlNet (docs/bring-your-own.md "),
        (other("emb_params"), "is an embedding (textual inversion): "),
        (other("image_proj.proj.weight", "ip_adapter.1.to_k_ip.weight"), "is an IP-Adapter: "),
        (other("body.0.block1.weight", "adapter.body.0.weight"), "is a T2I-Adapter: "),
        (other("down_blocks.0.motion_modules.0.norm.weight"), "is a motion module of AnimateDiff: "),
        (other("first_stage_model.encoder.conv_in.weight", "decoder.conv_in.weight"), "is a VAE (docs/"),
        (other("text_model.final_layer_norm.weight"), "is a text encoder alone: "),
        (other("down_blocks.0.resnets.0.conv1.weight"), "is a UNet alone, in the layout of diffusers: "),
        (other("something.else"), "is of a kind that is not known here: "),
        ({}, "is empty: "),
    ],
)
def test_other_files_are_refused_by_what_they_are(root: Path, tmp_path: Path, tensors: dict, what: str) -> None:
    save_file(tensors, tmp_path / "file.safetensors")
    with pytest.raises(CheckpointError) as caught:
        import_checkpoint(tmp_path / "file.safetensors", Wanted("realistic"), root)
    assert str(caught.value).startswith(f"file.safetensors {what}")
    assert str(tmp_path) not in str(caught.value)
    assert sorted(os.listdir(root)) == ["sd15", "sd15.toml"]


def pickled(file: Path, checkpoint: Path) -> Path:
    torch.save({"x": torch.zeros(1)}, file.with_suffix(".ckpt"))
    return file.with_suffix(".ckpt")


def pickled_with_another_name(file: Path, checkpoint: Path) -> Path:
    return pickled(file, checkpoint).rename(file)


def cut_short(file: Path, checkpoint: Path) -> Path:
    file.write_bytes(checkpoint.read_bytes()[:-1])
    return file


def changed(change: Callable[[dict[str, torch.Tensor], str], None]) -> Callable[[Path, Path], Path]:
    """A file that differs from the checkpoint's in one tensor of the UNet."""

    def make(file: Path, checkpoint: Path) -> Path:
        tensors = load_file(checkpoint)
        change(tensors, "model.diffusion_model.output_blocks.0.0.in_layers.2.weight")
        save_file(tensors, file)
        return file

    return make


def set_first(value: float) -> Callable[[dict[str, torch.Tensor], str], None]:
    def change(tensors: dict[str, torch.Tensor], name: str) -> None:
        tensors[name] = tensors[name].float()
        tensors[name].view(-1)[0] = value

    return change


NOT_WHOLE = r"has \d+ numbers in its unet, expected \d+: it is not whole, or of another architecture"


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (pickled, r"^file.ckpt is a pickled file, which can run code when it is opened: expected a Stable"),
        (pickled_with_another_name, r"^file.safetensors is a pickled file"),
        (cut_short, r"^file.safetensors is not a whole .safetensors file \(cut short\?\): expected"),
        (lambda file, checkpoint: file, r"^There is no file file.safetensors\.$"),
        (changed(lambda tensors, name: tensors.pop(name)), NOT_WHOLE),
        (changed(lambda tensors, name: tensors.update({f"{name}_2": tensors[name].clone()})), NOT_WHOLE),
        (changed(set_first(float("nan"))), r"that are none or too large for half precision: up_blocks.0.resnets"),
        (changed(set_first(70000.0)), r"that are none or too large for half precision"),
        (changed(lambda tensors, name: tensors.update({name: tensors[name].flatten()})), r"does not fit the networks"),
        (changed(lambda tensors, name: tensors.update({f"{name}_2": tensors.pop(name)})), r"does not fit the networks"),
    ],
)
def test_damaged_files_are_refused_and_leave_nothing(
    root: Path, tmp_path: Path, checkpoint: Path, make: Callable[[Path, Path], Path], sentence: str
) -> None:
    with pytest.raises(CheckpointError, match=sentence):
        import_checkpoint(make(tmp_path / "file.safetensors", checkpoint), Wanted("realistic"), root)
    assert sorted(os.listdir(root)) == ["sd15", "sd15.toml"]


@pytest.mark.parametrize(
    ("wanted", "sentence"),
    [
        (Wanted("sd15"), r"^There is a bundle named sd15: take another"),
        (Wanted("sd15", replace=True), r"^There is a bundle named sd15: take another"),
        (Wanted("Realistic v5"), r"^The name must be lower case letters"),
        (Wanted("realistic", clip_skip=3), r"^clip_skip must be 1 to 2, the text encoder's layers; it is 3\.$"),
        (Wanted("realistic", base="large"), r"There is no bundle named 'large'"),
    ],
)
def test_wrong_wishes_are_refused(root: Path, checkpoint: Path, wanted: Wanted, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        import_checkpoint(checkpoint, wanted, root)


def test_the_base_must_be_there_and_extend_nothing(root: Path, checkpoint: Path, tmp_path: Path, capsys) -> None:
    import_checkpoint(checkpoint, Wanted("realistic"), root)
    with pytest.raises(CheckpointError, match="There is a bundle named realistic: take another, or --replace"):
        import_checkpoint(checkpoint, Wanted("realistic"), root)
    with pytest.raises(CheckpointError, match="realistic extends sd15: extend that one"):
        import_checkpoint(checkpoint, Wanted("more", base="realistic"), root)
    (root / "sd15").unlink()
    assert main([str(checkpoint), "--name", "more"], root) == 1
    assert capsys.readouterr().err == "The files of sd15 are not there: script/download-weights sd15.\n"
    with pytest.raises(WeightsError, match="of realistic cannot be used"):
        opened(root)
