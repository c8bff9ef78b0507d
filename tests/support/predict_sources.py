"""Small texts of a predict.py, for tests of the schema reader."""

from typing import Any

from controlnet.serving.schema import openapi_schema

HEADER = """\
from typing import Literal, Optional, Union
from cog import BasePredictor, Input, Path, Secret
from elsewhere import CONDITIONERS as IMPORTED
import settings

NAMES = ["a", "b"]
MORE = ["c", "d"]
TUPLE = ("c", "d")
MAX_STEPS = 50
TEXT = "From above."
TABLE = {"a": 1, "b": 2}
MADE = [name for name in NAMES]
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
