"""script/import-checkpoint for Stable Diffusion XL: two text encoders, a VAE that overflows, v and zero SNR."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from checkpoint_kinds import CheckpointError
from import_checkpoint import Wanted, import_checkpoint
from random_bundle import write_bundle, write_part
from random_models import SMALL
from random_sdxl import SMALL_XL
from safetensors.torch import load_file, save_file
from support.ldm_names import single_file
from support.own_bundles import opened, picture

from controlnet.models.loading import WeightsMismatch
from controlnet.models.schedulers import make_scheduler
from controlnet.weights.files import verify
from controlnet.weights.manifest import WEIGHTS, Manifest

# Of diffusers, about the small UNet's sample_size.
pytestmark = pytest.mark.filterwarnings("ignore:The configuration file of the unet:FutureWarning")
TAKEN = ("unet", "text_encoder", "text_encoder_2")
"""The parts that are imported if nothing is said about the VAE."""
PARTS = ("unet", "vae", "text_encoder", "text_encoder_2")
ZERO_SNR = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("written")
    write_bundle("sdxl", folder, small=True, conditioners=("canny", "tile"))
    return folder


@pytest.fixture
def root(written: Path, tmp_path: Path) -> Path:
    """A folder of weights with the small sdxl, and sd15's manifest."""
    root = tmp_path / "weights"
    root.mkdir()
    (root / "sdxl").symlink_to(written / "sdxl")
    shutil.copy(written / "sdxl.toml", root)
    shutil.copy(WEIGHTS / "sd15.toml", root)
    return root


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The models of a checkpoint, in diffusers' layout, with other numbers than those of the small sdxl."""
    folder = tmp_path_factory.mktemp("models")
    manifest = Manifest.read(WEIGHTS / "sdxl.toml", {})
    for number, part in enumerate(PARTS):
        write_part(manifest.part(part), folder, SMALL_XL, seed=100 + number)
    return folder


@pytest.fixture(scope="module")
def checkpoint(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The models in one file."""
    return single_file(models, tmp_path_factory.mktemp("downloads") / "juggernaut.safetensors")


def changed(checkpoint: Path, file: Path, *left_out: str, **more: torch.Tensor) -> Path:
    """The file without what begins with `left_out`, and with more tensors."""
    tensors = {
        name: tensor for name, tensor in load_file(checkpoint).items() if not name.startswith(left_out or ("-",))
    }
    save_file(tensors | more, file)
    return file


def imported(root: Path) -> list[str]:
    return [part.name for part in Manifest.read(root / "realistic.toml").parts if part.bundle == "realistic"]


def assert_same(ours: Path, theirs: Path) -> None:
    """Fails unless two folders have the same tensors, in half precision."""
    got, expected = (load_file(next(folder.glob("*.safetensors"))) for folder in (ours, theirs))
    got, expected = ({name.removeprefix("text_model."): t for name, t in each.items()} for each in (got, expected))
    expected.pop("embeddings.position_ids", None)
    assert got.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name].half()) for name, tensor in got.items())


def test_a_checkpoint_becomes_a_bundle_on_sdxl(root: Path, models: Path, checkpoint: Path) -> None:
    lines: list[str] = []
    import_checkpoint(checkpoint, Wanted("realistic"), root, lines.append)
    assert lines[0] == "vae: that of sdxl is kept, because the file's may overflow in half precision (--vae)."
    assert not any(line.startswith(("Not used", "scheduler")) for line in lines)
    bundle = opened(root)
    assert bundle.manifest.base and bundle.manifest.base.name == "sdxl" and bundle.defaults.clip_skip == 2
    assert imported(root) == list(TAKEN)
    verify(bundle.manifest.manifests[1], root)
    for part in TAKEN:
        assert_same(root / "realistic" / part, models / part)
    made = picture(bundle)
    assert made != picture(opened(root, "sdxl"))
    whole = root.parent / "whole"  # sdxl with the file's models in the places of its own
    (whole / "sdxl").mkdir(parents=True)
    for part in (root / "sdxl").iterdir():
        (whole / "sdxl" / part.name).symlink_to(models / part.name if part.name in TAKEN else part)
    shutil.copy(root / "sdxl.toml", whole)
    assert made == picture(opened(whole, "sdxl"))


def test_parts_that_the_file_lacks_are_the_bases(root: Path, models: Path, checkpoint: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    import_checkpoint(
        single_file(models, tmp_path / "unet.safetensors", "unet"), Wanted("realistic"), root, lines.append
    )
    assert imported(root) == ["unet"]
    assert [line for line in lines if line.startswith("text_encoder_2")] == [
        "text_encoder_2: not in the file, so that of sdxl is used."
    ]
    file = single_file(root / "sdxl", tmp_path / "second.safetensors", "text_encoder_2")
    both = load_file(file) | load_file(tmp_path / "unet.safetensors")
    save_file(both | {"conditioner.embedders.1.model.stray": torch.ones(2)}, file)
    import_checkpoint(file, Wanted("realistic", replace=True), root, lines.append)
    assert "text_encoder_2: the same as that of sdxl, so it is shared." in lines
    assert "Not used: 1 tensors, such as conditioner.embedders.1.model.stray." in lines
    cut = changed(checkpoint, tmp_path / "cut.safetensors", "conditioner.embedders.1.model.text_projection")
    with pytest.raises(
        CheckpointError, match=r"lacks 1 of the \d+ tensors of the text_encoder_2 of sdxl, such as text_p"
    ):
        import_checkpoint(cut, Wanted("realistic", replace=True), root)


@pytest.mark.parametrize(("vae", "upcast"), [("own", True), ("float16", False)])
@pytest.mark.parametrize("alone", [False, True])
def test_its_own_vae_is_refused_in_half_precision_unless_made_for_it(
    root: Path, models: Path, checkpoint: Path, tmp_path: Path, vae: str, upcast: bool, alone: bool
) -> None:
    lines: list[str] = []
    file = single_file(models, tmp_path / "vae.safetensors", "vae") if alone else checkpoint
    wanted = Wanted("realistic", base="sdxl" if alone else None, vae=None if alone and upcast else vae)
    import_checkpoint(file, wanted, root, lines.append)
    assert [line for line in lines if line.startswith("vae:")] == [
        "vae: taken, but refused in float16: CONTROLNET_DTYPE=bf16, or --vae float16 if made for it."
    ] * upcast
    assert imported(root) == (["vae"] if alone else list(PARTS))
    assert_same(root / "realistic/vae", models / "vae")
    bundle = opened(root)
    bundle.base()
    bundle.dtype = torch.float16
    if upcast:
        with pytest.raises(WeightsMismatch, match="black pictures in float16"):
            bundle.base()
    else:
        bundle.base()


V = {"v_pred": torch.zeros(0)}
ZTSNR = {"ztsnr": torch.zeros(0)}


@pytest.mark.parametrize(
    ("options", "tensors", "expected"),
    [
        ({}, {}, {}),
        ({}, ZTSNR, {}),
        ({}, V, {"prediction_type": "v_prediction"}),
        ({}, V | ZTSNR, {"prediction_type": "v_prediction"} | ZERO_SNR),
        ({"zero_snr": False}, V | ZTSNR, {"prediction_type": "v_prediction"}),
        ({"zero_snr": True}, V, {"prediction_type": "v_prediction"} | ZERO_SNR),
        ({"prediction_type": "v_prediction", "zero_snr": True}, {}, {"prediction_type": "v_prediction"} | ZERO_SNR),
        ({"prediction_type": "epsilon"}, V | ZTSNR, {}),
    ],
)
def test_v_and_zero_snr_are_the_schedulers(
    root: Path, models: Path, tmp_path: Path, options: dict, tensors: dict, expected: dict
) -> None:
    file = single_file(models, tmp_path / "noob.safetensors", "unet", **tensors)
    lines: list[str] = []
    import_checkpoint(file, Wanted("realistic", **options), root, lines.append)
    base = json.loads((root / "sdxl/scheduler/scheduler_config.json").read_text())
    own = json.loads((opened(root).folder("scheduler") / "scheduler_config.json").read_text())
    expected = {key: value for key, value in expected.items() if base.get(key) != value}
    assert own == base | expected and ("scheduler" in imported(root)) == bool(expected)
    unsaid = expected and "zero_snr" not in options and "rescale_betas_zero_snr" not in expected
    assert any("Add --zero-snr if its page does" in line for line in lines) == bool(unsaid)
    assert not any("Not used" in line for line in lines)


def test_a_bundle_with_zero_snr_begins_with_noise_alone_and_refuses_other_samplers(
    root: Path, models: Path, tmp_path: Path
) -> None:
    file = single_file(models, tmp_path / "noob.safetensors", "unet", **V, **ZTSNR)
    import_checkpoint(file, Wanted("realistic"), root)
    bundle = opened(root)
    config = bundle.base()["scheduler"].config
    for name in bundle.schedulers:
        scheduler = make_scheduler(name, config)
        scheduler.set_timesteps(4)
        assert scheduler.timesteps[0] == 999 and scheduler.alphas_cumprod[-1] < 1e-7, name
    assert "KLMS" not in bundle.schedulers and "KLMS" in opened(root, "sdxl").schedulers
    made = picture(bundle)
    import_checkpoint(file, Wanted("realistic", replace=True, prediction_type="epsilon"), root)
    assert made != picture(opened(root))
    import_checkpoint(file, Wanted("realistic", replace=True), root)
    text = (root / "realistic.toml").read_text().replace("fast = false\n", "")
    for table in ("defaults", "fast"):
        (root / "realistic.toml").write_text(text.replace("[made]", f'[{table}]\nscheduler = "PNDM"\n\n[made]'))
        words = (
            rf"^scheduler: its noise schedule is not one for PNDM of \[{table}\]: in the manifest, name one of DDIM, "
        )
        with pytest.raises(WeightsMismatch, match=words):
            opened(root).base()


FIRST = "model.diffusion_model.input_blocks.0.0.weight"
ATTENTION = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"


def test_what_the_file_is_chooses_the_base(root: Path, models: Path, checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        import_checkpoint(checkpoint, Wanted("realistic", base="sd15"), root)
    assert str(caught.value) == (
        "juggernaut.safetensors is a checkpoint of Stable Diffusion XL, and sd15 is Stable Diffusion 1: leave --base "
        "out, or name a bundle that is Stable Diffusion XL."
    )
    part = Manifest.read(WEIGHTS / "sd15.toml", {}).part("unet")
    write_part(part, tmp_path / "old", SMALL, seed=1)
    old = single_file(tmp_path / "old", tmp_path / "old.safetensors", "unet")
    with pytest.raises(CheckpointError, match="of Stable Diffusion 1, and sdxl is Stable Diffusion XL: leave --b"):
        import_checkpoint(old, Wanted("realistic", base="sdxl"), root)
    save_file({FIRST: torch.ones(2, 4, 3, 3), ATTENTION: torch.ones(2, 768)}, old)
    with pytest.raises(CheckpointError, match=r"^The files of sd15 are not there: script/download-weights sd15\.$"):
        import_checkpoint(old, Wanted("realistic"), root)
    (root / "sdxl").unlink()
    save_file({FIRST: torch.ones(2, 4, 3, 3), ATTENTION: torch.ones(2, 2048)}, old)
    with pytest.raises(CheckpointError, match=r"^The files of sdxl are not there: script/download-weights sdxl\.$"):
        import_checkpoint(old, Wanted("realistic"), root)


def as_refiner(checkpoint: Path, file: Path) -> Path:
    tensors = load_file(changed(checkpoint, file, "conditioner.embedders.0."))
    save_file({name.replace("embedders.1.", "embedders.0."): tensor for name, tensor in tensors.items()}, file)
    return file


def with_channels(channels: int):
    return lambda checkpoint, file: changed(checkpoint, file, **{FIRST: torch.ones(8, channels, 3, 3)})


XL_NET = "is a ControlNet of Stable Diffusion XL, which is not imported: a manifest can name its repository"


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (as_refiner, "is a checkpoint of the refiner of Stable Diffusion XL: expected a checkpoint of Stable"),
        (with_channels(9), "is an inpainting checkpoint whose UNet takes 9 channels, not 4: "),
        (with_channels(8), "is an InstructPix2Pix checkpoint whose UNet takes 8 channels, not 4: "),
        (
            lambda checkpoint, file: changed(checkpoint, file, edm_mean=torch.ones(4), edm_std=torch.ones(4)),
            "is a checkpoint for the noise of EDM, as Playground 2.5 and CosXL are, which no sampler here knows: ",
        ),
        (
            lambda checkpoint, file: changed(checkpoint, file, **{"edm_vpred.sigma_max": torch.ones(1)}),
            "is a checkpoint for the noise of EDM",
        ),
    ],
)
@pytest.mark.parametrize("base", [None, "sdxl", "sd15"])
def test_what_is_no_base_model_is_refused_by_name(
    root: Path, checkpoint: Path, tmp_path: Path, make, what: str, base: str | None
) -> None:
    with pytest.raises(CheckpointError) as caught:
        import_checkpoint(make(checkpoint, tmp_path / "file.safetensors"), Wanted("realistic", base=base), root)
    assert str(caught.value).startswith(f"file.safetensors {what}")
    assert sorted(os.listdir(root)) == ["sd15.toml", "sdxl", "sdxl.toml"]


@pytest.mark.parametrize(
    "more",
    [
        {"control_model.input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight": torch.ones(2, 2048)},
        {"down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k.weight": torch.ones(2, 2048)},
        {"x.attn2.to_k.weight": torch.ones(2, 40), "add_embedding.linear_1.weight": torch.ones(2, 2)},
    ],
)
def test_controlnets_are_refused(root: Path, tmp_path: Path, more: dict) -> None:
    file = tmp_path / "net.safetensors"
    save_file({"controlnet_cond_embedding.conv_in.weight": torch.ones(2, 3, 3, 3)} | more, file)
    for conditioner in (None, "canny"):
        with pytest.raises(CheckpointError, match=f"^net.safetensors {XL_NET}"):
            import_checkpoint(file, Wanted("realistic", conditioner=conditioner), root)


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        (Wanted("realistic", zero_snr=True), "--zero-snr is for a UNet that predicts v: add --prediction-type v_pred"),
        (Wanted("realistic", clip_skip=4), r"clip_skip must be 1 to 3, the text encoder's layers; it is 4\."),
    ],
)
def test_wrong_wishes_are_refused(root: Path, checkpoint: Path, wanted: Wanted, words: str) -> None:
    with pytest.raises(CheckpointError, match=words):
        import_checkpoint(checkpoint, wanted, root)
