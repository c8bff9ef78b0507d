"""Errors name the inputs that the client of an interface knows, and leave all other words as they are."""

import pytest

from controlnet.pictures.images import ImageError
from controlnet.request.combinations import RequestError
from controlnet.request.inputs import InputError
from interfaces.adapter import _in_their_words
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


def test_errors_of_others_are_left_alone() -> None:
    with pytest.raises(ValueError, match=r"^image: broken$"), _in_their_words(NAMES):
        raise ValueError("image: broken")


def test_what_an_interface_sets_itself_has_no_name_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("interfaces.adapter.Adapter.__init__", lambda self, record: None)
    monkeypatch.setattr(
        "interfaces.adapter.Adapter.answer", lambda self, predict, values, named, changed: named(values)
    )
    sent = {"prompt": "a", "a_prompt": "b", "num_samples": "1", "image_resolution": "512", "n_prompt": "", "seed": 1}
    sent |= {"ddim_steps": 20, "scale": 9.0, "eta": 0.0, "input_image": "x"}
    named = Jagilley(lambda name, value: None, "hed", image="input_image").predict(lambda: None, sent)
    own = {ours for ours, (theirs, _) in named.items() if theirs is None}  # type: ignore[union-attr]
    assert own == {"conditioner", "scheduler", "return_control_map", "output_format"}
    assert {theirs for theirs, _ in named.values() if theirs} <= sent.keys()  # type: ignore[union-attr]
