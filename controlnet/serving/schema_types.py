"""The JSON schemas of the types that a predict.py may use for inputs and for its output."""

import ast
from dataclasses import dataclass, replace
from typing import Any

from controlnet.serving.schema_source import Source

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


@dataclass(frozen=True)
class InputType:
    """The type of an input."""

    schema: Json
    primitive: str
    """The name of the primitive, of each element for a list, "" for a union."""
    form: str = "single"
    """ "single", "list" or "union"."""
    nullable: bool = False


def input_type(source: Source, node: ast.expr) -> InputType:
    """Return the type that an annotation names. Raises SchemaError if Cog does not take it as an input."""
    if isinstance(node, ast.Name) and node.id in PRIMITIVES:
        return InputType(dict(PRIMITIVES[node.id]), node.id)
    if (inner := _argument(node, ("Optional",))) is not None:
        return _optional(input_type(source, inner))
    if isinstance(inner := _argument(node, ("Union",)), ast.Tuple):
        return _union(source, node, inner.elts)
    if isinstance(node, ast.BinOp):
        return _union(source, node, _operands(node))
    item = _argument(node, ("list", "List"))
    if not (isinstance(item, ast.Name) and item.id in PRIMITIVES):
        source.refuse(node, f"{source.text(node)} is not a type that Cog takes as an input")
    return InputType({"type": "array", "items": dict(PRIMITIVES[item.id])}, item.id, "list")


def _optional(inner: InputType) -> InputType:
    if inner.form == "union":  # Cog marks each member too
        members = [member | {"nullable": True} for member in inner.schema["anyOf"]]
        return replace(inner, schema={"anyOf": members}, nullable=True)
    return replace(inner, nullable=True)


def _union(source: Source, node: ast.expr, members: list[ast.expr]) -> InputType:
    """A union, or the single type of a union with None. Cog refuses unions and Optional inside a larger union."""
    others = [member for member in members if not (isinstance(member, ast.Constant) and member.value is None)]
    if len(others) == 1 and not isinstance(others[0], ast.BinOp):
        only = input_type(source, others[0])
        return _optional(only) if len(members) > 1 else only
    names = [member.id for member in others if isinstance(member, ast.Name) and member.id in UNION_MEMBERS]
    if not others or len(names) < len(others):
        source.refuse(node, f"a union may hold {', '.join(UNION_MEMBERS)} only, not {source.text(node)}")
    union = InputType({"anyOf": [dict(PRIMITIVES[name]) for name in names]}, "", "union")
    return _optional(union) if len(members) > len(others) else union


def _operands(node: ast.expr) -> list[ast.expr]:
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        return _operands(node.left) + _operands(node.right)
    return [node]


def _argument(node: ast.expr, generics: tuple[str, ...]) -> ast.expr | None:
    if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name) and node.value.id in generics:
        return node.slice
    return None


def output_type(source: Source, node: ast.expr) -> Json:
    """Return the schema of what predict() returns. Raises SchemaError for a type that this project does not use."""
    if isinstance(node, ast.Name) and node.id in PRIMITIVES:
        return dict(PRIMITIVES[node.id])
    if (item := _argument(node, ("list", "List"))) is not None:
        return {"type": "array", "items": output_type(source, item)}
    if (item := _argument(node, ("Iterator", "AsyncIterator"))) is not None:
        return {"type": "array", "items": output_type(source, item), "x-cog-array-type": "iterator"}
    source.refuse(node, f"{source.text(node)} is not known here; use list[Path], Path or a plain type")
