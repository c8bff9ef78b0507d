"""script/import-checkpoint: a checkpoint in one file becomes a bundle that shares all else with its base."""

import json
import os
import resource
import shutil
import signal
import socket
from collections.abc import Callable
from pathlib import Path

import import_checkpoint as ours
import pytest
import torch
from checkpoint_kinds import CheckpointError
from import_checkpoint import Wanted, import_checkpoint, main
from random_bundle import write_part
from random_models import SMALL
from safetensors.torch import load_file, save_file
from support.ldm_names import controlnet_file, single_file, with_names_of_novelai
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
    verify(manifest.manifests[1], root)
    for part in PARTS:
        assert (bundle.folder(part) / "config.json").read_text() == (models / part / "config.json").read_text()
        assert_same(root / "realistic" / part, models / part)


def assert_same(ours: Path, theirs: Path) -> None:
    """Fails unless two folders have the same tensors."""
    got, expected = (load_file(next(folder.glob("*.safetensors"))) for folder in (ours, theirs))
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
    assert (bundle.fast is None) == (expected is not None), "LCM-LoRA is for UNets that predict noise"


def test_what_training_left_is_no_part_and_strangers_are_named(root: Path, models: Path, tmp_path: Path) -> None:
    left = {name: torch.ones(2) for name in ("model_ema.decay", "alphas_cumprod", "betas", "model_ema.x")}
    lines: list[str] = []
    file = single_file(models, tmp_path / "trained.safetensors", "unet", **left)
    import_checkpoint(file, Wanted("realistic"), root, lines.append)
    assert not any("Not used" in line for line in lines)
    file = single_file(models, tmp_path / "strange.safetensors", "unet", **left, stray=torch.ones(2))
    import_checkpoint(file, Wanted("realistic", replace=True), root, lines.append)
    assert "Not used: 1 tensors, such as stray." in lines


def test_the_names_of_novelai_are_those_of_the_same_text_encoder(root: Path, models: Path, tmp_path: Path) -> None:
    file = single_file(models, tmp_path / "anime.safetensors")
    ldm = {name: tensor for name, tensor in load_file(file).items() if name.startswith("cond_stage_model.")}
    import_checkpoint(with_names_of_novelai(file), Wanted("realistic"), root)
    for part in PARTS:
        assert_same(root / "realistic" / part, models / part)
    # A merge of both kinds may have both names. Stable Diffusion's own count, as in web UIs.
    both = {
        name: torch.zeros_like(t) if name.startswith("cond_stage_model.") else t for name, t in load_file(file).items()
    }
    save_file(both | ldm, file)
    lines: list[str] = []
    import_checkpoint(file, Wanted("realistic", replace=True), root, lines.append)
    assert_same(root / "realistic/text_encoder", models / "text_encoder")
    assert any(line.startswith("Not used: ") and "cond_stage_model.transformer." in line for line in lines)


@pytest.fixture(scope="session")
def net(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ControlNet's folder in diffusers' layout."""
    folder = tmp_path_factory.mktemp("net")
    part = next(part for part in Manifest.read(WEIGHTS / "sd15.toml", {}).parts if part.name == "controlnet/canny")
    write_part(part, folder, SMALL, seed=200)
    return folder / "controlnet/canny"


def as_pickle(net: Path, file: Path) -> Path:
    torch.save(load_file(controlnet_file(net, file)), file.with_suffix(".pth"))
    return file.with_suffix(".pth")


def in_a_whole_checkpoint(net: Path, file: Path) -> Path:
    save_file(load_file(controlnet_file(net, file)) | unet(4, 16), file)
    return file


@pytest.mark.parametrize(
    "written",
    [
        controlnet_file,
        lambda net, file: controlnet_file(net, file, prefix=""),
        lambda net, file: shutil.copy(next(net.glob("*.safetensors")), file),
        as_pickle,
        in_a_whole_checkpoint,
    ],
    ids=["ldm", "ldm without its prefix", "diffusers", "pth", "inside a checkpoint"],
)
def test_a_controlnet_takes_the_place_of_one(root: Path, net: Path, tmp_path: Path, written, capsys) -> None:
    file = written(net, tmp_path / "lines.safetensors")
    assert main([str(file), "--name", "realistic"], root) == 1
    assert (
        "is a ControlNet: name the conditioner whose place it takes, with --conditioner and" in capsys.readouterr().err
    )
    assert main([str(file), "--name", "realistic", "--conditioner", "canny"], root) == 0
    assert_same(root / "realistic/controlnet/canny", net)
    bundle = opened(root)
    verify(bundle.manifest.manifests[1], root)
    assert [part.name for part in bundle.manifest.parts if part.bundle == "realistic"] == ["controlnet/canny"]
    assert picture(bundle) != picture(opened(root, "sd15"))
    assert picture(opened(root), "scribble") == picture(opened(root, "sd15"), "scribble")


def test_a_pooled_controlnet_stays_one(root: Path, net: Path, tmp_path: Path) -> None:
    file = controlnet_file(net, tmp_path / "shuffle.safetensors")
    import_checkpoint(file, Wanted("realistic", conditioner="shuffle"), root)
    assert json.loads((root / "realistic/controlnet/shuffle/config.json").read_text())["global_pool_conditions"]
    assert picture(opened(root), "shuffle") != picture(opened(root, "sd15"), "shuffle")


def bare(file: Path) -> Path:
    names = {name.removeprefix("first_stage_model."): tensor for name, tensor in load_file(file).items()}
    save_file(names | {"loss.logvar": torch.zeros(1)}, file)
    return file


@pytest.mark.parametrize("bared", [lambda file: file, bare], ids=["with its prefix", "without"])
def test_a_vae_alone_takes_the_place_of_the_bases(root: Path, models: Path, tmp_path: Path, bared) -> None:
    lines: list[str] = []
    file = bared(single_file(models, tmp_path / "vae.safetensors", "vae"))
    import_checkpoint(file, Wanted("realistic"), root, lines.append)
    assert_same(root / "realistic/vae", models / "vae")
    assert picture(opened(root)) != picture(opened(root, "sd15"))
    assert lines[0] == "vae: taken as one for sd15, which no tensor shows. For Stable Diffusion XL: --base sdxl."
    assert len(lines) == 2, lines


def test_a_pickled_checkpoint_of_tensors_is_read_and_no_other_one(root: Path, checkpoint: Path, tmp_path: Path) -> None:
    torch.save({"state_dict": load_file(checkpoint), "epoch": 3}, tmp_path / "old.ckpt")
    import_checkpoint(tmp_path / "old.ckpt", Wanted("old"), root)
    import_checkpoint(checkpoint, Wanted("realistic"), root)
    for part in PARTS:
        assert_same(root / "old" / part, root / "realistic" / part)


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


FIRST = "model.diffusion_model.input_blocks.0.0.weight"
ATTENTION = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"


def unet(channels: int = 4, width: int = 768) -> dict[str, torch.Tensor]:
    return {FIRST: torch.ones(2, channels, 3, 3), ATTENTION: torch.ones(2, width)}


def control_net(channels: int = 3, width: int = 16) -> dict[str, torch.Tensor]:
    hint = {"control_model.input_hint_block.0.weight": torch.ones(2, channels, 3, 3)}
    return hint | {ATTENTION.replace("model.diffusion_model.", "control_model."): torch.ones(2, width)}


@pytest.mark.parametrize(
    ("tensors", "what"),
    [
        (
            unet(4, 1024),
            "is a checkpoint of Stable Diffusion 2: expected a checkpoint of Stable Diffusion 1.5 or XL, a VAE",
        ),
        (unet(9, 1024), "is a checkpoint of Stable Diffusion 2 (inpainting): "),
        (unet(4, 2048), "is a checkpoint of Stable Diffusion XL, and sd15 is Stable Diffusion 1: leave --base out, or"),
        (unet(4, 1280), "is a checkpoint of the refiner of Stable Diffusion XL: "),
        (unet(9, 16), "is an inpainting checkpoint whose UNet takes 9 channels, not 4: "),
        (unet(8, 16), "is an InstructPix2Pix checkpoint whose UNet takes 8 channels, not 4: "),
        (unet(6, 16), "is a checkpoint whose UNet takes 6 channels, not 4: "),
        (unet(4, 17), "is a checkpoint for another text encoder than the bundle's (17 wide): "),
        ({FIRST: torch.ones(2, 4, 3, 3)}, "is a checkpoint without layers that read a prompt: "),
        (
            unet(4, 16) | {FIRST: torch.tensor(1.0)},
            "is no checkpoint that can be read, because its first layer has",
        ),
        (
            unet(4, 16) | {FIRST: torch.ones(3)},
            "is no checkpoint that can be read, because its first layer has",
        ),
        ({FIRST: torch.ones(2, 4, 3, 3), ATTENTION: torch.tensor(1.0)}, "is a checkpoint without layers that read a "),
        (control_net(channels=1), "is a ControlNet for control maps of 1 channels, and here they have 3: expected"),
        (control_net(width=1024), "is a ControlNet of Stable Diffusion 2: "),
        (control_net(width=2048), "is a ControlNet of Stable Diffusion XL, which is not imported: "),
        (control_net(width=17), "is a ControlNet for another text encoder than the bundle's (17 wide): "),
        (control_net() | other("lora_controlnet"), "is a Control-LoRA, which is no whole ControlNet: "),
        (control_net() | other("difference"), "is the difference of a ControlNet from a checkpoint, which is no whole"),
        (other("model.diffusion_model.joint_blocks.0.x_block.attn.qkv"), "is a checkpoint of Stable Diffusion 3"),
        (other("model.diffusion_model.double_blocks.0.img_attn.qkv.weight"), "is a checkpoint of FLUX: "),
        (other("transformer.single_transformer_blocks.0.attn.to_q.weight"), "is a checkpoint of FLUX: "),
        (other("lora_unet_down_blocks_0.lora_down.weight", "lora_unet_x.alpha"), "is a LoRA, which is sent with a"),
        (other("unet.down_blocks.0.attn1.to_q.lora_A.weight"), "is a LoRA, which is sent with a"),
        (other("lora_unet_x.hada_w1_a"), "is a LoHa or LoKr, which changes a checkpoint: "),
        (other("lora_unet_x.lokr_w1"), "is a LoHa or LoKr, which changes a checkpoint: "),
        (other("emb_params"), "is an embedding (textual inversion): "),
        (other("image_proj.proj.weight", "ip_adapter.1.to_k_ip.weight"), "is an IP-Adapter: "),
        (other("body.0.block1.weight", "adapter.body.0.weight"), "is a T2I-Adapter: "),
        (other("down_blocks.0.motion_modules.0.norm.weight"), "is a motion module of AnimateDiff: "),
        (other("text_model.final_layer_norm.weight"), "is a text encoder alone: "),
        (other("down_blocks.0.resnets.0.conv1.weight"), "is a UNet alone, in the layout of diffusers: "),
        (other("something.else"), "is of a kind that is not known here: "),
        ({}, "is empty: "),
    ],
)
def test_other_files_are_refused_by_what_they_are(root: Path, tmp_path: Path, tensors: dict, what: str) -> None:
    save_file(tensors, tmp_path / "file.safetensors")
    conditioner = "canny" if what.startswith("is a ControlNet") else None
    with pytest.raises(CheckpointError) as caught:
        import_checkpoint(tmp_path / "file.safetensors", Wanted("realistic", "sd15", conditioner), root)
    assert str(caught.value).startswith(f"file.safetensors {what}")
    assert str(tmp_path) not in str(caught.value)
    assert sorted(os.listdir(root)) == ["sd15", "sd15.toml"]


def test_the_file_is_looked_at_before_the_bases_files_are_asked_for(root: Path, tmp_path: Path) -> None:
    (root / "sd15").unlink()
    for tensors, words in (
        (other("lora_unet_x.lora_down.weight"), "is a LoRA"),
        (unet(4, 2048), "of Stable Diffusion XL, and sd15 is"),
        (unet(), "The files of sd15 are not there: script/download-weights sd15"),
    ):
        save_file(tensors, tmp_path / "file.safetensors")
        with pytest.raises(CheckpointError, match=words):
            import_checkpoint(tmp_path / "file.safetensors", Wanted("realistic", "sd15"), root)


class Spell:
    def __reduce__(self) -> tuple:
        return (print, ("code of a pickle was run",))


def pickled(file: Path, checkpoint: Path) -> Path:
    torch.save({"state_dict": load_file(checkpoint), "callbacks": Spell()}, file.with_suffix(".ckpt"))
    return file.with_suffix(".ckpt")


def pickled_with_another_name(file: Path, checkpoint: Path) -> Path:
    return pickled(file, checkpoint).rename(file)


def pickled_and_cut_short(file: Path, checkpoint: Path) -> Path:
    torch.save(load_file(checkpoint), file)
    file.write_bytes(file.read_bytes()[:-1000])
    return file


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


VAE_ATTENTION = "first_stage_model.encoder.mid.attn_1.q.weight"
NOT_WHOLE = r"lacks 1 of the \d+ tensors of the unet of sd15, such as up_blocks.0.*: it is not whole, or of another"


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (pickled, r"^file.ckpt is a pickled file with more than tensors in it, and opening that could run code: expec"),
        (pickled_with_another_name, r"^file.safetensors is a pickled file"),
        (pickled_and_cut_short, r"^file.safetensors is not a whole pickled file"),
        (lambda file, checkpoint: file.parent, r" is a folder\.$"),
        (cut_short, r"^file.safetensors is not a whole .safetensors file \(cut short\?\): expected"),
        (lambda file, checkpoint: file, r"^There is no file file.safetensors\.$"),
        (changed(lambda tensors, name: tensors.pop(name)), NOT_WHOLE),
        (
            changed(lambda tensors, name: tensors.update({f"{name}_2": tensors[name].clone()})),
            r"has 1 tensors in its unet that sd15 does not have, such as .*weight_2: it is of another architecture",
        ),
        (changed(set_first(float("nan"))), r"that are none or too large for half precision: up_blocks.0.resnets"),
        (changed(set_first(70000.0)), r"that are none or too large for half precision"),
        (
            changed(lambda tensors, name: tensors.update({name: tensors[name].flatten()})),
            r"does not fit the unet of sd15: up_blocks.0.resnets.0.conv1.weight has the shape \(\d+,\), expected \(16,",
        ),
        (changed(lambda tensors, name: tensors.update({f"{name}_2": tensors.pop(name)})), NOT_WHOLE),
        (changed(lambda tensors, name: tensors.update({VAE_ATTENTION: torch.tensor(1.0)})), r"does not fit the vae of"),
    ],
)
def test_damaged_files_are_refused_and_leave_nothing(
    root: Path, tmp_path: Path, checkpoint: Path, make: Callable[[Path, Path], Path], sentence: str, capsys
) -> None:
    with pytest.raises(CheckpointError, match=sentence):
        import_checkpoint(make(tmp_path / "file.safetensors", checkpoint), Wanted("realistic"), root)
    assert sorted(os.listdir(root)) == ["sd15", "sd15.toml"]
    assert "code of a pickle was run" not in capsys.readouterr().out


def contents(root: Path) -> dict[str, bytes]:
    """All files in a folder of weights but those of sd15."""
    files = (path for path in root.rglob("*") if path.is_file() and "sd15" not in path.relative_to(root).parts[0])
    return {str(path.relative_to(root)): path.read_bytes() for path in files}


@pytest.mark.parametrize("name", ["mine", "mine.lock"])
def test_what_lies_there_under_the_name_stays(root: Path, checkpoint: Path, name: str) -> None:
    """With or without --replace: it belongs to no bundle that was imported."""
    path = root / name / "net.safetensors" if name == "mine" else root / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("years of work")
    for replace in (False, True):
        with pytest.raises(CheckpointError, match=f"^There is weights/{name}, of no bundle: move it elsewhere, or"):
            import_checkpoint(checkpoint, Wanted("mine", replace=replace), root)
    assert list(contents(root).values()) == [b"years of work"]


def test_only_what_was_imported_is_replaced(root: Path, checkpoint: Path, models: Path, tmp_path: Path) -> None:
    import_checkpoint(checkpoint, Wanted("mine"), root)
    unet_only = single_file(models, tmp_path / "unet.safetensors", "unet")
    own = root / "mine/controlnet/canny/net.safetensors"
    own.parent.mkdir(parents=True)
    own.write_text("years of work")
    before = contents(root)
    with pytest.raises(CheckpointError, match=r"^weights/mine/controlnet/canny/net.safetensors was not imported and w"):
        import_checkpoint(unet_only, Wanted("mine", replace=True), root)
    part = '[[parts]]\nname = "controlnet/canny"\nfiles = ["net.safetensors"]\nlicence = "mine"\npurpose = "edges"\n'
    (root / "mine.toml").write_text((root / "mine.toml").read_text() + part)
    with pytest.raises(CheckpointError, match=r"canny/net\.safetensors was not imported and would be lost"):
        import_checkpoint(unet_only, Wanted("mine", replace=True), root)
    assert contents(root) | {"mine.toml": b""} == before | {"mine.toml": b""}
    shutil.rmtree(root / "mine/controlnet")
    (root / "mine.toml").write_bytes(before["mine.toml"])
    import_checkpoint(unet_only, Wanted("mine", replace=True), root)
    assert sorted(os.listdir(root / "mine")) == ["unet"]
    (root / "mine.toml").write_text((root / "mine.toml").read_text().replace("sha256", "hash"))
    with pytest.raises(CheckpointError, match="There is a bundle named mine"):  # written by hand
        import_checkpoint(unet_only, Wanted("mine", replace=True), root)


def test_any_name_and_any_licence_can_be_written(root: Path, checkpoint: Path, tmp_path: Path) -> None:
    names = ["kawaii \U0001f600", 'quo"ted\\', "tab\tbell\adel\x7f"]
    for number, name in enumerate(names):
        file = Path(shutil.copy(checkpoint, tmp_path / f"{name}.safetensors"))
        import_checkpoint(file, Wanted(f"mine{number}", licence=f"{name}\nof mine"), root)
        manifest = Manifest.read(root / f"mine{number}.toml")
        assert manifest.made["file"] == f"{name}.safetensors" and manifest.part("unet").licence == f"{name}\nof mine"
    file = Path(shutil.copy(checkpoint, tmp_path / os.fsdecode(b"latin \xe9.safetensors")))
    with pytest.raises(CheckpointError, match="is not text in UTF-8, which is needed to open it: rename it"):
        import_checkpoint(file, Wanted("mine"), root)
    for licence, words in ((" ", "is empty"), (os.fsdecode(b"\xe9"), "is not text in UTF-8")):
        with pytest.raises(CheckpointError, match=f"The licence {words}"):
            import_checkpoint(checkpoint, Wanted("mine", licence=licence), root)
    assert not (root / "mine").exists() and not (root / "mine.toml").exists()


def test_a_full_disk_leaves_nothing(root: Path, checkpoint: Path, capsys) -> None:
    import_checkpoint(checkpoint, Wanted("mine"), root)
    before = contents(root)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        for most in (100, 20_000):  # of the configuration, of the tensors
            resource.setrlimit(resource.RLIMIT_FSIZE, (most, limits[1]))
            assert main([str(checkpoint), "--name", "realistic"], root) == 1
            assert main([str(checkpoint), "--name", "mine", "--replace"], root) == 1
            assert capsys.readouterr().err.count("The bundle could not be written to ") == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert contents(root) == before


@pytest.mark.parametrize("moment", ["write_model", "manifest_text", "lock"])
def test_an_interrupted_import_leaves_nothing(root: Path, checkpoint: Path, monkeypatch, capsys, moment: str) -> None:
    import_checkpoint(checkpoint, Wanted("mine"), root)
    before, real = contents(root), getattr(ours, moment)

    def interrupted(*arguments: object) -> object:
        result = real(*arguments)
        os.kill(os.getpid(), signal.SIGINT)
        return result

    monkeypatch.setattr(ours, moment, interrupted)
    for arguments in (["--name", "realistic"], ["--name", "mine", "--replace"]):
        assert main([str(checkpoint), *arguments], root) == 130
        assert capsys.readouterr().err == "Interrupted.\n"
    assert contents(root) == before
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize(
    ("wanted", "sentence"),
    [
        (Wanted("sd15"), r"^There is a bundle named sd15: take another"),
        (Wanted("sd15", replace=True), r"^There is a bundle named sd15: take another"),
        (Wanted("Realistic v5"), r"^The name must be lower case letters"),
        (Wanted("realistic", conditioner="canny"), r"^--conditioner is for a ControlNet, and .* is a checkpoint\.$"),
        (Wanted("realistic", clip_skip=3), r"^clip_skip must be 1 to 2, the text encoder's layers; it is 3\.$"),
        (Wanted("realistic", vae="own"), r"^--vae is for files of Stable Diffusion XL, .* is a checkpoint for sd15\.$"),
        (Wanted("realistic", base="large"), r"There is no bundle named 'large'"),
    ],
)
def test_wrong_wishes_are_refused(root: Path, checkpoint: Path, wanted: Wanted, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        import_checkpoint(checkpoint, wanted, root)


def test_the_base_must_be_there_and_extend_nothing(root: Path, checkpoint: Path) -> None:
    import_checkpoint(checkpoint, Wanted("realistic"), root)
    with pytest.raises(CheckpointError, match="There is a bundle named realistic: take another, or --replace"):
        import_checkpoint(checkpoint, Wanted("realistic"), root)
    with pytest.raises(CheckpointError, match="realistic extends sd15: extend that one"):
        import_checkpoint(checkpoint, Wanted("more", base="realistic"), root)
    (root / "sd15").unlink()
    with pytest.raises(WeightsError, match="of realistic cannot be used"):
        opened(root)
