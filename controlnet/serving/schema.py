"""The OpenAPI document that `cog build` writes, made from predict.py without running it.

`cog build` reads predict.py with its own parser. That parser cannot resolve everything: not a bound given by name, an
imported default or an f-string. It refuses such things or silently drops them. Here each of them is a SchemaError, so
Cog resolves everything in a predict.py that passes. This follows Cog 0.23 (pkg/schema in github.com/replicate/cog).
"""

import ast
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from controlnet.serving.openapi import document
from controlnet.serving.schema_source import SchemaError, Source
from controlnet.serving.schema_types import PRIMITIVES, InputType, Json, input_type, output_type
from controlnet.serving.schema_values import Values

SCHEMA_PATH = Path(".cog/openapi_schema.json")
"""The file that the server reads the document from, relative to its working directory."""

CHOICE_TYPES: dict[str, type] = {"str": str, "int": int}


def openapi_schema(source: str, class_name: str = "Predictor", cog_version: str = "") -> Json:
    """Return the OpenAPI 3.0.2 document for `class_name.predict` in `source`, the text of a predict.py.

    Raises SchemaError for anything that Cog could not resolve.
    """
    return document(*Reader(Source(source)).read(class_name), cog_version)


def write_schema(root: Path, cog_version: str, source: str = "predict.py") -> Path:
    """Write the document for root/source to root/SCHEMA_PATH, where the server reads it. Returns the path."""
    text = json.dumps(openapi_schema((root / source).read_text("utf-8"), cog_version=cog_version), indent=1)
    path = root / SCHEMA_PATH
    path.parent.mkdir(exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}")
    partial.write_text(text)
    partial.replace(path)  # atomic: a server that starts now reads the old or the new document, never half of one
    return path


class Reader:
    """Reads the signature of predict() in one source text."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._values = Values(source)

    def read(self, class_name: str) -> tuple[Json, Json, Json]:
        """Return the properties of Input in order, the enumerations that they refer to, and the schema of Output."""
        function = self._predict_method(class_name)
        properties: Json = {}
        enums: Json = {}
        for order, (argument, default) in enumerate(self._parameters(function)):
            self._source.subject = f"input {argument.arg!r}"
            properties[argument.arg] = self._input(argument, default, order, enums)
        self._source.subject = "the return type of predict()"
        if function.returns is None:
            self._source.refuse(function, "is missing; write -> list[Path]")
        return properties, enums, output_type(self._source, function.returns) | {"title": "Output"}

    def _predict_method(self, class_name: str) -> ast.FunctionDef:
        """Find the one method that Cog runs. It prefers run() to predict(), also one that a base class defines."""
        classes = [node for node in self._source.module.body if isinstance(node, ast.ClassDef)]
        found = [node for node in classes if node.name == class_name]
        if len(found) > 1:
            self._source.refuse(found[1], f"there is a second class {class_name}; Cog reads the first")
        for base in found[0].bases if found else []:
            if self._source.text(base) not in ("BasePredictor", "cog.BasePredictor"):
                self._source.refuse(base, f"{class_name} must have no base class but BasePredictor, for Cog reads both")
        methods = [
            member
            for member in (found[0].body if found else [])
            if isinstance(member, (ast.FunctionDef, ast.AsyncFunctionDef)) and member.name in ("run", "predict")
        ]
        for member in methods:
            if member.name == "run":
                self._source.refuse(member, "there is a method run() too, which Cog reads in its place")
        if len(methods) > 1:
            self._source.refuse(methods[1], "it is defined a second time")
        if not methods or not isinstance(methods[0], ast.FunctionDef):
            raise SchemaError(f"predict.py has no class {class_name} with a method predict() for Cog to run.")
        return methods[0]

    def _parameters(self, function: ast.FunctionDef) -> list[tuple[ast.arg, ast.expr | None]]:
        names = function.args
        if names.vararg or names.kwarg or names.kwonlyargs or names.posonlyargs:
            self._source.refuse(function, "takes plain parameters only, no *, **, or /")
        if not names.args or names.args[0].arg != "self":
            self._source.refuse(function, "needs self as its first parameter")
        if names.args[0].annotation or len(names.defaults) == len(names.args):
            self._source.refuse(names.args[0], "takes self without a type or default; Cog would make it an input")
        defaults: list[ast.expr | None] = [None] * (len(names.args) - len(names.defaults)) + list(names.defaults)
        return list(zip(names.args, defaults, strict=True))[1:]

    # ---- one input

    def _input(self, argument: ast.arg, default: ast.expr | None, order: int, enums: Json) -> Json:
        if argument.annotation is None:
            self._source.refuse(argument, "has no type; Cog would leave it out")
        declared = input_type(self._source, argument.annotation)
        fields = self._input_fields(default)
        self._check_fields(default or argument, fields, declared)
        nullable = declared.nullable or ("default" in fields and fields["default"] is None)
        prop: Json = {"x-order": order} | ({"nullable": True} if nullable else {})
        choices = fields.pop("choices", None)
        if choices is None:
            title = " ".join(word[:1].upper() + word[1:] for word in argument.arg.split("_"))
            return prop | {"title": title} | declared.schema | fields
        enums[argument.arg] = {
            "title": argument.arg,
            "description": "An enumeration.",
            "enum": choices,
            "type": PRIMITIVES[declared.primitive]["type"],
        }
        return prop | {"allOf": [{"$ref": f"#/components/schemas/{argument.arg}"}]} | fields

    def _input_fields(self, default: ast.expr | None) -> Json:
        """The values of Input()'s keywords, by their names in the document."""
        if default is None:
            return {}
        if not (isinstance(default, ast.Call) and isinstance(default.func, ast.Name) and default.func.id == "Input"):
            return {"default": self._values.constant(default)}
        if default.args:
            self._source.refuse(default, "Input() is read by keyword only; write default=...")
        fields: Json = {}
        for keyword in default.keywords:
            if keyword.arg not in INPUT_KEYWORDS:
                self._source.refuse(keyword.value, f"Input() has no {keyword.arg or '**'} that Cog can read")
            name, read = INPUT_KEYWORDS[keyword.arg]
            if self._source.text(keyword).split("=", 1)[1].strip() != self._source.text(keyword.value):
                self._source.refuse(keyword.value, f"{keyword.arg} is in brackets, which Cog does not read")
            value = read(self._values, keyword.value)
            if name != "deprecated" or value:
                fields[name] = value
        return fields

    def _check_fields(self, node: ast.AST, fields: Json, declared: InputType) -> None:
        """Check that an input of this type may have these fields."""
        if declared.form == "union" and (bounds := fields.keys() & CONSTRAINTS):
            self._source.refuse(node, f"a union takes no {', '.join(sorted(bounds))}; Cog refuses it")
        if "x-cog-accept" in fields and declared.primitive != "Path":
            self._source.refuse(node, "accept is for inputs of type Path")
        if "choices" in fields:
            self._check_choices(node, fields["choices"], declared)
        empty = "default" in fields and fields["default"] is None
        if empty and not declared.nullable and declared.primitive != "Secret":
            self._source.refuse(node, "a default of None makes it required; write Optional[...] as its type")

    def _check_choices(self, node: ast.AST, choices: list[Any], declared: InputType) -> None:
        if not choices:
            self._source.refuse(node, "choices are empty; Cog would drop them")
        wanted = CHOICE_TYPES.get(declared.primitive) if declared.form == "single" else None
        if wanted is None or any(type(choice) is not wanted for choice in choices):
            name = declared.primitive if declared.form == "single" else declared.form
            self._source.refuse(
                node, f"choices must be strings for a str, whole numbers for an int; its type is {name}"
            )


INPUT_KEYWORDS: dict[str, tuple[str, Callable[[Values, ast.expr], Any]]] = {
    "default": ("default", Values.constant),
    "description": ("description", Values.description),
    "ge": ("minimum", Values.bound),
    "le": ("maximum", Values.bound),
    "min_length": ("minLength", Values.bound),
    "max_length": ("maxLength", Values.bound),
    "regex": ("pattern", Values.string),
    "choices": ("choices", Values.choices),
    "deprecated": ("deprecated", Values.flag),
    "accept": ("x-cog-accept", Values.string),
}
"""Each keyword of Input() that Cog reads, with its name in the document and the function that reads its value."""
CONSTRAINTS = {"minimum", "maximum", "minLength", "maxLength", "pattern", "choices"}
"""The fields that a union cannot have."""
