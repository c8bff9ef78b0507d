"""Opening bundles: the small random models, written as a bundle's files and read back by the real loading code."""

import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path
from pickle import UnpicklingError

import pytest
import torch
from diffusers import ControlNetModel
from PIL import Image
from safetensors.torch import load_file, save_file
from support import ROOT
from support.small_models import parts, write_bundle

import predict
from controlnet.bundle import Bundle, open_bundle
from controlnet.conditioners import BY_NAME
from controlnet.maps.annotators import ANNOTATORS, LoadedAnnotator, knobs_of
from controlnet.models.loading import WeightsMismatch, load_pretrained
from controlnet.request.combinations import RequestError
from controlnet.request.reading import read_request
from controlnet.request.request import Request
from controlnet.settings import Settings
from controlnet.weights.lockfile import WeightsError
from controlnet.weights.manifest import WEIGHTS, Manifest


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weights")
    write_bundle(folder)
    return folder


@pytest.fixture
def bundle(root: Path) -> Bundle:
    return open_bundle(Settings(bundle="small"), root)


def copy_of(bundle: Bundle, folder: Path) -> Bundle:
    shutil.copytree(bundle.root, folder / "weights")
    return Bundle(bundle.manifest, folder / "weights", bundle.device, bundle.dtype)


def test_every_part_opens_as_it_was_saved(bundle: Bundle) -> None:
    opened = bundle.base() | dict(bundle.controlnets())
    for name in ("unet", "vae", "text_encoder", "canny", "scribble"):
        expected, got = parts()[name].state_dict(), opened[name].state_dict()
        assert expected.keys() == got.keys()
        for key, tensor in got.items():
            assert tensor.dtype in (torch.float32, torch.int64), key
            assert torch.allclose(tensor, expected[key].to(tensor.dtype), atol=1e-3), (name, key)
    assert opened["vae"].config.scaling_factor == 0.2
    assert opened["tokenizer"]("a red ball").input_ids == parts()["tokenizer"]("a red ball").input_ids
    assert opened["tokenizer"].model_max_length == parts()["tokenizer"].model_max_length
    assert opened["scheduler"].config.prediction_type == "v_prediction"


def test_annotators_are_opened_by_conditioner(bundle: Bundle) -> None:
    kinds = {name: annotator.kind.name for name, annotator in bundle.annotators().items()}
    assert kinds == {name: bundle.manifest.annotator(name) for name in bundle.manifest.conditioners}


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder", "controlnet/canny"])
@pytest.mark.parametrize("fault", ["missing", "unexpected"])
def test_a_file_that_does_not_fit_names_the_tensor(bundle, tmp_path, part: str, fault: str) -> None:
    """diffusers and transformers would fill a missing tensor with random numbers and go on."""
    broken = copy_of(bundle, tmp_path)
    (file,) = broken.folder(part).glob("*.fp16.safetensors")
    tensors = load_file(file)
    key = sorted(tensors)[-1]
    if fault == "missing":
        del tensors[key]
    else:
        key = "stray.weight"
        tensors[key] = torch.zeros(2)
    save_file(tensors, file, metadata={"format": "pt"})
    sentence = f"^{part.split('/')[-1]} does not fit its network \\({fault}: .*{key.split('.')[-1]}"
    with pytest.raises(WeightsMismatch, match=sentence):
        broken.base()
        broken.controlnets()


def test_a_pickled_controlnet_is_opened_strictly_and_quietly(bundle, tmp_path, monkeypatch, caplog, capfd) -> None:
    """The tile net was only ever published as one. diffusers would put an error with the folder's path into the log."""
    monkeypatch.setattr(logging.getLogger("diffusers"), "propagate", True)
    pickled = copy_of(bundle, tmp_path)
    (file,) = pickled.folder("controlnet/canny").glob("*.safetensors")
    tensors = {name: tensor.float() for name, tensor in load_file(file).items()}
    file.unlink()
    file = file.with_name("diffusion_pytorch_model.bin")
    torch.save(tensors, file)
    opened = load_pretrained(ControlNetModel, file.parent, "cpu").state_dict()
    assert opened.keys() == tensors.keys()
    assert all(torch.equal(opened[name], tensor) for name, tensor in tensors.items())
    assert not caplog.messages
    torch.save(tensors | {"stray.weight": torch.zeros(2)}, file)
    with pytest.raises(WeightsMismatch, match=r"^canny does not fit its network \(unexpected: stray.weight\)"):
        load_pretrained(ControlNetModel, file.parent, "cpu")
    del tensors["conv_in.bias"]
    torch.save(tensors, file)
    with pytest.raises(WeightsMismatch, match=r"^canny does not fit its network \(missing: conv_in.bias\)"):
        load_pretrained(ControlNetModel, file.parent, "cpu")
    torch.save({"conv_in.bias": Spell()}, file)
    with pytest.raises(UnpicklingError):
        load_pretrained(ControlNetModel, file.parent, "cpu")
    assert "was run" not in capfd.readouterr().out


@pytest.mark.parametrize("pooled", [True, False])
def test_controlnets_must_have_their_conditioners_pooling(bundle, tmp_path, monkeypatch, pooled: bool) -> None:
    """A shuffle net without global_pool_conditions would take the layout of the image, and no tensor would differ."""
    broken = copy_of(bundle, tmp_path)
    config = broken.folder("controlnet/canny") / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"global_pool_conditions": not pooled}))
    monkeypatch.setitem(BY_NAME, "canny", replace(BY_NAME["canny"], pooled=pooled))
    sentence = f"^controlnet/canny: its config.json has global_pool_conditions {not pooled}, expected {pooled}. It is "
    with pytest.raises(WeightsMismatch, match=sentence):
        broken.controlnets()
    config.write_text(json.dumps(json.loads(config.read_text()) | {"global_pool_conditions": pooled}))
    assert broken.controlnets()["canny"].config["global_pool_conditions"] == pooled


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (
            {"conditioning_channels": 1},
            r"has conditioning_channels 1, expected 3\. It is a ControlNet for another kind of",
        ),
        (
            {"cross_attention_dim": 1024},
            r"has cross_attention_dim 1024, and the UNet's has 128\. It is a ControlNet for",
        ),
        ({"addition_embed_type": "text_time"}, r"has addition_embed_type text_time, and the UNet's has None"),
    ],
)
def test_controlnets_for_other_maps_or_base_models_are_refused(bundle, tmp_path, config: dict, words: str) -> None:
    broken = copy_of(bundle, tmp_path)
    file = broken.folder("controlnet/canny") / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | config))
    with pytest.raises(WeightsMismatch, match=f"^controlnet/canny: its config.json {words}"):
        broken.controlnets()


class Spell:
    def __reduce__(self) -> tuple:
        return (print, ("code of a pickle was run",))


def test_missing_files_are_named_at_once_with_the_repair(root: Path, tmp_path: Path) -> None:
    shutil.copytree(root, tmp_path / "weights")
    for file in ("unet/config.json", "vae/config.json"):
        (tmp_path / "weights/small" / file).unlink()
    with pytest.raises(WeightsError, match=r"(?s)unet/config.json: missing.*vae/config.json: missing.*Repair: "):
        open_bundle(Settings(bundle="small"), tmp_path / "weights")


def test_the_container_refuses_to_fetch_an_unlocked_bundle(tmp_path: Path, monkeypatch) -> None:
    manifest = ROOT / "weights" / "sd15.toml"
    shutil.copy(manifest, tmp_path / "sd15.toml")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # nothing listens there
    with pytest.raises(WeightsError, match="script/lock-weights sd15"):
        open_bundle(Settings(bundle="sd15", download=True), tmp_path)
    for path in Manifest.read(manifest).paths:  # also if files of unknown content are there
        (tmp_path / "sd15" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "sd15" / path).write_bytes(b"x")
    with pytest.raises(WeightsError, match="script/lock-weights sd15"):
        open_bundle(Settings(bundle="sd15", download=True), tmp_path)
    shutil.rmtree(tmp_path / "sd15")
    with pytest.raises(WeightsError, match="script/download-weights sd15"):
        open_bundle(Settings(bundle="sd15"), tmp_path)


def test_requests_are_checked_against_an_opened_bundle(bundle: Bundle) -> None:
    def read(**sent) -> Request:
        return read_request(predict.Predictor.predict, {"prompt": "x", "image": predict.Path("x.png")} | sent, bundle)

    request = read(guidance_scale=0.0)
    assert (request.resolution, request.guidance_scale, request.scheduler) == (256, 0.0, "DDIM")
    assert list(bundle.conditioners) == list(bundle.annotators()) == list(bundle.controlnets())
    assert all(bundle.knobs(name) == knobs_of(annotator) for name, annotator in bundle.annotators().items())
    assert bundle.unet_calls("HeunDiscrete", 10, 0) == 19 and bundle.unet_calls("DDIM", 10, 8) == 2
    assert [str(each) for each in read(conditioner="hed", low_threshold=1).ignored] == [
        "low_threshold (only for canny)"
    ]
    for sent, sentence in (
        ({"conditioner": "shuffle"}, "no shuffle conditioner. It has canny, hed"),
        ({"low_threshold": 250}, "canny cannot work with low_threshold 250 and high_threshold 200"),
        ({"conditioner": "openpose", "pose_parts": "all"}, "finds people's bodies and no hands or face"),
        ({"control_end": 0.01}, "covers none of the 20 steps"),
        ({"clip_skip": 3}, "clip_skip must be from 1 .* to 2, because this bundle's text encoder has 2 layers"),
        ({"negative_prompt": "(red:9)"}, 'must be 0 to 3 .* but "red" has 9'),
        ({"prompt": "red " * 999}, "at most 600 tokens .* but it has 999 tokens: shorten it"),
    ):
        with pytest.raises(RequestError, match=sentence):
            read(**sent)


def test_an_unknown_bundle_is_refused_with_the_known_names(root: Path) -> None:
    with pytest.raises(ValueError, match=r"no bundle named 'large'.*small"):
        open_bundle(Settings(bundle="large"), root)


def test_the_small_test_bundle_has_tinys_manifest(root: Path) -> None:
    tiny = Manifest.read(ROOT / "weights" / "tiny.toml")
    assert Manifest.read(root / "small.toml").paths == tiny.paths


@pytest.mark.parametrize(("value", "kind"), [
    ("cmu", "openpose_cmu"), ("dwpose", "openpose_dwpose"), ("", "openpose"),
])  # fmt: skip
def test_a_chosen_annotator_replaces_the_first(value: str, kind: str, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    manifest = Manifest.read(WEIGHTS / "sd15.toml", {"openpose": value})
    bundle = Bundle(manifest, WEIGHTS, torch.device("cpu"), torch.float32)
    monkeypatch.setattr(bundle, "_annotator", lambda name: LoadedAnnotator(ANNOTATORS[name], Image.Image.copy))
    assert bundle.annotators()["openpose"].kind.name == kind
    said = (
        f"{kind} is used because it was chosen. Licence: {manifest.part(f'annotator/{kind}').licence}\n"
        if value
        else ""
    )
    assert capsys.readouterr().out == said and ("non-commercial" in said) == bool(value)
    read = [str(file.relative_to(WEIGHTS / "sd15")) for file in bundle.files()]
    assert read == list(manifest.needed_paths)
