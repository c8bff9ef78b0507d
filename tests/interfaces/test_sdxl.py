"""What each input of fofr's multi-controlnet models and of lucataco/sdxl-controlnet becomes, without models."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import cog
import pytest
from PIL import Image
from support.requests import FakeBundle

from controlnet.conditioners import BY_NAME
from controlnet.pictures.images import ImageError
from controlnet.request.combinations import RequestError
from controlnet.request.inputs import InputError, check_inputs
from controlnet.request.reading import read_request
from controlnet.request.request import Request
from controlnet.weights.lora_files import LoraError
from controlnet.weights.manifest import WEIGHTS, Manifest
from interfaces import fofr, fofr_adapter, lucataco
from interfaces.adapter import Named
from predict import Predictor

SDXL = Manifest.read(WEIGHTS / "sdxl.toml", {})
PICTURE = cog.Path("never-opened.png")
Predict = Callable[..., Any]


class SdxlBundle(FakeBundle):
    defaults = SDXL.defaults
    fast = SDXL.fast
    annotator_of: Mapping[str, str] = {name: SDXL.annotator(name) for name in SDXL.conditioners}


def read(named: Named) -> Request:
    return read_request(Predictor.predict, {ours: value for ours, (_, value) in named.items()}, SdxlBundle())


def asked(predict: Predict = fofr.Sdxl.predict, few_steps: bool = False, manifest: Manifest = SDXL, **sent) -> Named:
    return fofr_adapter.asked(check_inputs(predict, sent), manifest, few_steps)


def without_effect(predict: Predict = fofr.Sdxl.predict, few_steps: bool = False, **sent) -> dict[str, str]:
    return fofr_adapter.without_effect(check_inputs(predict, sent), SDXL, few_steps)


@pytest.fixture
def wide(tmp_path: Path) -> cog.Path:
    """A picture of 160×100, which lies on its side in the file."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (100, 160)).save(tmp_path / "wide.jpg", exif=exif)
    return cog.Path(tmp_path / "wide.jpg")


# ---- fofr


def test_without_a_control_there_is_one_that_is_not_run() -> None:
    request = read(asked())
    (control,) = request.controls
    assert (control.scale, control.preprocess, control.image.name) == (0, False, "blank.png")
    assert Image.open(control.image).getextrema() == (0, 0)
    assert not request.return_control_map
    assert (request.prompt, request.negative_prompt) == ("An astronaut riding a rainbow unicorn", "")
    assert (request.width, request.height, request.num_outputs, request.output_format) == (768, 768, 1, "png")
    assert (request.scheduler, request.num_inference_steps, request.guidance_scale) == ("K_EULER", 30, 7.5)
    assert (request.init_image, request.mask, request.loras, request.go_fast) == (None, None, (), False)


@pytest.mark.parametrize("choice", [each for each in fofr.CONTROLNETS if each not in ("none", "illusion")])
def test_every_choice_has_a_conditioner(choice: str) -> None:
    named = asked(controlnet_1=choice, controlnet_1_image=PICTURE)
    request = read(named)
    (control,) = request.controls
    assert control.conditioner == named["conditioner"][1] and control.conditioner in BY_NAME
    expected = {"edge": "canny", "depth": "depth", "soft": "hed"}.get(choice.split("_")[0], choice)
    assert control.conditioner == expected
    assert request.return_control_map and control.preprocess


def test_controls_keep_their_order_and_their_names() -> None:
    of_second = {"controlnet_2_conditioning_scale": 1.5, "controlnet_2_start": 0.25, "controlnet_2_end": 0.75}
    third: dict[str, Any] = {"controlnet_3": "depth_midas", "controlnet_3_image": cog.Path("other.png")}
    sent: dict[str, Any] = {"controlnet_2": "openpose", "controlnet_2_image": PICTURE} | of_second | third
    named = asked(**sent)
    first, other = read(named).controls
    assert (first.conditioner, first.image, first.scale, first.start, first.end) == (
        *("openpose", PICTURE),
        *of_second.values(),
    )
    assert (other.conditioner, other.image.name, other.scale, other.start, other.end) == (
        "depth",
        "other.png",
        0.75,
        0,
        1,
    )
    assert {ours: theirs for ours, (theirs, _) in named.items() if ours.startswith(("cond", "control", "image"))} == {
        f"{ours}{suffix}": f"controlnet_{number}{end}"
        for suffix, number in (("", 2), ("_2", 3))
        for ours, end in (
            *(("conditioner", ""), ("image", "_image"), ("conditioning_scale", "_conditioning_scale")),
            *(("control_start", "_start"), ("control_end", "_end")),
        )
    }


def test_image_is_the_initial_picture() -> None:
    sent: dict[str, Any] = {
        "image": PICTURE,
        "prompt_strength": 0.5,
        "scheduler": "KarrasDPM",
        "seed": 0,
        "num_outputs": 3,
    }
    request = read(asked(**sent, mask=cog.Path("mask.png"), disable_safety_checker=True))
    assert (request.init_image, request.mask, request.prompt_strength) == (PICTURE, cog.Path("mask.png"), 0.5)
    assert (request.scheduler, request.seed, request.num_outputs) == ("DPMSolverMultistepKarras", 0, 3)
    assert request.disable_safety_checker
    alone = read(asked(mask=PICTURE))
    assert alone.mask is None and "mask" in without_effect(mask=PICTURE), "a mask of no picture"


@pytest.mark.parametrize(
    ("strategy", "name"),
    [("input_image", "image"), ("mask_image", "mask"), *((f"controlnet_{n}_image",) * 2 for n in (1, 2, 3))],
)
def test_the_size_may_be_that_of_a_picture(strategy: str, name: str, wide: cog.Path) -> None:
    request = read(asked(**{"sizing_strategy": strategy, name: wide, "width": 64}))
    assert (request.width, request.height) == (1024, 640)
    unused = without_effect(**{"sizing_strategy": strategy, name: wide})
    assert {"width", "height"} <= unused.keys() and name not in unused
    with pytest.raises(RequestError, match=f"^sizing_strategy {strategy} takes the size from {name}: send it"):
        asked(sizing_strategy=strategy)


def test_a_size_that_a_picture_sets_is_one_that_can_be_made(tmp_path: Path) -> None:
    Image.new("RGB", (100, 400)).save(tmp_path / "tall.png")
    request = read(asked(sizing_strategy="input_image", image=cog.Path(tmp_path / "tall.png")))
    assert (request.width, request.height) == (1024, 2048)
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(ImageError, match=r"^mask: The image"):
        asked(sizing_strategy="mask_image", mask=cog.Path(tmp_path / "text.png"))


def test_what_is_missing_or_beyond_our_bounds_is_refused() -> None:
    with pytest.raises(RequestError, match=r"^controlnet_2 lineart needs a picture: send controlnet_2_image, or leave"):
        asked(controlnet_2="lineart", controlnet_1="openpose", controlnet_1_image=PICTURE)
    with pytest.raises(RequestError, match=r"^controlnet_1 illusion needs the ControlNet QR Code Monster"):
        asked(controlnet_1="illusion", controlnet_1_image=PICTURE)
    beyond: dict[str, Any] = {"num_inference_steps": 500, "guidance_scale": 50.0, "width": 4096, "seed": -1}
    beyond |= {"controlnet_1": "openpose", "controlnet_1_image": PICTURE, "controlnet_1_conditioning_scale": 4.0}
    with pytest.raises(InputError) as refused:
        read(asked(**beyond))
    for name in ("num_inference_steps", "guidance_scale", "width", "seed", "conditioning_scale"):
        assert f"{name}: expected" in str(refused.value)


@pytest.mark.parametrize("by", ["repo", "net"])
def test_illusion_is_served_by_a_net_for_qr_codes(by: str) -> None:
    repo = "monster-labs/control_v1p_sdxl_qrcode_monster" if by == "repo" else ""
    entry = replace(SDXL.conditioners["tile"], annotators={"": "raw"}, net="qr" if by == "net" else "ip2p", type=None)
    part = replace(SDXL.part("controlnet/union"), name=entry.part, repo=repo)
    manifest = replace(SDXL, conditioners=SDXL.conditioners | {"ip2p": entry}, parts=(*SDXL.parts, part))
    named = asked(manifest=manifest, controlnet_1="illusion", controlnet_1_image=PICTURE)
    assert named["conditioner"] == ("controlnet_1", "ip2p")


def test_a_lora_is_what_ours_are_and_no_archive() -> None:
    (lora,) = read(asked(lora_weights="someone/repository", lora_scale=0.9)).loras
    assert (lora.scale, str(lora.source)) == (0.9, "someone/repository at main")
    assert read(asked(lora_weights="someone/repository")).loras[0].scale == 0.6
    with pytest.raises(LoraError, match=r"^lora_weights: expected a URL of a \.safetensors file"):
        read(asked(lora_weights="https://replicate.delivery/pbxt/abc/trained_model.tar"))


@pytest.mark.parametrize(("predict", "guidance"), [(fofr.Lcm.predict, 1.0), (fofr.Lightning.predict, 0.0)])
def test_few_steps_are_those_of_the_bundle(predict: Predict, guidance: float) -> None:
    request = read(asked(predict, few_steps=True))
    assert SDXL.fast is not None
    assert (request.go_fast, request.num_inference_steps, request.guidance_scale) == (True, 4, guidance)
    assert request.scheduler == SDXL.fast.scheduler
    unused = without_effect(predict, few_steps=True)
    assert "scheduler" in unused and ("guidance_scale" in unused) is (guidance == 1.0)
    many = read(asked(predict, few_steps=True, num_inference_steps=30, guidance_scale=7.0))
    assert (many.go_fast, many.num_inference_steps, many.guidance_scale, many.scheduler) == (False, 30, 7.0, "K_EULER")
    with pytest.raises(RequestError, match=r"^num_inference_steps: expected at least 4 with this bundle; got 2"):
        asked(predict, few_steps=True, num_inference_steps=2)
    without = read(asked(predict, few_steps=True, manifest=replace(SDXL, fast=None)))
    assert not without.go_fast and without.scheduler == "K_EULER", "a bundle whose checkpoint is for few steps itself"


@pytest.mark.parametrize("predict", [fofr.Sdxl.predict, fofr.Lcm.predict, fofr.Lightning.predict])
def test_every_input_acts_or_is_said_to_have_no_effect(predict: Predict) -> None:
    inputs = check_inputs(predict, {})
    chosen: dict[str, Any] = {f"controlnet_{number}": "openpose" for number in (1, 2)}
    chosen |= {f"{name}_image": PICTURE for name in chosen}
    acting = {theirs for theirs, _ in asked(predict, image=PICTURE, **chosen).values()}
    unused = without_effect(predict, image=PICTURE, **chosen).keys()
    assert acting - {None} | unused | {"sizing_strategy", "controlnet_3"} == inputs.keys()
    assert not acting & unused


# ---- lucataco


def test_lucataco(wide: cog.Path) -> None:
    inputs = check_inputs(lucataco.Predictor.predict, {"image": wide, "seed": 7})
    request = read(lucataco.asked(inputs, SDXL.defaults.resolution))
    (control,) = request.controls
    assert (control.conditioner, control.image, control.scale) == ("canny", wide, 0.5)
    assert (request.knobs.low_threshold, request.knobs.high_threshold) == (100, 200)
    assert (request.num_inference_steps, request.guidance_scale, request.scheduler) == (50, 5.0, "K_EULER")
    assert request.width is not None and request.height is not None
    assert request.width * request.height == pytest.approx(2**20, rel=0.01), "a megapixel"
    assert request.width / request.height == pytest.approx(1.6, rel=0.01), "in the shape of the picture"
    assert (request.seed, request.output_format, request.return_control_map) == (7, "png", False)
    theirs = {name for name, _ in lucataco.asked(inputs, 1024).values() if name}
    assert theirs == inputs.keys(), "every input acts"


def test_seed_0_is_any_for_lucataco(wide: cog.Path) -> None:
    for seed in (0, -1):
        inputs = check_inputs(lucataco.Predictor.predict, {"image": wide, "seed": seed})
        assert lucataco.asked(inputs, 1024)["seed"] == ("seed", None)


def test_a_long_picture_is_made_as_long_as_pictures_can_be(tmp_path: Path) -> None:
    Image.new("RGB", (400, 100)).save(tmp_path / "long.png")
    named = lucataco.asked(check_inputs(lucataco.Predictor.predict, {"image": cog.Path(tmp_path / "long.png")}), 1536)
    assert (named["width"], named["height"]) == ((None, 2048), (None, 768))
