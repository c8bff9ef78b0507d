"""controlnet/python/signature.py has the inputs of predict.py, with their types, defaults and descriptions."""

import inspect
import typing

import signature

from controlnet.python.opened import OpenModel
from controlnet.request.inputs import declared_defaults
from predict import Predictor

SOURCE = """
from typing import Optional
from cog import BasePredictor, Input, Path

SIZES = ["small", "large"]

class Predictor(BasePredictor):
    def predict(
        self,
        size: str = Input(default="small", choices=SIZES, description="One size."),
        share: Optional[float] = Input(default=None, ge=0, le=1, description="A share."),
        photo: Path = Input(description="A photo."),
        name: str = Input(description="A name."),
        note: str = Input(default="it's so", description="A note."),
        scale: float = Input(default=2, description="A scale."),
    ) -> list[Path]: ...
"""


def test_the_file_is_what_the_script_writes() -> None:
    written = signature.signature((signature.ROOT / "predict.py").read_text(encoding="utf-8"))
    assert signature.TARGET.read_text(encoding="utf-8") == written, "run script/write-signature"


def test_it_has_the_inputs_and_defaults_that_requests_are_read_with() -> None:
    parameters = dict(inspect.signature(OpenModel.__call__).parameters)
    del parameters["self"]
    declared = declared_defaults(Predictor.predict)
    got = {name: None if p.default is inspect.Parameter.empty else p.default for name, p in parameters.items()}
    assert got == declared
    assert list(parameters)[:3] == ["prompt", "image", "conditioner"]
    assert typing.get_type_hints(OpenModel.__call__)["num_outputs"] is int


def test_required_inputs_come_first_and_types_are_those_of_python() -> None:
    text = signature.signature(SOURCE)
    lines = [line.strip() for line in text.partition("self,\n")[2].partition(") ->")[0].splitlines()]
    assert lines[:3] == ["photo: Picture,", "name: str,", 'size: Size = "small",']
    assert lines[4:7] == ["share: float | None = None,", 'note: str = "it\'s so",', "scale: float = 2.0,"]
    assert 'Size = Literal[\n    "small",\n    "large",\n]\n' in text
    assert "\n        note: A note.\n" in text
    compile(text, "signature.py", "exec")
