"""The schema is the one that `cog build` writes. A predict.py that Cog cannot resolve is refused."""

import inspect
import json
from pathlib import Path
from typing import Any

import pytest
from cog.input import FieldInfo

from controlnet.serving.schema import SCHEMA_PATH, SchemaError, openapi_schema, write_schema
from controlnet.serving.schema_cli import compare, differences
from controlnet.serving.server import ROOT

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


def ref(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}


# ---- the exact document


def test_schema_of_a_small_predictor() -> None:
    document = openapi_schema(
        source('prompt: str = Input(description="What."), conditioner: str = Input(default="a", choices=NAMES)'),
        cog_version="0.23.1",
    )
    assert document["openapi"] == "3.0.2"
    assert document["info"] == {"title": "Cog", "version": "0.23.1"}
    cancel = "/predictions/{prediction_id}/cancel"
    assert list(document["paths"]) == ["/", "/health-check", "/predictions", cancel]
    components = document["components"]["schemas"]
    fixed = ["PredictionRequest", "PredictionResponse", "Status", "HTTPValidationError", "ValidationError"]
    assert list(components) == ["Input", "Output", "conditioner", *fixed]
    assert components["Input"] == {
        "title": "Input",
        "type": "object",
        "required": ["prompt"],
        "properties": {
            "prompt": {"description": "What.", "title": "Prompt", "type": "string", "x-order": 0},
            "conditioner": {"allOf": [ref("conditioner")], "default": "a", "x-order": 1},
        },
    }
    assert components["conditioner"] == {
        "description": "An enumeration.",
        "enum": ["a", "b"],
        "title": "conditioner",
        "type": "string",
    }
    assert components["Output"] == {
        "items": {"format": "uri", "type": "string"},
        "title": "Output",
        "type": "array",
    }


def test_schema_has_the_fixed_paths_and_components() -> None:
    document = openapi_schema(source("x: int = 1"))

    def response(description: str, schema: dict[str, Any]) -> dict[str, Any]:
        return {"description": description, "content": {"application/json": {"schema": schema}}}

    invalid = response("Validation Error", ref("HTTPValidationError"))
    assert document["paths"]["/predictions"]["post"] == {
        "summary": "Predict",
        "description": "Run a single prediction on the model",
        "operationId": "predict_predictions_post",
        "requestBody": {"content": {"application/json": {"schema": ref("PredictionRequest")}}},
        "responses": {"200": response("Successful Response", ref("PredictionResponse")), "422": invalid},
    }
    assert document["paths"]["/predictions/{prediction_id}/cancel"]["post"] == {
        "summary": "Cancel",
        "operationId": "cancel_predictions__prediction_id__cancel_post",
        "parameters": [
            {
                "required": True,
                "schema": {"title": "Prediction Id", "type": "string"},
                "name": "prediction_id",
                "in": "path",
            }
        ],
        "responses": {"200": response("Successful Response", {}), "422": invalid},
    }
    parts = document["components"]["schemas"]
    time = {"type": "string", "format": "date-time"}
    assert parts["PredictionResponse"]["properties"] == {
        "input": ref("Input"),
        "output": ref("Output"),
        "id": {"title": "Id", "type": "string"},
        "version": {"title": "Version", "type": "string"},
        "created_at": {"title": "Created At"} | time,
        "started_at": {"title": "Started At"} | time,
        "completed_at": {"title": "Completed At"} | time,
        "status": {"title": "Status", "type": "string"},
        "error": {"title": "Error", "type": "string"},
        "logs": {"title": "Logs", "type": "string"},
        "metrics": {"title": "Metrics", "type": "object"},
    }
    assert parts["PredictionRequest"]["properties"] == {"id": {"title": "Id", "type": "string"}, "input": ref("Input")}
    assert parts["Status"]["enum"] == ["starting", "processing", "succeeded", "canceled", "failed"]
    assert parts["ValidationError"]["required"] == ["loc", "msg", "type"]
    assert "required" not in parts["Input"]  # nothing is required: Cog leaves the key out


@pytest.mark.parametrize(
    ("declaration", "expected"),
    [
        ("str", {"type": "string"}),
        ("Path", {"type": "string", "format": "uri"}),
        ("bool", {"type": "boolean"}),
        ("int", {"type": "integer"}),
        ("float", {"type": "number"}),
        ("dict", {"type": "object"}),
        ("list[str]", {"type": "array", "items": {"type": "string"}}),
        ("List[Path]", {"type": "array", "items": {"type": "string", "format": "uri"}}),
        ("Secret", {"type": "string", "format": "password", "writeOnly": True, "x-cog-secret": True}),
        ("int = 5", {"type": "integer", "default": 5}),
        ("str = TEXT", {"type": "string", "default": "From above."}),
        ("float = Input(default=1.0)", {"type": "number", "default": 1}),
        ("float = Input(default=-0.5)", {"type": "number", "default": -0.5}),
        ("bool = Input(default=False)", {"type": "boolean", "default": False}),
        (
            "float = Input(ge=0, le=1.5, deprecated=True)",
            {"type": "number", "minimum": 0, "maximum": 1.5, "deprecated": True},
        ),
        ("int = Input(le=4294967295, deprecated=False)", {"type": "integer", "maximum": 4294967295}),
        (
            'str = Input(min_length=1, max_length=9, regex=r"^\\d+$")',
            {"type": "string", "minLength": 1, "maxLength": 9, "pattern": r"^\d+$"},
        ),
        ('Path = Input(accept="image/*")', {"type": "string", "format": "uri", "x-cog-accept": "image/*"}),
        ("str = Input(description=TEXT)", {"type": "string", "description": "From above."}),
        ("Optional[int] = Input(default=None)", {"type": "integer", "default": None, "nullable": True}),
        ("int | None = Input(default=None)", {"type": "integer", "default": None, "nullable": True}),
        ("Optional[str]", {"type": "string", "nullable": True}),
        ("Union[str, int]", {"anyOf": [{"type": "string"}, {"type": "integer"}]}),
        ("str | float", {"anyOf": [{"type": "string"}, {"type": "number"}]}),
        (
            "Optional[list[Path]] = Input(default=None)",
            {"type": "array", "items": {"type": "string", "format": "uri"}, "default": None, "nullable": True},
        ),
        ("list[str] | None", {"type": "array", "items": {"type": "string"}, "nullable": True}),
        (
            'list[str] = Input(default=["a", "b",])',
            {"type": "array", "items": {"type": "string"}, "default": ["a", "b"]},
        ),
        (
            "Optional[Union[str, int]] = Input(default=None)",
            {
                "anyOf": [{"nullable": True, "type": "string"}, {"nullable": True, "type": "integer"}],
                "default": None,
                "nullable": True,
            },
        ),
    ],
)
def test_schema_of_an_input(declaration: str, expected: dict[str, Any]) -> None:
    got = schemas(f"x: {declaration}")["Input"]["properties"]["x"]
    assert got == {"title": "X", "x-order": 0} | expected


def test_the_title_of_an_input_has_separate_words() -> None:
    properties = schemas("image_2: Path, num_outputs: int")["Input"]["properties"]
    assert [prop["title"] for prop in properties.values()] == ["Image 2", "Num Outputs"]


def test_inputs_without_a_default_are_required_unless_optional() -> None:
    assert schemas("a: str, b: Optional[str], c: Union[str, int, None], d: int = 1")["Input"]["required"] == ["a", "c"]


@pytest.mark.parametrize(
    ("choices", "values"),
    [
        ("NAMES", ["a", "b"]),
        ("TUPLE", ["c", "d"]),
        ("TYPED", ["e"]),
        ('["x", "y"]', ["x", "y"]),
        ("NAMES + TUPLE", ["a", "b", "c", "d"]),
        ("list(TABLE.keys())", ["a", "b"]),
    ],
)
def test_choices_that_cog_resolves(choices: str, values: list[str]) -> None:
    parts = schemas(f"x: Optional[str] = Input(default=None, choices={choices})")
    assert parts["x"] == {"title": "x", "description": "An enumeration.", "enum": values, "type": "string"}
    prop = {"allOf": [ref("x")], "default": None, "nullable": True, "x-order": 0}
    assert parts["Input"]["properties"]["x"] == prop


def test_choices_of_integers() -> None:
    parts = schemas("x: int = Input(default=256, choices=[256, 512])")
    assert parts["x"] == {"title": "x", "description": "An enumeration.", "enum": [256, 512], "type": "integer"}


@pytest.mark.parametrize(
    ("returns", "expected"),
    [
        ("Path", {"type": "string", "format": "uri"}),
        ("str", {"type": "string"}),
        ("List[str]", {"type": "array", "items": {"type": "string"}}),
        ("Iterator[str]", {"type": "array", "items": {"type": "string"}, "x-cog-array-type": "iterator"}),
    ],
)
def test_output_types(returns: str, expected: dict[str, Any]) -> None:
    assert schemas("x: str", returns)["Output"] == expected | {"title": "Output"}


# ---- what Cog refuses or drops


@pytest.mark.parametrize(
    ("declaration", "problem"),
    [
        ("str = Input(choices=IMPORTED)", "IMPORTED is not a literal constant of this file"),
        ("str = Input(choices=MADE)", "MADE is not a literal constant of this file"),
        ("str = Input(choices=[n for n in NAMES])", "Cog cannot resolve choices=[n for n in NAMES]"),
        ("str = Input(choices=TABLE.keys())", "Cog cannot resolve choices=TABLE.keys()"),
        ("str = Input(choices=list(REGISTRY.keys()))", "Cog cannot resolve choices=list(REGISTRY.keys())"),
        ("str = Input(choices=sorted(NAMES))", "Cog cannot resolve choices=sorted(NAMES)"),
        ('str = Input(choices=("a", "b"))', 'Cog cannot resolve choices=("a", "b")'),
        ("str = Input(choices=NAMES + IMPORTED)", "IMPORTED is not a literal constant"),
        ("str = Input(choices=[])", "choices are empty"),
        ("str = Input(choices=[1, 2])", "choices must be strings for a str"),
        ("float = Input(choices=[0.5])", "choices must be strings for a str"),
        ("int = Input(le=MAX_STEPS)", "the bound MAX_STEPS is not a plain decimal number"),
        ("int = Input(ge=2**3)", "the bound 2**3 is not a plain decimal number"),
        ("int = Input(le=4_096)", "the bound 4_096 is not a plain decimal number"),
        ("int = Input(le=0xff)", "the bound 0xff is not a plain decimal number"),
        ("int = Input(default=settings.STEPS)", "settings.STEPS is not a literal"),
        ("int = Input(default=2**3)", "2**3 is not a literal"),
        ("int = Input(default=9223372036854775808)", "9223372036854775808 is not a literal"),
        ("str = Input(default=IMPORTED)", "IMPORTED is not a literal constant"),
        ("int = Input(default=None)", "a default of None makes it required; write Optional[...]"),
        ('Literal["a", "b"]', 'Literal["a", "b"] is not a type that Cog takes'),
        ("list[list[str]]", "list[list[str]] is not a type that Cog takes"),
        ("Union[Path, str]", "a union may hold str, int, float, bool, dict only"),
        ("set", "set is not a type that Cog takes"),
        ("None", "None is not a type that Cog takes"),
        ("Union[str, Optional[int]]", "a union may hold str, int, float, bool, dict only"),
        ("Union[str, Union[int, float]]", "a union may hold str, int, float, bool, dict only"),
        ("Union[str, int] = Input(ge=1)", "a union takes no minimum"),
        ('str | int = Input(choices=["a"])', "a union takes no choices"),
        ("str | int = Input(max_length=9)", "a union takes no maxLength"),
        ('str = Input(accept="image/*")', "accept is for inputs of type Path"),
        (
            'list[str] = Input(choices=["a"])',
            "choices must be strings for a str, whole numbers for an int; its type is list",
        ),
        ('str = Input(choices={"a", "b"})', "Cog cannot resolve choices="),
        ("str = Input(choices=SET)", "SET is not a literal constant"),
        ("str = Input(choices=COMMENTED)", "COMMENTED is not a literal constant of this file without comments in it"),
        ('str = Input(choices=[("a"), "b"])', "a comment, or an element in brackets"),
        ('list[str] = Input(default=[ # one\n "a"])', "a comment, or an element in brackets"),
        ('str = Input(choices=["a", # one\n "b"])', "a comment, or an element in brackets"),
        ('str = Input(description=f"At most {MAX_STEPS}.")', "write one literal string"),
        ('str = Input(description="One " + "two.")', "write one literal string"),
        ('str = Input(description="One " "two.")', "write one literal string"),
        ('str = Input(description="A \\"quote\\".")', "write one literal string"),
        ('str = Input(description=("In brackets."))', "description is in brackets"),
        ("str = Input(description=MAX_STEPS)", "its description is not a string"),
        ("str = Input(regex=TEXT)", "write one literal string"),
        ('str = Input("a default")', "Input() is read by keyword only"),
        ("str = Input(**OPTIONS)", "Input() has no ** that Cog can read"),
        ("str = Input(gt=1)", "Input() has no gt that Cog can read"),
        ("list[str] = Input(default_factory=list)", "Input() has no default_factory that Cog can read"),
        ("bool = Input(deprecated=1)", "deprecated must be True or False"),
        ("str = cog.Input()", "cog.Input() is not a literal"),
    ],
)
def test_an_input_that_cog_does_not_resolve_is_refused(declaration: str, problem: str) -> None:
    with pytest.raises(SchemaError) as caught:
        schemas(f"a: int, x: {declaration}")
    assert str(caught.value).startswith(f"predict.py line {LINE}: input 'x': ")
    assert problem in str(caught.value)


@pytest.mark.parametrize(
    ("parameters", "returns", "problem"),
    [
        ("x", "Path", "input 'x': has no type"),
        ("x=1", "Path", "input 'x': has no type"),
        ("*, x: str", "Path", "takes plain parameters only"),
        ("**options", "Path", "takes plain parameters only"),
        ("x: str", "", "the return type of predict(): is missing"),
        ("x: str", "Optional[Path]", "Optional[Path] is not known here"),
    ],
)
def test_a_signature_that_cog_does_not_accept_is_refused(parameters: str, returns: str, problem: str) -> None:
    with pytest.raises(SchemaError, match=rf"^predict\.py line {LINE}: ") as caught:
        schemas(parameters, returns)
    assert problem in str(caught.value)


@pytest.mark.parametrize("parameter", ["self: str", "self=1"])
def test_self_with_a_type_or_default_is_refused(parameter: str) -> None:
    with pytest.raises(SchemaError, match="takes self without a type or default; Cog would make it an input"):
        openapi_schema(source("x: int = 1").replace("(self,", f"({parameter},"))


def test_methods_that_cog_would_read_in_its_place_are_refused() -> None:
    method = "    def {}(self, y: int) -> str:\n        pass\n"
    once = source("x: str")
    for name, problem in [("run", "a method run\\(\\) too"), ("predict", "it is defined a second time")]:
        with pytest.raises(SchemaError, match=rf"^predict\.py line {LINE + 2}: predict\(\): .*{problem}"):
            openapi_schema(once + method.format(name))
        with pytest.raises(SchemaError, match=problem):
            openapi_schema(once + "    async " + method.format(name).lstrip())
    with pytest.raises(SchemaError, match="a second class Predictor"):
        openapi_schema(once + "class Predictor(BasePredictor):\n" + method.format("predict"))
    with pytest.raises(SchemaError, match="no base class but BasePredictor"):
        openapi_schema("class Base:\n" + method.format("run") + once.replace("(BasePredictor)", "(Base)"))


def test_a_byte_order_mark_is_skipped_as_by_python() -> None:
    assert openapi_schema("\ufeff" + source("x: int = 7")) == openapi_schema(source("x: int = 7"))


def test_a_syntax_error_names_its_line() -> None:
    with pytest.raises(SchemaError, match=r"^predict\.py line 2: "):
        openapi_schema("x = 1\ndef predict(:\n")


def test_a_file_without_a_predictor_is_refused() -> None:
    with pytest.raises(SchemaError, match="no class Predictor with a method predict"):
        openapi_schema("class Other:\n    pass\n")


# ---- writing and comparing


def test_the_schema_is_written_to_the_file_that_the_server_reads(tmp_path: Path) -> None:
    (tmp_path / "predict.py").write_text(source("x: str"))
    assert write_schema(tmp_path, "0.23.1") == tmp_path / SCHEMA_PATH
    written = json.loads((tmp_path / ".cog/openapi_schema.json").read_text())
    assert written == openapi_schema(source("x: str"), cog_version="0.23.1")
    assert [path.name for path in (tmp_path / ".cog").iterdir()] == ["openapi_schema.json"]


def test_schemas_are_compared_by_value_without_the_version_of_cog(tmp_path: Path) -> None:
    text = source("x: float = Input(default=1.0, le=2)")
    (tmp_path / "predict.py").write_text(text)
    theirs = openapi_schema(text, cog_version="0.24.0")
    (tmp_path / "cog.json").write_text(json.dumps(theirs))
    assert compare(tmp_path, tmp_path / "cog.json") == []
    theirs["components"]["schemas"]["Input"]["properties"]["x"] |= {"maximum": 3, "nullable": True}
    (tmp_path / "cog.json").write_text(json.dumps(theirs))
    assert compare(tmp_path, tmp_path / "cog.json") == [
        "components.schemas.Input.properties.x.maximum: ours is 2, Cog's is 3",
        "components.schemas.Input.properties.x.nullable: only Cog's has it",
    ]
    assert list(differences({"a": 1.0, "b": True}, {"a": 1, "b": 1})) == ["b: ours is true, Cog's is 1"]


# ---- the predict.py of this project

JSON_TYPES = {"str": "string", "int": "integer", "float": "number", "bool": "boolean", "Path": "string"}


def test_the_schema_of_predict_py_equals_its_signature() -> None:
    """Cog reads the text of predict.py and Python its signature at run time. Both agree."""
    from predict import Predictor

    parts = openapi_schema((ROOT / "predict.py").read_text())["components"]["schemas"]
    properties, required = parts["Input"]["properties"], parts["Input"]["required"]
    parameters = list(inspect.signature(Predictor.predict).parameters.values())[1:]
    assert list(properties) == [parameter.name for parameter in parameters]
    assert [prop["x-order"] for prop in properties.values()] == list(range(len(parameters)))
    for parameter in parameters:
        name, declared, prop = parameter.name, parameter.default, properties[parameter.name]
        assert isinstance(declared, FieldInfo)
        members = getattr(parameter.annotation, "__args__", (parameter.annotation,))
        nullable = type(None) in members
        schema = parts[name] if declared.choices else prop
        assert schema["type"] == JSON_TYPES[members[0].__name__], name
        assert schema.get("enum") == declared.choices, name
        assert prop.get("nullable", False) == nullable, name
        assert (name in required) == (declared.default is None and not nullable), name
        assert prop.get("default") == declared.default, name
        assert prop["description"] == declared.description, name
        assert (prop.get("minimum"), prop.get("maximum")) == (declared.ge, declared.le), name
        assert prop.get("x-cog-accept") == declared.accept, name
