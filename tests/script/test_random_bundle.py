"""script/make-random-bundle: the published sizes, names and files, and weights that a comparison can fail on."""

import subprocess
from pathlib import Path

import pytest
import torch
from annotator_weights import FULL_SIZE, MAKERS
from diffusers import AutoencoderKL, ControlNetModel
from random_bundle import write_bundle, write_tokenizer
from random_models import FULL, SMALL, build, random_tensors
from safetensors.torch import load_file
from support import ROOT
from support.small_models import parts
from transformers import CLIPTextModel, CLIPTokenizer

from controlnet.models.loading import load_pretrained
from controlnet.weights.manifest import WEIGHTS, Manifest, Part

SD15 = Manifest.read(WEIGHTS / "sd15.toml", {})


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weights")
    write_bundle("sd15", folder, small=True)
    return folder


@pytest.mark.parametrize(
    ("part", "millions"),
    [("unet", 859.5), ("controlnet/canny", 361.3), ("vae", 83.7), ("text_encoder", 123.1), ("safety_checker", 304.0)],
)
def test_full_size_has_as_many_parameters_as_the_published_model(part: str, millions: float) -> None:
    count = sum(parameter.numel() for parameter in build(part, FULL).parameters())
    assert round(count / 1e6, 1) == millions


def test_it_writes_the_files_of_the_manifest_and_no_others(root: Path) -> None:
    written = {str(path.relative_to(root / "sd15")) for path in (root / "sd15").rglob("*") if path.is_file()}
    assert written == set(SD15.needed_paths) < set(SD15.paths)
    assert (root / "sd15.toml").read_bytes() == (WEIGHTS / "sd15.toml").read_bytes()


def test_an_options_files_are_written_where_it_is_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONTROLNET_OPENPOSE_CMU", "1")

    def write_empty(part: Part, root: Path, *rest: object) -> None:
        for path in part.paths:
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).touch()

    monkeypatch.setattr("random_bundle.write_part", write_empty)
    write_bundle("sd15", tmp_path, small=True)
    written = {str(path.relative_to(tmp_path / "sd15")) for path in (tmp_path / "sd15").rglob("*") if path.is_file()}
    assert written == set(SD15.paths) and "annotator/openpose_cmu/facenet.pth" in written - set(SD15.needed_paths)


def test_weights_are_in_half_precision_where_the_files_name_says_so(root: Path) -> None:
    for path in SD15.needed_paths:
        if path.endswith(".safetensors"):
            kinds = {tensor.dtype for tensor in load_file(root / "sd15" / path).values() if tensor.is_floating_point()}
            assert kinds == ({torch.float16} if ".fp16." in path else {torch.float32}), path


def test_the_same_seed_gives_the_same_bytes_and_no_two_parts_are_alike(root: Path, tmp_path: Path) -> None:
    for folder in (tmp_path / "once", tmp_path / "twice"):
        folder.mkdir()
        write_bundle("tiny", folder, small=True)
    for path in Manifest.read(WEIGHTS / "tiny.toml").paths:
        assert (tmp_path / "once/tiny" / path).read_bytes() == (tmp_path / "twice/tiny" / path).read_bytes(), path
    nets = [path for path in SD15.needed_paths if path.startswith("controlnet/") and not path.endswith(".json")]
    assert len({(root / "sd15" / path).read_bytes() for path in nets}) == len(nets) > 1


def test_no_tensor_is_all_zero() -> None:
    """A ControlNet as it is first built outputs nothing, and any two such nets compare as equal."""
    for part in ("unet", "vae", "text_encoder", "controlnet/canny", "safety_checker"):
        for name, tensor in random_tensors(build(part, SMALL), 0, torch.float16).items():
            assert tensor.isfinite().all() and (tensor != 0).any(), (part, name)


def test_a_map_changes_what_a_controlnet_says(root: Path) -> None:
    net = load_pretrained(ControlNetModel, root / "sd15/controlnet/canny", "cpu")
    torch.manual_seed(0)
    arguments = (torch.randn(1, 4, 8, 8), 1, torch.randn(1, 5, SMALL["unet"]["cross_attention_dim"]))
    with torch.no_grad():
        white, black = (net(*arguments, controlnet_cond=torch.full((1, 3, 64, 64), tone)) for tone in (1.0, 0.0))
    for one, other in zip(white.down_block_res_samples, black.down_block_res_samples, strict=True):
        assert (one - other).abs().max() > 0.01 * one.abs().max()


def test_pooled_nets_are_declared_as_such() -> None:
    nets = ("controlnet/canny", "controlnet/shuffle")
    pools = {part: build(part, SMALL).config["global_pool_conditions"] for part in nets}
    assert pools == {"controlnet/canny": False, "controlnet/shuffle": True}


def test_tensors_have_their_published_names(root: Path) -> None:
    """Older than the libraries' own: a loader has to know both."""
    names = set(load_file(root / "sd15/vae/diffusion_pytorch_model.fp16.safetensors"))
    assert "encoder.mid_block.attentions.0.query.weight" in names
    names = set(load_file(root / "sd15/text_encoder/model.fp16.safetensors"))
    assert {"text_model.embeddings.position_ids", "text_model.final_layer_norm.weight"} <= names
    names = set(load_file(root / "sd15/safety_checker/model.fp16.safetensors"))
    assert {"concept_embeds", "vision_model.vision_model.post_layernorm.weight"} <= names
    load_pretrained(AutoencoderKL, root / "sd15/vae", "cpu")
    load_pretrained(CLIPTextModel, root / "sd15/text_encoder", "cpu")


def test_the_tokenizer_is_as_large_as_clips_and_frames_a_prompt(root: Path, tmp_path: Path) -> None:
    tokenizer = CLIPTokenizer.from_pretrained(root / "sd15/tokenizer", local_files_only=True)
    ids = tokenizer("a red ball ébènes").input_ids
    last = len(tokenizer) - 1
    assert len(tokenizer) == SMALL["tokenizer"]["tokens"]
    assert (ids[0], ids[-1]) == (tokenizer.bos_token_id, tokenizer.eos_token_id) == (last - 1, last)
    assert tokenizer.decode(ids, skip_special_tokens=True) == "a red ball ébènes"
    write_tokenizer(tmp_path, **FULL["tokenizer"])
    assert len(CLIPTokenizer.from_pretrained(tmp_path, local_files_only=True)) == 49408


def test_small_models_and_small_bundles_are_one_list() -> None:
    for part in ("unet", "vae"):
        assert parts()[part].config["block_out_channels"] == SMALL[part]["block_out_channels"]
    assert FULL_SIZE.keys() <= MAKERS.keys()


def test_it_never_writes_over_weights_and_says_a_line_per_part(root: Path, tmp_path: Path) -> None:
    for folder in (root, WEIGHTS):
        with pytest.raises(FileExistsError, match="name another folder"):
            write_bundle("sd15", folder, small=True)
    said: list[str] = []
    write_bundle("tiny", tmp_path, small=True, say=said.append)
    assert [line.split(":")[0] for line in said] == [part.name for part in Manifest.read(tmp_path / "tiny.toml").parts]
    assert all(line.endswith(" s") and " MB, " in line for line in said)


def test_the_script_takes_a_folder_from_where_it_is_called(tmp_path: Path) -> None:
    command = [ROOT / "script/make-random-bundle", "tiny", "weights", "--small", "--seed", "3"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert (tmp_path / "weights/tiny.toml").exists() and "unet: 0.1 MB" in done.stdout
    again = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert again.returncode == 1 and "is there already" in again.stderr and "Traceback" not in again.stderr
