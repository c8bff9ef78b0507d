"""Errors name the inputs that the client of an interface knows, and leave all other words as they are."""

import pytest

from controlnet.pictures.images import ImageError
from controlnet.request.combinations import RequestError
from controlnet.request.ignored import Ignored
from controlnet.request.inputs import InputError
from interfaces.adapter import _in_their_words, _renamed
from interfaces.jagilley_adapter import Jagilley

NAMES = {
    "image": "input_image",
    "prompt": "prompt",
    "num_inference_steps": "ddim_steps",
    "guidance_scale": "scale",
    "resolution": "image_resolution",
    "num_outputs": "num_samples",
    "conditioner": "structure",
    "seed": "seed",
}


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("The bundle in use has no hed conditioner. It has canny.", None),
        ("The image is too small: expected 16 pixels.", None),
        ("The seed of an image is no image_2.", None),
        ("lower num_outputs to 1 and resolution to 512", "lower num_samples to 1 and resolution to 512"),
        ("num_inference_steps: expected 1. guidance_scale: expected 2.", "ddim_steps: expected 1. scale: expected 2."),
        ("image: a file. resolution: a number.", "input_image: a file. image_resolution: a number."),
        ("raise num_inference_steps, or leave it.", "raise ddim_steps, or leave it."),
    ],
)
def test_only_names_are_replaced(ours: str, theirs: str | None) -> None:
    for kind in (InputError, RequestError, ImageError):
        with pytest.raises(kind) as error, _in_their_words(NAMES):
            raise kind(ours)
        assert str(error.value) == (theirs or ours)


@pytest.mark.parametrize(("said", "named"), [("", "controlnet_1_image"), ("init_image: ", "image")])
def test_what_is_said_of_an_image_names_it_if_the_client_has_another_of_that_name(said: str, named: str) -> None:
    names = {"image": "controlnet_1_image", "init_image": "image"}
    with pytest.raises(ImageError, match=rf"^{named}: The image is too small\.$"), _in_their_words(names):
        raise ImageError(f"{said}The image is too small.")


def test_what_is_ignored_has_their_names_and_so_has_the_reason() -> None:
    names = {"prompt_strength": "prompt_strength", "init_image": "image", "eta": "noise"}
    ignored = [Ignored(("prompt_strength", "eta"), "no init_image"), Ignored(("mask_feather",), "nothing")]
    assert [*map(str, _renamed(ignored, names, {"prompt_strength", "noise"}))] == ["prompt_strength, noise (no image)"]
    assert [*_renamed(ignored, names, {"image"})] == [], "what is not sent"


def test_errors_of_others_are_left_alone() -> None:
    with pytest.raises(ValueError, match=r"^image: broken$"), _in_their_words(NAMES):
        raise ValueError("image: broken")


def test_what_an_interface_sets_itself_has_no_name_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("interfaces.adapter.Adapter.__init__", lambda self, record: None)
    monkeypatch.setattr(
        "interfaces.adapter.Adapter.answer", lambda self, predict, values, named, changed, without_effect: named(values)
    )
    sent = {"prompt": "a", "a_prompt": "b", "num_samples": "1", "image_resolution": "512", "n_prompt": "", "seed": 1}
    sent |= {"ddim_steps": 20, "scale": 9.0, "eta": 0.0, "input_image": "x"}
    named = Jagilley(lambda name, value: None, "hed", image="input_image").predict(lambda: None, sent)
    own = {ours for ours, (theirs, _) in named.items() if theirs is None}  # type: ignore[union-attr]
    assert own == {"conditioner", "scheduler", "return_control_map", "output_format"}
    assert {theirs for theirs, _ in named.values() if theirs} <= sent.keys()  # type: ignore[union-attr]
