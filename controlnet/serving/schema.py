"""The OpenAPI document that `cog build` writes, made from predict.py without running it.

`cog build` reads predict.py with its own parser. That parser cannot resolve everything: not a bound given by name, an
imported default or an f-string. It refuses such things or silently drops them. Here each of them is a SchemaError, so
Cog resolves everything in a predict.py that passes. This follows Cog 0.23 (pkg/schema in github.com/replicate/cog).
"""

import ast
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from controlnet.serving.openapi import document

SCHEMA_PATH = Path(".cog/openapi_schema.json")
"""The file that the server reads the document from, relative to its working directory."""

Json = dict[str, Any]

PRIMITIVES: dict[str, Json] = {
    "str": {"type": "string"},
    "int": {"type": "integer"},
    "float": {"type": "number"},
    "bool": {"type": "boolean"},
    "Path": {"type": "string", "format": "uri"},
    "Secret": {"type": "string", "format": "password", "writeOnly": True, "x-cog-secret": True},
    "dict": {"type": "object"},
    "Any": {"type": "object"},
}
UNION_MEMBERS = ("str", "int", "float", "bool", "dict")
CHOICE_TYPES: dict[str, type] = {"str": str, "int": int}

# Cog reads bounds as decimal floats and would drop 4_294 and 0xff. A whole-number default may be written either way.
BOUND = re.compile(r"-?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


class SchemaError(ValueError):
    """predict.py has something that Cog's static parser refuses or drops. The message names the input and the line."""


def openapi_schema(source: str, class_name: str = "Predictor", cog_version: str = "") -> Json:
    """Return the OpenAPI 3.0.2 document for `class_name.predict` in `source`, the text of a predict.py.

    Raises SchemaError for anything that Cog could not resolve.
    """
    return document(*Reader(source).read(class_name), cog_version)


def write_schema(root: Path, cog_version: str) -> Path:
    """Write the document for root/predict.py to root/SCHEMA_PATH, where the server reads it. Returns the path."""
    text = json.dumps(openapi_schema((root / "predict.py").read_text(), cog_version=cog_version), indent=1)
    path = root / SCHEMA_PATH
    path.parent.mkdir(exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}")
    partial.write_text(text)
    partial.replace(path)  # atomic: a server that starts now reads the old or the new document, never half of one
    return path


class Reader:
    """Reads one source text. Keeps its literal module constants, and for errors the input that is being read."""

    def __init__(self, source: str) -> None:
        self.module = ast.parse(source)
        self.lines = source.encode().splitlines(keepends=True)
        self.subject = "predict()"
        self.constants = self._module_constants()

    def read(self, class_name: str) -> tuple[Json, Json, Json]:
        """Return the properties of Input in order, the enumerations that they refer to, and the schema of Output."""
        function = self._predict_method(class_name)
        properties: Json = {}
        enums: Json = {}
        for order, (argument, default) in enumerate(self._parameters(function)):
            self.subject = f"input {argument.arg!r}"
            properties[argument.arg] = self._input(argument, default, order, enums)
        self.subject = "the return type of predict()"
        if function.returns is None:
            self._refuse(function, "is missing; write -> list[Path]")
        return properties, enums, {**self._output(function.returns), "title": "Output"}

    def _refuse(self, node: ast.AST, problem: str) -> NoReturn:
        raise SchemaError(f"predict.py line {getattr(node, 'lineno', 1)}: {self.subject}: {problem}")

    def _text(self, node: ast.AST) -> str:
        """The source of a node; "" if it has no place in the source. (ast.get_source_segment takes a second in all.)"""
        first, last = getattr(node, "lineno", 0) - 1, (getattr(node, "end_lineno", None) or 0) - 1
        if first < 0 or last < 0:
            return ""
        lines = self.lines[first : last + 1]
        lines[-1] = lines[-1][: getattr(node, "end_col_offset", None)]
        lines[0] = lines[0][getattr(node, "col_offset", 0) :]
        return b"".join(lines).decode()

    # ---- finding predict() and constants

    def _module_constants(self) -> dict[str, Any]:
        constants: dict[str, Any] = {}
        for statement in self.module.body:
            if isinstance(statement, ast.Assign) and len(statement.targets) == 1:
                target, value = statement.targets[0], statement.value
            elif isinstance(statement, ast.AnnAssign) and statement.value is not None:
                target, value = statement.target, statement.value
            else:
                continue
            if isinstance(target, ast.Name) and self._text(statement).endswith(self._text(value)):
                try:
                    constants[target.id] = self._literal(value)
                except SchemaError:
                    constants.pop(target.id, None)  # not a literal: an input that refers to it is refused
        return constants

    def _predict_method(self, class_name: str) -> ast.FunctionDef:
        for statement in self.module.body:
            if isinstance(statement, ast.ClassDef) and statement.name == class_name:
                for member in statement.body:
                    if isinstance(member, ast.FunctionDef) and member.name == "predict":
                        return member
        raise SchemaError(f"predict.py has no class {class_name} with a method predict() for Cog to run.")

    def _parameters(self, function: ast.FunctionDef) -> list[tuple[ast.arg, ast.expr | None]]:
        names = function.args
        if names.vararg or names.kwarg or names.kwonlyargs or names.posonlyargs:
            self._refuse(function, "takes plain parameters only, no *, **, or /")
        if not names.args or names.args[0].arg != "self":
            self._refuse(function, "needs self as its first parameter")
        defaults: list[ast.expr | None] = [None] * (len(names.args) - len(names.defaults)) + list(names.defaults)
        return list(zip(names.args, defaults, strict=True))[1:]

    # ---- one input

    def _input(self, argument: ast.arg, default: ast.expr | None, order: int, enums: Json) -> Json:
        if argument.annotation is None:
            self._refuse(argument, "has no type; Cog would leave it out")
        type_schema, primitive, nullable = self._input_type(argument.annotation)
        fields = self._input_fields(default)
        prop: Json = {"x-order": order}
        choices = fields.pop("choices", None)
        if choices is None:
            title = " ".join(word[:1].upper() + word[1:] for word in argument.arg.split("_"))
            prop |= {"title": title} | type_schema
        else:
            self._check_choices(default or argument, choices, primitive)
            prop["allOf"] = [{"$ref": f"#/components/schemas/{argument.arg}"}]
            enums[argument.arg] = {
                "title": argument.arg,
                "description": "An enumeration.",
                "enum": choices,
                "type": PRIMITIVES[primitive]["type"],
            }
        if "default" in fields and fields["default"] is None and not nullable and primitive != "Secret":
            self._refuse(default or argument, "a default of None makes it required; write Optional[...] as its type")
        if nullable or ("default" in fields and fields["default"] is None):
            prop["nullable"] = True
        return prop | fields

    def _input_fields(self, default: ast.expr | None) -> Json:
        if default is None:
            return {}
        if not (isinstance(default, ast.Call) and isinstance(default.func, ast.Name) and default.func.id == "Input"):
            return {"default": self._constant(default)}
        if default.args:
            self._refuse(default, "Input() is read by keyword only; write default=...")
        fields: Json = {}
        for keyword in default.keywords:
            if keyword.arg not in INPUT_KEYWORDS:
                self._refuse(keyword.value, f"Input() has no {keyword.arg or '**'} that Cog can read")
            name, read = INPUT_KEYWORDS[keyword.arg]
            if self._text(keyword).split("=", 1)[1].strip() != self._text(keyword.value):
                self._refuse(keyword.value, f"{keyword.arg} is in brackets, which Cog does not read")
            value = read(self, keyword.value)
            if name != "deprecated" or value:
                fields[name] = value
        return fields

    def _check_choices(self, node: ast.AST, choices: list[Any], primitive: str) -> None:
        if not choices:
            self._refuse(node, "choices are empty; Cog would drop them")
        if primitive not in CHOICE_TYPES or any(type(choice) is not CHOICE_TYPES[primitive] for choice in choices):
            self._refuse(node, f"choices must be strings for a str, whole numbers for an int; its type is {primitive}")

    # ---- types

    def _input_type(self, node: ast.expr) -> tuple[Json, str, bool]:
        """Return the JSON schema, the primitive's name ("" for a list or a union), and whether it may be null."""
        members = self._union_members(node)
        nullable = any(isinstance(member, ast.Constant) and member.value is None for member in members)
        members = [member for member in members if not (isinstance(member, ast.Constant) and member.value is None)]
        if len(members) > 1:
            if not all(isinstance(member, ast.Name) and member.id in UNION_MEMBERS for member in members):
                self._refuse(node, f"a union may hold {', '.join(UNION_MEMBERS)} only, not {self._text(node)}")
            extra = {"nullable": True} if nullable else {}
            return {"anyOf": [dict(PRIMITIVES[m.id]) | extra for m in members if isinstance(m, ast.Name)]}, "", nullable
        if members and isinstance(members[0], ast.Name) and members[0].id in PRIMITIVES:
            return dict(PRIMITIVES[members[0].id]), members[0].id, nullable
        item = self._argument_of(members[0], ("list", "List")) if members else None
        if nullable or not (isinstance(item, ast.Name) and item.id in PRIMITIVES):
            self._refuse(node, f"{self._text(node)} is not a type that Cog takes as an input")
        return {"type": "array", "items": dict(PRIMITIVES[item.id])}, "", False

    def _union_members(self, node: ast.expr) -> list[ast.expr]:
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
            return self._union_members(node.left) + self._union_members(node.right)
        inner = self._argument_of(node, ("Optional",))
        if inner is not None:
            return [*self._union_members(inner), ast.Constant(None)]
        inner = self._argument_of(node, ("Union",))
        if isinstance(inner, ast.Tuple):
            return [member for element in inner.elts for member in self._union_members(element)]
        return [node]

    def _argument_of(self, node: ast.expr, generics: tuple[str, ...]) -> ast.expr | None:
        if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name) and node.value.id in generics:
            return node.slice
        return None

    def _output(self, node: ast.expr) -> Json:
        if isinstance(node, ast.Name) and node.id in PRIMITIVES:
            return dict(PRIMITIVES[node.id])
        if (item := self._argument_of(node, ("list", "List"))) is not None:
            return {"type": "array", "items": self._output(item)}
        if (item := self._argument_of(node, ("Iterator", "AsyncIterator"))) is not None:
            return {"type": "array", "items": self._output(item), "x-cog-array-type": "iterator"}
        self._refuse(node, f"{self._text(node)} is not known here; use list[Path], Path or a plain type")

    # ---- values

    def _literal(self, node: ast.expr) -> Any:
        """Evaluate a literal, if Cog reads the same value from its text as Python does."""
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            return self._string_literal(node)
        if isinstance(node, (ast.List, ast.Tuple, ast.Set)):
            return [self._literal(element) for element in node.elts]
        if isinstance(node, ast.Dict):
            if None in node.keys:
                self._refuse(node, "a ** inside a literal is not resolved")
            keys = [self._literal(key) for key in node.keys if key is not None]
            return dict(zip(keys, map(self._literal, node.values), strict=True))
        if isinstance(node, ast.Constant) and (node.value is None or isinstance(node.value, bool)):
            return node.value
        return self._number_literal(node)

    def _string_literal(self, node: ast.expr) -> str:
        """Evaluate one literal without escapes or parts, because Cog takes the characters between the quotes."""
        text = self._text(node)
        match = re.fullmatch(r"""\"{3}(.*)\"{3}|'{3}(.*)'{3}|r?"(.*)"|r?'(.*)'""", text, re.DOTALL)
        inner = next((group for group in match.groups() if group is not None), None) if match else None
        if not isinstance(node, ast.Constant) or not isinstance(node.value, str) or inner != node.value:
            self._refuse(node, "write one literal string: no f-string, no concatenation, no backslash")
        return node.value

    def _number_literal(self, node: ast.expr) -> int | float:
        text = self._text(node)
        try:
            value = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            value = None
        if type(value) is int and " " not in text and -(2**63) <= value < 2**63:
            return value
        if type(value) is float and BOUND.fullmatch(text):
            return int(value) if value.is_integer() else value
        self._refuse(node, f"{text} is not a literal; Cog would not resolve it")

    def _constant(self, node: ast.expr) -> Any:
        if not isinstance(node, ast.Name):
            return self._literal(node)
        if node.id not in self.constants:
            self._refuse(node, f"{node.id} is not a literal constant of this file")
        return self.constants[node.id]

    def _description(self, node: ast.expr) -> str:
        value = self._constant(node) if isinstance(node, ast.Name) else self._string_literal(node)
        if not isinstance(value, str):
            self._refuse(node, "its description is not a string")
        return value

    def _bound(self, node: ast.expr) -> int | float:
        if not BOUND.fullmatch(self._text(node)):
            self._refuse(node, f"the bound {self._text(node)} is not a plain decimal number; Cog would drop it")
        return self._number_literal(node)

    def _flag(self, node: ast.expr) -> bool:
        if not (isinstance(node, ast.Constant) and isinstance(node.value, bool)):
            self._refuse(node, "deprecated must be True or False")
        return node.value

    def _choices(self, node: ast.expr) -> list[Any]:
        if isinstance(node, ast.List):
            return self._literal(node)
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
            return self._choices(node.left) + self._choices(node.right)
        if isinstance(node, ast.Name) and isinstance(value := self._constant(node), list):
            return value
        match = re.fullmatch(r"list\((\w+)\.(keys|values)\(\)\)", self._text(node))
        if match and isinstance(table := self.constants.get(match[1]), dict):
            return list(table) if match[2] == "keys" else list(table.values())
        self._refuse(node, f"Cog cannot resolve choices={self._text(node)}; name a literal list of this file")


INPUT_KEYWORDS: dict[str, tuple[str, Callable[[Reader, ast.expr], Any]]] = {
    "default": ("default", Reader._constant),
    "description": ("description", Reader._description),
    "ge": ("minimum", Reader._bound),
    "le": ("maximum", Reader._bound),
    "min_length": ("minLength", Reader._bound),
    "max_length": ("maxLength", Reader._bound),
    "regex": ("pattern", Reader._string_literal),
    "choices": ("choices", Reader._choices),
    "deprecated": ("deprecated", Reader._flag),
    "accept": ("x-cog-accept", Reader._string_literal),
}
"""Each keyword of Input() that Cog reads, with its name in the document and the function that reads its value."""
