"""The OpenAPI document that `cog build` writes, made from predict.py without running it.

`cog build` reads predict.py with a parser of its own, which refuses or silently drops what it cannot resolve: a bound
given by name, an imported default, an f-string, a comment in a list. This one reads only what our predictors use, in
the forms in which Cog and Python read the same value, and refuses everything else. So Cog resolves everything in a
predict.py that passes. This follows Cog 0.23 (pkg/schema in github.com/replicate/cog).
"""

import ast
import json
import os
import re
from pathlib import Path
from typing import Any, NoReturn

from controlnet.serving.openapi import Json, document

PREDICTOR = "predict.py:Predictor"
"""A file and the class in it that Cog runs, as cog.yaml names them."""
SCHEMA_PATH = Path(".cog/openapi_schema.json")
"""The file that the server reads the document from, relative to its working directory."""
TYPES: dict[str, Json] = {
    "str": {"type": "string"},
    "int": {"type": "integer"},
    "float": {"type": "number"},
    "bool": {"type": "boolean"},
    "Path": {"type": "string", "format": "uri"},
}
OUTPUTS: dict[str, Json] = {"list[Path]": {"type": "array", "items": TYPES["Path"]}, "Path": TYPES["Path"]}
"""What predict() may return."""
KEYWORDS = {
    "default": "default",
    "description": "description",
    "ge": "minimum",
    "le": "maximum",
    "choices": "choices",
    "accept": "x-cog-accept",
}
"""The keywords of Input() that are read, with their names in the document."""
PLAIN = {
    str: r"""\"[^"\\]*\"""",
    int: r"-?\d+",
    float: r"-?\d+\.\d+",
    bool: "True|False",
    type(None): "None",
}
"""How a value of each type is written so that Cog reads the same one: no escapes, 4_096, 0xff or "one " "two"."""


class SchemaError(ValueError):
    """predict.py has something that Cog's parser, or this one, does not read. The message names the input and the
    line."""


def openapi_schema(source: str, class_name: str = "Predictor", cog_version: str = "") -> Json:
    """The OpenAPI 3.0.2 document for `class_name.predict` in `source`, the text of a predict.py.

    Raises SchemaError for anything that this reader does not know.
    """
    return document(*_Reader(source).read(class_name), cog_version)


def schema_of(root: Path, target: str = PREDICTOR, cog_version: str = "") -> Json:
    """openapi_schema() of a predictor in the folder `root`, such as PREDICTOR."""
    file, _, class_name = target.partition(":")
    return openapi_schema((root / file).read_text("utf-8"), class_name, cog_version)


def write_schema(root: Path, cog_version: str, target: str = PREDICTOR) -> Path:
    """Write the document of a predictor to root/SCHEMA_PATH, where the server reads it. Returns the path."""
    text = json.dumps(schema_of(root, target, cog_version), indent=1)
    path = root / SCHEMA_PATH
    path.parent.mkdir(exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}")
    partial.write_text(text)
    partial.replace(path)  # atomic: a server that starts now reads the old or the new document, never half of one
    return path


class _Reader:
    """Reads the signature of predict() in one source text."""

    def __init__(self, source: str) -> None:
        self.subject = "predict()"
        """What is being read, for errors."""
        try:
            self.module = ast.parse(source)
        except SyntaxError as error:
            raise SchemaError(f"predict.py line {error.lineno}: {error.msg}") from None
        self.lines = source.encode().splitlines(keepends=True)
        self.lists = {
            statement.targets[0].id: statement.value
            for statement in self.module.body
            if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name)
        }
        """What the names of the module stand for."""
        self.shared = {
            f"{holder.name}.{statement.targets[0].id}": statement.value
            for holder in self.module.body
            if isinstance(holder, ast.ClassDef)
            for statement in holder.body
            if isinstance(statement, ast.Assign)
            and len(statement.targets) == 1
            and isinstance(statement.targets[0], ast.Name)
        }
        """What the attributes of its classes stand for. Cog, too, reads those that are an Input()."""

    def refuse(self, node: ast.AST, problem: str) -> NoReturn:
        raise SchemaError(f"predict.py line {getattr(node, 'lineno', 1)}: {self.subject}: {problem}")

    def text(self, node: ast.expr) -> str:
        """The source of a node. (ast.get_source_segment splits the whole text into lines each time.)"""
        lines = self.lines[node.lineno - 1 : node.end_lineno]
        lines[-1] = lines[-1][: node.end_col_offset]
        return b"".join([lines[0][node.col_offset :], *lines[1:]]).decode()

    def read(self, class_name: str) -> tuple[Json, Json, Json]:
        """The properties of Input in order, the enumerations that they refer to, and the schema of Output."""
        function = self._predict_method(class_name)
        given, defaults = function.args, function.args.defaults
        if given.vararg or given.kwarg or given.kwonlyargs or given.posonlyargs:
            self.refuse(function, "expected plain parameters, without *, ** or /")
        if (
            not given.args
            or given.args[0].arg != "self"
            or given.args[0].annotation
            or len(defaults) == len(given.args)
        ):
            self.refuse(function, "expected self first, without a type or a default")
        inputs, enums = given.args[1:], {}
        padded = [None] * (len(inputs) - len(defaults)) + list(defaults)
        properties: Json = {}
        for order, (argument, default) in enumerate(zip(inputs, padded, strict=True)):
            self.subject = f"input {argument.arg!r}"
            properties[argument.arg] = {"x-order": order} | self._input(argument, default, enums)
        self.subject = "the return type of predict()"
        returned = function.returns and self.text(function.returns)
        if returned not in OUTPUTS:
            self.refuse(function, f"expected {' or '.join(OUTPUTS)}")
        return properties, enums, {"title": "Output"} | OUTPUTS[returned]

    def _predict_method(self, class_name: str) -> ast.FunctionDef:
        """The one method that Cog runs. It takes the first class, prefers run() to predict(), and looks at bases."""
        classes = [node for node in self.module.body if isinstance(node, ast.ClassDef) and node.name == class_name]
        functions = (ast.FunctionDef, ast.AsyncFunctionDef)
        methods = [node for each in classes for node in each.body if isinstance(node, functions)]
        found = [node for node in methods if node.name in ("run", "predict")]
        bases = [self.text(base) for each in classes for base in each.bases]
        if len(classes) != 1 or bases != ["BasePredictor"] or len(found) != 1 or type(found[0]) is not ast.FunctionDef:
            self.refuse(
                (found or classes or [self.module])[-1],
                f"expected one class {class_name}(BasePredictor) with one method predict() and no run()",
            )
        return found[0]

    def _input(self, argument: ast.arg, default: ast.expr | None, enums: Json) -> Json:
        declared = "" if argument.annotation is None else self.text(argument.annotation)
        plain = declared.removeprefix("Optional[").removesuffix("]") if declared.startswith("Optional[") else declared
        if plain not in TYPES:
            self.refuse(
                argument, f"expected {', '.join(TYPES)} or Optional of one of these, got {declared or 'no type'}"
            )
        fields = self._fields(default)
        if "default" in fields and fields["default"] is None and plain == declared:
            self.refuse(argument, "a default of None makes it required: write Optional[...] as its type")
        nullable = {} if plain == declared else {"nullable": True}
        choices = fields.pop("choices", None)
        if choices is None:
            title = " ".join(word[:1].upper() + word[1:] for word in argument.arg.split("_"))
            return nullable | {"title": title} | TYPES[plain] | fields
        wanted = {"str": str, "int": int}.get(plain)
        if not choices or any(type(choice) is not wanted for choice in choices):
            self.refuse(argument, "expected choices that are strings for a str or whole numbers for an int")
        enums[argument.arg] = {"title": argument.arg, "description": "An enumeration.", "enum": choices} | TYPES[plain]
        return nullable | {"allOf": [{"$ref": f"#/components/schemas/{argument.arg}"}]} | fields

    def _fields(self, default: ast.expr | None) -> Json:
        """The values of Input()'s keywords, by their names in the document."""
        if default is None:
            return {}
        if isinstance(default, ast.Attribute) and isinstance(shared := self.shared.get(self.text(default)), ast.Call):
            default = shared
        if not isinstance(default, ast.Call):
            return {"default": self._literal(default)}
        if self.text(default.func) != "Input" or default.args:
            self.refuse(default, "expected a literal or Input() with keywords")
        fields: Json = {}
        for keyword in default.keywords:
            if keyword.arg not in KEYWORDS:
                self.refuse(keyword.value, f"expected one of {', '.join(KEYWORDS)}, got {keyword.arg or '**'}")
            is_list = keyword.arg == "choices"
            fields[KEYWORDS[keyword.arg]] = self._list(keyword.value) if is_list else self._literal(keyword.value)
        return fields

    def _literal(self, node: ast.expr) -> Any:
        value = self._constant(node)
        text, before = self.text(node), self.lines[node.lineno - 1][: node.col_offset].rstrip()
        if type(value) not in PLAIN or not re.fullmatch(PLAIN[type(value)], text, re.DOTALL) or before.endswith(b"("):
            self.refuse(node, f"expected one literal, without escapes or brackets, got {text}")
        if type(value) is int and not -(2**63) <= value < 2**63:
            self.refuse(node, f"expected a number of 64 bits, got {text}")
        return int(value) if type(value) is float and value.is_integer() else value

    def _constant(self, node: ast.expr) -> Any:
        try:
            return ast.literal_eval(node)
        except ValueError:
            self.refuse(node, f"expected a literal, got {self.text(node)}")

    def _list(self, node: ast.expr) -> list[Any]:
        """A list of literals, the name of one in this module, or a sum of two of these."""
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
            return self._list(node.left) + self._list(node.right)
        named = self.lists.get(node.id) if isinstance(node, ast.Name) else node
        if not isinstance(named, ast.List):
            self.refuse(node, f"expected a list, or the name of one in this file, got {self.text(node)}")
        rest = self.text(named)
        for element in named.elts:
            rest = rest.replace(self.text(element), "", 1)
        if not re.fullmatch(r"\[[\s,]*\]", rest):
            self.refuse(node, "expected a list without comments and brackets, which Cog takes for elements")
        return [self._literal(element) for element in named.elts]
