"""The schema is the one that `cog build` writes."""

import inspect
import json
from pathlib import Path
from typing import Any

import pytest
from cog.input import FieldInfo
from support.predict_sources import schemas, source

from controlnet.serving.schema import SCHEMA_PATH, SchemaError, openapi_schema, write_schema
from controlnet.serving.schema_cli import compare, differences
from controlnet.serving.server import ROOT


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


def test_one_file_is_no_list() -> None:
    assert schemas("x: int = 1", "Path")["Output"] == {"format": "uri", "title": "Output", "type": "string"}


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
        ("int = 5", {"type": "integer", "default": 5}),
        ("float = Input(default=1.0)", {"type": "number", "default": 1}),
        ("float = Input(default=-0.5)", {"type": "number", "default": -0.5}),
        ("bool = Input(default=False)", {"type": "boolean", "default": False}),
        ("float = Input(ge=0, le=1.5)", {"type": "number", "minimum": 0, "maximum": 1.5}),
        ("int = Input(le=4294967295)", {"type": "integer", "maximum": 4294967295}),
        ('Path = Input(accept="image/*")', {"type": "string", "format": "uri", "x-cog-accept": "image/*"}),
        ("Optional[int] = Input(default=None)", {"type": "integer", "default": None, "nullable": True}),
        ("Optional[str]", {"type": "string", "nullable": True}),
    ],
)
def test_schema_of_an_input(declaration: str, expected: dict[str, Any]) -> None:
    got = schemas(f"x: {declaration}")["Input"]["properties"]["x"]
    assert got == {"title": "X", "x-order": 0} | expected


def test_the_title_of_an_input_has_separate_words() -> None:
    properties = schemas("image_2: Path, num_outputs: int")["Input"]["properties"]
    assert [prop["title"] for prop in properties.values()] == ["Image 2", "Num Outputs"]


def test_inputs_without_a_default_are_required_unless_optional() -> None:
    assert schemas("a: str, b: Optional[str], d: int = 1")["Input"]["required"] == ["a"]


@pytest.mark.parametrize(
    ("choices", "values"),
    [
        ("NAMES", ["a", "b"]),
        ('["x", "y"]', ["x", "y"]),
        ("NAMES + MORE", ["a", "b", "c", "d"]),
        ('["none"] + NAMES', ["none", "a", "b"]),
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


SHARED = """
class Inputs:
    count = Input(default=1, ge=1, description="How many.")
    kind = Input(default="a", choices=["a", "b"])
"""


def test_inputs_may_be_shared_by_predictors_of_one_file() -> None:
    """As Cog reads them: a default that is an attribute of a class in the same file, whose value is an Input()."""
    count, kind = (line.partition(" = ")[2] for line in SHARED.splitlines()[2:])
    shared = "count: int = Inputs.count, kind: str = Inputs.kind"
    assert openapi_schema(SHARED + source(shared)) == openapi_schema(
        source(f"count: int = {count}, kind: str = {kind}")
    )
    for name in ("Inputs.other", "Others.count", "Inputs.count.default"):
        with pytest.raises(SchemaError, match=rf"input 'count': expected a literal, got {name}$"):
            openapi_schema(SHARED + source(f"count: int = {name}"))
