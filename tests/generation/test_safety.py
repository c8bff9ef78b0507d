"""The safety checker fails closed, withholds exactly the flagged pictures, and no request changes it."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from PIL import Image
from random_models import SMALL
from safetensors.torch import load_file, save_file
from transformers import CLIPConfig, CLIPImageProcessor

from controlnet.generation.safety import (
    SafetyChecker,
    SafetyError,
    open_safety_checker,
    withhold,
)
from controlnet.models.loading import load_pretrained


def tiny_model() -> StableDiffusionSafetyChecker:
    """The real class, small, with random weights that never flag: no cosine reaches its thresholds of 1."""
    torch.manual_seed(0)
    model = StableDiffusionSafetyChecker(CLIPConfig(**SMALL["safety_checker"]))
    for block in model.modules():  # so that the outputs of two pictures differ by more than rounding
        if isinstance(block, torch.nn.Linear | torch.nn.Conv2d):
            torch.nn.init.normal_(block.weight, std=0.5)
    return model


def processor() -> CLIPImageProcessor:
    return CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})


def broken_processor(error: type[BaseException]) -> CLIPImageProcessor:
    class Broken(CLIPImageProcessor):
        def preprocess(self, *images: object, **options: object) -> None:
            raise error

    return Broken(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})


def pictures(count: int = 4) -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (48, 40, 3), dtype=np.uint8)) for _ in range(count)]


def flagging(wanted: Image.Image) -> SafetyChecker:
    """A checker with one concept, which is what `wanted` shows."""
    model = tiny_model()
    with torch.no_grad():
        pixels = processor()(images=[wanted], return_tensors="pt").pixel_values
        embedding = model.visual_projection(model.vision_model(pixels)[1])[0]
        model.concept_embeds[3] = embedding
        model.concept_embeds_weights[3] = 0.998
    return SafetyChecker(model, processor(), "cpu")


class Fake:
    """Flags by position."""

    def __init__(self, *flags: bool) -> None:
        self.result = list(flags)
        self.calls = 0

    def flags(self, pictures: object) -> list[bool]:
        self.calls += 1
        return self.result


# The checker


def test_only_the_picture_with_the_concept_is_flagged() -> None:
    batch = pictures()
    for i, wanted in enumerate(batch):
        assert flagging(wanted).flags(batch) == [other == i for other in range(4)]


def test_the_safety_checker_leaves_pictures_untouched() -> None:
    batch = pictures()
    before = [picture.tobytes() for picture in batch]
    assert flagging(batch[1]).flags(batch)[1]
    assert [picture.tobytes() for picture in batch] == before


@pytest.mark.parametrize("size", [(48, 40), (40, 96), (32, 32), (20, 64), (512, 384), (1000, 1000)])
def test_the_model_sees_what_its_processor_makes_bit_for_bit(size: tuple[int, int]) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (2, size[1], size[0], 3), dtype=np.uint8)
    batch = [*map(Image.fromarray, noise), Image.linear_gradient("L").resize(size).convert("RGB")]
    checker = SafetyChecker(tiny_model(), processor(), "cpu")
    assert torch.equal(checker.prepared(batch), processor()(images=batch, return_tensors="pt").pixel_values)


def test_an_error_of_the_safety_checker_withholds_all() -> None:
    """A safety check that fails must not let pictures through."""
    broken = SafetyChecker(tiny_model(), broken_processor(ZeroDivisionError), "cpu")
    with pytest.raises(SafetyError, match="could not be checked by the safety checker, so no picture"):
        broken.flags(pictures())
    with pytest.raises(SafetyError):
        withhold(pictures(), broken, disabled=False)


def test_a_safety_result_of_the_wrong_length_withholds_all(monkeypatch: pytest.MonkeyPatch) -> None:
    checker = flagging(pictures()[0])
    monkeypatch.setattr(checker.model, "forward", lambda clip_input, images: (images, [False]))
    with pytest.raises(SafetyError, match="no picture is returned"):
        checker.flags(pictures())


def test_a_safety_embedding_that_overflowed_withholds_all() -> None:
    """A NaN is below every threshold: diffusers' own comparison calls such a picture safe."""
    checker = SafetyChecker(tiny_model(), processor(), "cpu")
    with torch.no_grad():
        checker.model.vision_model.post_layernorm.bias.fill_(float("nan"))
    with pytest.raises(SafetyError, match="no picture is returned"):
        checker.flags(pictures())


def test_a_cancellation_passes_the_safety_checker() -> None:
    with pytest.raises(KeyboardInterrupt):
        SafetyChecker(tiny_model(), broken_processor(KeyboardInterrupt), "cpu").flags(pictures())


# Withholding


def test_one_flagged_picture_does_not_lose_the_others(capsys: pytest.CaptureFixture[str]) -> None:
    """A flagged picture must not lose the whole batch."""
    batch = pictures()
    kept = withhold(batch, Fake(False, True, False, False), disabled=False)
    assert [id(picture) for picture in kept] == [id(batch[i]) for i in (0, 2, 3)]
    assert "Withheld by the safety checker, of the pictures 0 to 3: 1\n" in capsys.readouterr().out


def test_all_flagged_is_an_error_that_says_what_to_try() -> None:
    with pytest.raises(SafetyError, match=r"flagged every picture .* another seed or another prompt"):
        withhold(pictures(2), Fake(True, True), disabled=False)


@pytest.mark.parametrize("flags", [(), (False,), (False,) * 5])
def test_withhold_refuses_a_wrong_number_of_flags(flags: tuple[bool, ...]) -> None:
    with pytest.raises(SafetyError, match="no picture is returned"):
        withhold(pictures(4), Fake(*flags), disabled=False)


def test_the_safety_checker_is_disabled_for_one_request_only() -> None:
    """One request must not disable the checker for those after it."""
    checker, batch = flagging(pictures()[2]), pictures()
    before = withhold(batch, checker, disabled=False)
    assert withhold(batch, checker, disabled=True) == batch
    after = withhold(batch, checker, disabled=False)
    assert len(before) == len(after) == 3
    assert batch[2] not in after


def test_a_disabled_safety_checker_is_not_called() -> None:
    checker = Fake(True)
    assert len(withhold(pictures(1), checker, disabled=True)) == 1
    assert checker.calls == 0


def test_a_bundle_without_checker_passes_pictures_through() -> None:
    assert withhold(pictures(2), None, disabled=False) == pictures(2)


def test_no_pictures_need_no_safety_check() -> None:
    assert withhold([], Fake(), disabled=False) == []


# Opening


def bundle(folder: Path, safety_checker: str = "safety_checker") -> SimpleNamespace:
    manifest = SimpleNamespace(name="sd15", safety_checker=safety_checker, safety_note="made for tests")

    def model(model_class: type, part: str):
        return load_pretrained(model_class, folder / part, "cpu")

    return SimpleNamespace(manifest=manifest, folder=lambda part: folder / part, device="cpu", model=model)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundle")
    flagging(pictures()[0]).model.save_pretrained(folder / "safety_checker")
    processor().save_pretrained(folder / "feature_extractor")
    return folder


def rewrite(saved: Path, target: Path, rename) -> Path:
    """A copy of the saved bundle whose tensors are named by `rename` (None: left out)."""
    shutil.copytree(saved, target)
    file = target / "safety_checker" / "model.safetensors"
    tensors = {rename(name): tensor for name, tensor in load_file(file).items()}
    tensors.pop(None, None)
    file.unlink()
    save_file(tensors, file, metadata={"format": "pt"})
    return target


def test_the_safety_checker_of_the_manifest_is_opened(saved: Path) -> None:
    checker = open_safety_checker(bundle(saved))
    assert checker is not None
    assert checker.flags(pictures()) == [True, False, False, False]


def test_a_safety_checker_in_half_precision_is_opened(saved: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(saved, tmp_path / "bundle") / "safety_checker"
    (folder / "model.safetensors").rename(folder / "model.fp16.safetensors")
    checker = open_safety_checker(bundle(folder.parent))
    assert checker is not None and checker.flags(pictures()) == [True, False, False, False]


def test_the_published_safety_checker_layout_is_opened(saved: Path, tmp_path: Path) -> None:
    """The published file has one more level in its names than today's transformers classes."""

    def published(name: str) -> str:
        inner = name.removeprefix("vision_model.")
        return name if inner == name else f"vision_model.vision_model.{inner}"

    checker = open_safety_checker(bundle(rewrite(saved, tmp_path / "bundle", published)))
    assert checker is not None and checker.flags(pictures()) == [True, False, False, False]


def test_a_bundle_may_declare_no_safety_checker(tmp_path: Path) -> None:
    assert open_safety_checker(bundle(tmp_path, "none")) is None


@pytest.mark.parametrize("absent", ["safety_checker", "feature_extractor", "safety_checker/model.safetensors"])
def test_absent_safety_checker_files_fail_setup(saved: Path, tmp_path: Path, absent: str) -> None:
    folder = shutil.copytree(saved, tmp_path / "bundle")
    shutil.rmtree(folder / absent) if (folder / absent).is_dir() else (folder / absent).unlink()
    with pytest.raises(SafetyError) as caught:
        open_safety_checker(bundle(folder))
    assert "script/download-weights sd15" in str(caught.value) and str(tmp_path) not in str(caught.value)


@pytest.mark.parametrize("missing", ["concept_embeds", "visual_projection.weight"])
def test_missing_safety_checker_tensors_fail_setup(saved: Path, tmp_path: Path, missing: str) -> None:
    """transformers would fill them in and go on: concepts of ones are never reached, so nothing would be flagged."""
    folder = rewrite(saved, tmp_path / "bundle", lambda name: None if name == missing else name)
    with pytest.raises(SafetyError, match="incomplete"):
        open_safety_checker(bundle(folder))
