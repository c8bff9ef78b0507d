"""Small texts of a predict.py, for tests of the schema reader."""

from typing import Any

from controlnet.serving.schema import openapi_schema

HEADER = """\
from typing import Iterator, List, Literal, Optional, Union
from cog import BasePredictor, Input, Path, Secret
from elsewhere import CONDITIONERS as IMPORTED
import settings

NAMES = ["a", "b"]
TUPLE = ("c", "d")
TYPED: list[str] = ["e"]
MAX_STEPS = 50
TEXT = "From above."
TABLE = {"a": 1, "b": 2}
REGISTRY = {"a": object(), "b": object()}
MADE = [name for name in NAMES]
SET = {"a", "b"}
COMMENTED = [
    "a",  # one
    "b",
]

class Predictor(BasePredictor):
"""
LINE = HEADER.count("\n") + 1


def source(parameters: str, returns: str = "list[Path]") -> str:
    """A predict.py whose predict() is on line LINE and has these parameters."""
    return f"{HEADER}    def predict(self, {parameters}){f' -> {returns}' if returns else ''}:\n        pass\n"


def schemas(parameters: str, returns: str = "list[Path]") -> dict[str, Any]:
    return openapi_schema(source(parameters, returns))["components"]["schemas"]
