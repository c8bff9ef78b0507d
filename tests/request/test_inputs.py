"""predict() gets only values that its signature allows, even if the server lets others through."""

import math
from pathlib import Path as LocalPath
from typing import Any, Optional, Union

import pytest
from cog import BasePredictor, Input, Path

from controlnet.request.inputs import InputError, check_inputs, declared_defaults

IMAGE = Path("/tmp/upload.png")


class Predictor(BasePredictor):
    """A small predictor with one input for each form of declaration in predict.py."""

    def predict(
        self,
        prompt: str = Input(description="required"),
        image: Path = Input(description="required"),
        conditioner: str = Input(default="canny", choices=["canny", "hed"]),
        scale: float = Input(default=1.0, ge=0, le=2),
        outputs: int = Input(default=1, ge=1, le=4),
        steps: Optional[int] = Input(default=None, ge=1, le=100),
        scheduler: Optional[str] = Input(default=None, choices=["DDIM", "PNDM"]),
        preprocess: bool = Input(default=True),
        code: str = Input(default="ab", min_length=2, max_length=3, regex="^[a-z]+$"),
        samples: Union[str, int] = Input(default="1"),
        unbounded: float = Input(default=0.5),
        mask: Path | None = Input(default=None),
    ) -> dict[str, Any]:
        helper = "a local that is no input"
        assert helper
        return check_inputs(Predictor.predict, locals())


DEFAULTS = {
    "conditioner": "canny",
    "scale": 1.0,
    "outputs": 1,
    "steps": None,
    "scheduler": None,
    "preprocess": True,
    "code": "ab",
    "samples": "1",
    "unbounded": 0.5,
    "mask": None,
}


def check(**values: Any) -> dict[str, Any]:
    return check_inputs(Predictor.predict, {"prompt": "a house", "image": IMAGE} | values)


def fault(**values: Any) -> str:
    with pytest.raises(InputError) as caught:
        check(**values)
    assert isinstance(caught.value, ValueError)
    return str(caught.value)


def test_calling_predict_from_python_uses_the_defaults() -> None:
    assert Predictor().predict("a house", IMAGE) == {"prompt": "a house", "image": IMAGE} | DEFAULTS


def test_only_declared_inputs_are_returned_with_defaults() -> None:
    assert check(steps=7, surplus=1, self=None) == {"prompt": "a house", "image": IMAGE} | DEFAULTS | {"steps": 7}


@pytest.mark.parametrize(("sent", "received"), [(4, 4), (4.0, 4), (1, 1)])
def test_whole_numbers_become_integers(sent: float, received: int) -> None:
    outputs = check(outputs=sent)["outputs"]
    assert outputs == received and type(outputs) is int


def test_integers_become_floats_for_float_inputs() -> None:
    scale = check(scale=2)["scale"]
    assert scale == 2.0 and type(scale) is float


def test_any_whole_character_is_text() -> None:
    assert check(prompt="家 \U0001f3e0 \0")["prompt"] == "家 \U0001f3e0 \0"


def test_zero_and_false_are_values() -> None:
    """A falsy value counts as sent: 0 is not a missing number."""
    checked = check(scale=0, preprocess=False, samples=0)
    assert (checked["scale"], checked["preprocess"], checked["samples"]) == (0.0, False, 0)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"conditioner": "x"}, "conditioner: expected one of canny, hed; got 'x'."),
        ({"conditioner": None}, "conditioner: expected one of canny, hed; got nothing."),
        ({"conditioner": ["canny"]}, "conditioner: expected one of canny, hed; got a list."),
        ({"scheduler": "ddim"}, "scheduler: expected one of DDIM, PNDM; got 'ddim'."),
        ({"outputs": 0}, "outputs: expected an integer, at least 1 and at most 4; got 0."),
        ({"outputs": 5}, "outputs: expected an integer, at least 1 and at most 4; got 5."),
        ({"outputs": 2.5}, "outputs: expected an integer, at least 1 and at most 4; got 2.5."),
        ({"outputs": True}, "outputs: expected an integer, at least 1 and at most 4; got true."),
        ({"outputs": "2"}, "outputs: expected an integer, at least 1 and at most 4; got '2'."),
        ({"outputs": math.nan}, "outputs: expected an integer, at least 1 and at most 4; got nan."),
        ({"outputs": math.inf}, "outputs: expected an integer, at least 1 and at most 4; got inf."),
        ({"outputs": 10**5000}, "outputs: expected an integer, at least 1 and at most 4; got a very large number."),
        ({"steps": 101}, "steps: expected an integer, at least 1 and at most 100; got 101."),
        ({"scale": 2.0001}, "scale: expected a number, at least 0 and at most 2; got 2.0001."),
        ({"scale": -1}, "scale: expected a number, at least 0 and at most 2; got -1."),
        ({"scale": math.nan}, "scale: expected a number, at least 0 and at most 2; got nan."),
        ({"scale": -math.inf}, "scale: expected a number, at least 0 and at most 2; got -inf."),
        ({"scale": False}, "scale: expected a number, at least 0 and at most 2; got false."),
        ({"scale": 10**400}, "scale: expected a number, at least 0 and at most 2; got a very large number."),
        ({"unbounded": math.nan}, "unbounded: expected a number; got nan."),
        ({"unbounded": math.inf}, "unbounded: expected a number; got inf."),
        ({"preprocess": 1}, "preprocess: expected true or false; got 1."),
        ({"preprocess": "true"}, "preprocess: expected true or false; got 'true'."),
        ({"prompt": 7}, "prompt: expected text; got 7."),
        ({"prompt": None}, "prompt: expected text; got nothing."),
        (
            {"prompt": "a \ud83d house"},
            "prompt: expected text; got text with half a character in it (a lone surrogate).",
        ),
        ({"samples": 1.5}, "samples: expected text or an integer; got 1.5."),
        ({"code": "a"}, "code: expected text, at least 2 characters long and at most 3 characters long and matching"),
        ({"code": "abcd"}, "got 'abcd'."),
        ({"code": "A1"}, "got 'A1'."),
    ],
)
def test_a_wrong_value_is_refused_with_the_expected_one(values: dict[str, Any], message: str) -> None:
    assert message in fault(**values)


def test_all_faults_of_inputs_are_reported_at_once() -> None:
    message = fault(conditioner="x", outputs=9, scale=3)
    assert [part.split(":")[0] for part in message.split(". ")] == ["conditioner", "scale", "outputs"]


def test_required_inputs_must_be_sent() -> None:
    with pytest.raises(InputError, match=r"^prompt: expected text; got nothing\. image: expected an uploaded file"):
        check_inputs(Predictor.predict, {})


@pytest.mark.parametrize("name", ["image", "mask"])
def test_a_local_path_as_text_is_refused_and_not_repeated(name: str) -> None:
    message = fault(**{name: "/etc/hostname"})
    assert message == f"{name}: expected an uploaded file, an http(s) URL or a data URL; got plain text."


def test_any_path_object_is_a_file() -> None:
    assert check(image=LocalPath("/tmp/x"))["image"] == LocalPath("/tmp/x")
    assert "/tmp" not in fault(prompt=LocalPath("/tmp/x"))


def test_long_values_are_not_repeated_whole() -> None:
    assert len(fault(conditioner="x" * 10_000)) < 120


def test_defaults_are_those_of_the_signature() -> None:
    assert declared_defaults(Predictor.predict) == DEFAULTS | {"prompt": None, "image": None}
