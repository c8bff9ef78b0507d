"""script/make-random-bundle: the published sizes, names and files, and weights that have an effect."""

import hashlib
import json
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from annotator_weights import FULL_SIZE, MAKERS, make_part
from diffusers import AutoencoderKL, ControlNetModel
from published_configs import PATHS, config_text
from random_bundle import position_ids, published_name, write_bundle, write_lora, write_part, write_tokenizer
from random_models import FULL, SMALL, build, random_tensors
from safetensors.torch import load_file
from support import ROOT
from transformers import CLIPTextModel, CLIPTokenizer

from controlnet.bundle import open_bundle
from controlnet.model import Model
from controlnet.models.loading import load_pretrained
from controlnet.settings import Settings
from controlnet.weights.manifest import WEIGHTS, Manifest, Part
from controlnet.weights.published import read_published

SD15 = Manifest.read(WEIGHTS / "sd15.toml", {})
PUBLISHED = read_published(SD15, WEIGHTS)


@pytest.mark.parametrize(
    ("part", "millions"),
    [
        *[("unet", 859.5), ("controlnet/canny", 361.3), ("vae", 83.7), ("text_encoder", 123.1)],
        *[("safety_checker", 304.0), ("image_encoder", 632.1)],
    ],
)
def test_full_size_models_have_the_published_number_of_parameters(part: str, millions: float) -> None:
    count = sum(parameter.numel() for parameter in build(part, FULL).parameters())
    assert round(count / 1e6, 1) == millions


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder", "safety_checker", "image_encoder"])
def test_full_size_files_have_the_published_size(part: str) -> None:
    """To the byte, so the names of the tensors are the published ones, and there are no more and no fewer."""
    model = build(part, FULL)
    rows = [row for row in PUBLISHED.files if Path(row.file).parent.name == part and row.file.endswith(".safetensors")]
    (published,) = rows
    width = 2 if "fp16" in published.file else 4
    kind = f"F{8 * width}"
    tensors = {published_name(part, name): (tensor.shape, kind) for name, tensor in model.state_dict().items()}
    tensors |= {name: (tensor.shape, "I64") for name, tensor in position_ids(part, model).items()}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, (shape, dtype) in sorted(tensors.items(), key=lambda item: (item[1][1] != "I64", item[0])):
        end = offset + shape.numel() * (8 if dtype == "I64" else width)
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = len(json.dumps(header, separators=(",", ":")))
    assert 8 + (text + 7) // 8 * 8 + offset == published.size


def test_an_adapter_for_reference_pictures_has_the_published_size(tmp_path: Path) -> None:
    """To the byte, too."""
    part = SD15.part("ip_adapter")
    write_part(part, tmp_path, FULL, 0)
    (published,) = (row for row in PUBLISHED.files if row.file == part.repo_paths[0])
    assert (tmp_path / part.paths[0]).stat().st_size == published.size


@pytest.mark.parametrize(("part", "file"), [("hed", "ControlNetHED.pth"), ("mlsd", "mlsd_large_512_fp32.pth"),
                                            ("lineart", "sk_model.pth")])  # fmt: skip
def test_annotators_files_have_about_the_published_size(part: str, file: str, tmp_path: Path) -> None:
    """The precision is the published one. PyTorch's own bytes around the tensors vary with its version."""
    (published,) = (row.size for row in PUBLISHED.files if row.file == file)
    assert published and (make_part(f"annotator/{part}", tmp_path, full=True) / file).stat().st_size == pytest.approx(
        published, rel=0.02
    )


def test_configs_of_the_published_sizes_are_the_published_files() -> None:
    rows = {row.file: row for row in PUBLISHED.files}
    for path in PATHS:
        content = config_text(path, FULL).encode()
        assert (len(content), hashlib.sha256(content).hexdigest()) == (rows[path].size, rows[path].sha256), path


def test_a_random_bundle_has_exactly_the_files_of_the_manifest(sd15_root: Path) -> None:
    written = {str(path.relative_to(sd15_root / "sd15")) for path in (sd15_root / "sd15").rglob("*") if path.is_file()}
    assert written == set(SD15.needed_paths) < set(SD15.paths)
    assert (sd15_root / "sd15.toml").read_bytes() == (WEIGHTS / "sd15.toml").read_bytes()


def test_files_of_what_is_chosen_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONTROLNET_OPENPOSE", "cmu")
    monkeypatch.setenv("CONTROLNET_REFERENCE", "1")

    def write_empty(part: Part, root: Path, *rest: object) -> None:
        for path in part.paths:
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).touch()

    monkeypatch.setattr("random_bundle.write_part", write_empty)
    write_bundle("sd15", tmp_path, small=True)
    written = {str(path.relative_to(tmp_path / "sd15")) for path in (tmp_path / "sd15").rglob("*") if path.is_file()}
    others = set(SD15.part("annotator/openpose_dwpose").paths)
    assert written == set(SD15.paths) - others > set(SD15.needed_paths)
    assert "annotator/openpose_cmu/facenet.pth" in written


@pytest.mark.parametrize(("bundle", "annotators"), [("sd15", {"annotator/hed"}), ("tiny", set())])
def test_a_bundle_with_some_conditioners_has_their_parts_and_no_others(
    bundle: str, annotators: set[str], tmp_path: Path
) -> None:
    """In sd15 scribble shares its annotator's network with hed, which is left out. In tiny it needs none."""
    path = write_bundle(bundle, tmp_path, small=True, conditioners=["canny", "scribble"])
    whole, cut = Manifest.read(WEIGHTS / path.name), Manifest.read(path)
    assert list(cut.conditioners) == ["canny", "scribble"]
    several = {"controlnet/canny", "controlnet/scribble"} | annotators
    assert {part.name for part in cut.parts if "/" in part.name} == several | {"lora/fast"}
    assert [part.name for part in cut.parts if "/" not in part.name] == [
        part.name for part in whole.parts if "/" not in part.name
    ]
    assert (cut.defaults, cut.limits, cut.fast) == (whole.defaults, whole.limits, whole.fast)
    written = {str(file.relative_to(tmp_path / bundle)) for file in (tmp_path / bundle).rglob("*") if file.is_file()}
    assert written == set(cut.needed_paths)
    model = Model(open_bundle(Settings(bundle=bundle), tmp_path))
    assert list(model.generator.controlnets) == list(model.annotators) == ["canny", "scribble"]


def test_an_unknown_conditioner_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"--conditioners: expected some of canny, hed, .*; got poses"):
        write_bundle("sd15", tmp_path, small=True, conditioners=["canny", "poses"])
    assert not list(tmp_path.iterdir())


def test_weights_have_the_precision_in_the_files_name(sd15_root: Path) -> None:
    for path in SD15.needed_paths:
        if path.endswith(".safetensors"):
            dtypes = {
                tensor.dtype for tensor in load_file(sd15_root / "sd15" / path).values() if tensor.is_floating_point()
            }
            assert dtypes == ({torch.float16} if ".fp16." in path or "lora" in path else {torch.float32}), path


def test_equal_seeds_give_equal_bytes_and_parts_differ(sd15_root: Path, tmp_path: Path) -> None:
    for folder in (tmp_path / "once", tmp_path / "twice"):
        folder.mkdir()
        write_bundle("tiny", folder, small=True)
    for path in Manifest.read(WEIGHTS / "tiny.toml").paths:
        assert (tmp_path / "once/tiny" / path).read_bytes() == (tmp_path / "twice/tiny" / path).read_bytes(), path
    nets = [path for path in SD15.needed_paths if path.startswith("controlnet/") and not path.endswith(".json")]
    assert len({(sd15_root / "sd15" / path).read_bytes() for path in nets}) == len(nets) > 1


def test_no_random_tensor_is_all_zero_or_nan() -> None:
    """A new ControlNet has zero convolutions: its output is zero, and a comparison of two would prove nothing."""
    for part in ("unet", "vae", "text_encoder", "controlnet/canny", "safety_checker"):
        for name, tensor in random_tensors(build(part, SMALL), 0, torch.float16).items():
            assert tensor.isfinite().all() and (tensor != 0).any(), (part, name)


def test_a_control_map_changes_the_output_of_a_random_controlnet(sd15_root: Path) -> None:
    net = load_pretrained(ControlNetModel, sd15_root / "sd15/controlnet/canny", "cpu")
    torch.manual_seed(0)
    arguments = (torch.randn(1, 4, 8, 8), 1, torch.randn(1, 5, SMALL["unet"]["cross_attention_dim"]))
    with torch.no_grad():
        white, black = (net(*arguments, controlnet_cond=torch.full((1, 3, 64, 64), tone)) for tone in (1.0, 0.0))
    for one, other in zip(white.down_block_res_samples, black.down_block_res_samples, strict=True):
        assert (one - other).abs().max() > 0.01 * one.abs().max()


def test_only_shuffle_has_global_pooling() -> None:
    nets = [part.name for part in SD15.parts if part.name.startswith("controlnet/")]
    assert [name for name in nets if build(name, SMALL).config["global_pool_conditions"]] == ["controlnet/shuffle"]


def test_tensors_have_their_published_names(sd15_root: Path) -> None:
    """Those of CLIP's models are older than the names in transformers. Loading has to accept both."""
    names = set(load_file(sd15_root / "sd15/vae/diffusion_pytorch_model.fp16.safetensors"))
    assert "encoder.mid_block.attentions.0.to_q.weight" in names
    names = set(load_file(sd15_root / "sd15/text_encoder/model.fp16.safetensors"))
    assert {"text_model.embeddings.position_ids", "text_model.final_layer_norm.weight"} <= names
    names = set(load_file(sd15_root / "sd15/safety_checker/model.fp16.safetensors"))
    assert {"concept_embeds", "vision_model.vision_model.post_layernorm.weight"} <= names
    load_pretrained(AutoencoderKL, sd15_root / "sd15/vae", "cpu")
    load_pretrained(CLIPTextModel, sd15_root / "sd15/text_encoder", "cpu")


def test_the_tokenizer_has_the_size_of_clips_and_its_end_tokens(sd15_root: Path, tmp_path: Path) -> None:
    tokenizer = CLIPTokenizer.from_pretrained(sd15_root / "sd15/tokenizer", local_files_only=True)
    ids = tokenizer("a red ball ébènes").input_ids
    last = len(tokenizer) - 1
    assert len(tokenizer) == SMALL["tokenizer"]["tokens"]
    assert (ids[0], ids[-1]) == (tokenizer.bos_token_id, tokenizer.eos_token_id) == (last - 1, last)
    assert tokenizer.decode(ids, skip_special_tokens=True) == "a red ball ébènes"
    (tmp_path / "tokenizer").mkdir()
    write_tokenizer(tmp_path / "tokenizer", FULL)
    assert len(CLIPTokenizer.from_pretrained(tmp_path / "tokenizer", local_files_only=True)) == 49408


def test_every_full_size_annotator_replaces_a_small_one() -> None:
    assert FULL_SIZE.keys() <= MAKERS.keys()


def test_weights_are_never_overwritten_and_each_part_is_logged(sd15_root: Path, tmp_path: Path) -> None:
    for folder in (sd15_root, WEIGHTS):
        with pytest.raises(FileExistsError, match="name another folder"):
            write_bundle("sd15", folder, small=True)
    lines: list[str] = []
    write_bundle("tiny", tmp_path, small=True, say=lines.append)
    assert [line.split(":")[0] for line in lines] == [part.name for part in Manifest.read(tmp_path / "tiny.toml").parts]
    assert all(line.endswith(" s") and " MB, " in line for line in lines)


def test_the_command_writes_to_the_callers_folder_once(tmp_path: Path, monkeypatch, capsys) -> None:
    """As script/make-random-bundle calls it, which test_project_files.py runs."""

    def command() -> None:
        arguments = ["--called-from", str(tmp_path), "tiny", "weights", "--small", "--seed", "3"]
        monkeypatch.setattr(sys, "argv", ["random_bundle.py", *arguments])
        runpy.run_path(str(ROOT / "script/random_bundle.py"), run_name="__main__")

    command()
    printed = capsys.readouterr().out.splitlines()
    assert "unet: 0.1 MB" in "\n".join(printed) and printed[-1] == str(tmp_path / "weights/tiny.toml")
    assert (tmp_path / "weights/tiny.toml").exists()
    with pytest.raises(SystemExit, match="exists or is for real weights: name another folder"):
        command()


def test_the_lora_for_few_steps_has_about_the_published_size(tmp_path: Path) -> None:
    """135 MB, so its layers and its rank are about the published ones."""
    write_lora(tmp_path / "lora.safetensors", FULL, 0)
    assert (tmp_path / "lora.safetensors").stat().st_size == pytest.approx(135e6, rel=0.01)
