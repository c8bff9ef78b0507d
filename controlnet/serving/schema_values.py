"""Values in a predict.py as Cog's static parser reads them: literals, constants of the file, bounds and choices."""

import ast
import re
from typing import Any

from controlnet.serving.schema_source import SchemaError, Source

# Cog reads bounds as decimal floats and would drop 4_294 and 0xff. A whole-number default may be written either way.
BOUND = re.compile(r"-?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


class Values:
    """Evaluates expressions of one source text. Each method raises SchemaError if Cog would not resolve the same value.

    Keeps the literal constants of the module, by name.
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        self._constants = self._module_constants()

    def _module_constants(self) -> dict[str, Any]:
        constants: dict[str, Any] = {}
        for statement in self._source.module.body:
            if isinstance(statement, ast.Assign) and len(statement.targets) == 1:
                target, value = statement.targets[0], statement.value
            elif isinstance(statement, ast.AnnAssign) and statement.value is not None:
                target, value = statement.target, statement.value
            else:
                continue
            if isinstance(target, ast.Name) and self._source.text(statement).endswith(self._source.text(value)):
                try:
                    constants[target.id] = self.literal(value)
                except SchemaError:
                    constants.pop(target.id, None)  # not a literal: an input that refers to it is refused
        return constants

    def literal(self, node: ast.expr) -> Any:
        """Evaluate a literal, if Cog reads the same value from its text as Python does."""
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            return self.string(node)
        if isinstance(node, (ast.List, ast.Tuple)):
            self._check_elements(node, node.elts, "[(", "])")
            return [self.literal(element) for element in node.elts]
        if isinstance(node, ast.Dict):
            return self._dictionary(node)
        if isinstance(node, ast.Set):
            self._source.refuse(node, f"{self._source.text(node)} is a set, which has no order; write a list")
        if isinstance(node, ast.Constant) and (node.value is None or isinstance(node.value, bool)):
            return node.value
        return self._number(node)

    def _dictionary(self, node: ast.Dict) -> dict[Any, Any]:
        keys = [key for key in node.keys if key is not None]
        if len(keys) < len(node.keys):
            self._source.refuse(node, "a ** inside a literal is not resolved")
        self._check_elements(node, [part for pair in zip(keys, node.values, strict=True) for part in pair], "{", "}")
        return dict(zip(map(self.literal, keys), map(self.literal, node.values), strict=True))

    def _check_elements(self, node: ast.expr, elements: list[ast.expr], opening: str, closing: str) -> None:
        """Cog takes a comment in a list for an element, and does not read an element in brackets."""
        gaps = "".join(self._source.between(node, elements))
        if not re.fullmatch(rf"[{re.escape(opening)}][\s,:]*[{re.escape(closing)}]", gaps):
            self._source.refuse(node, "Cog cannot read a literal that has a comment, or an element in brackets, in it")

    def string(self, node: ast.expr) -> str:
        """Evaluate one literal without escapes or parts, because Cog takes the characters between the quotes."""
        text = self._source.text(node)
        match = re.fullmatch(r"""\"{3}(.*)\"{3}|'{3}(.*)'{3}|r?"(.*)"|r?'(.*)'""", text, re.DOTALL)
        inner = next((group for group in match.groups() if group is not None), None) if match else None
        if not isinstance(node, ast.Constant) or not isinstance(node.value, str) or inner != node.value:
            self._source.refuse(node, "write one literal string: no f-string, no concatenation, no backslash")
        return node.value

    def _number(self, node: ast.expr) -> int | float:
        text = self._source.text(node)
        try:
            value = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            value = None
        if type(value) is int and " " not in text and -(2**63) <= value < 2**63:
            return value
        if type(value) is float and BOUND.fullmatch(text):
            return int(value) if value.is_integer() else value
        self._source.refuse(node, f"{text} is not a literal; Cog would not resolve it")

    def constant(self, node: ast.expr) -> Any:
        """Evaluate a literal or the name of a constant of this file."""
        if not isinstance(node, ast.Name):
            return self.literal(node)
        if node.id not in self._constants:
            self._source.refuse(node, f"{node.id} is not a literal constant of this file without comments in it")
        return self._constants[node.id]

    def description(self, node: ast.expr) -> str:
        """Evaluate a literal string or the name of one."""
        value = self.constant(node) if isinstance(node, ast.Name) else self.string(node)
        if not isinstance(value, str):
            self._source.refuse(node, "its description is not a string")
        return value

    def bound(self, node: ast.expr) -> int | float:
        """Evaluate a plain decimal number."""
        text = self._source.text(node)
        if not BOUND.fullmatch(text):
            self._source.refuse(node, f"the bound {text} is not a plain decimal number; Cog would drop it")
        return self._number(node)

    def flag(self, node: ast.expr) -> bool:
        """Evaluate True or False."""
        if not (isinstance(node, ast.Constant) and isinstance(node.value, bool)):
            self._source.refuse(node, "deprecated must be True or False")
        return node.value

    def choices(self, node: ast.expr) -> list[Any]:
        """Evaluate a list, its name, a sum of these, or list(TABLE.keys()) and list(TABLE.values()) of a dict."""
        if isinstance(node, ast.List):
            return self.literal(node)
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
            return self.choices(node.left) + self.choices(node.right)
        if isinstance(node, ast.Name) and isinstance(value := self.constant(node), list):
            return value
        text = self._source.text(node)
        match = re.fullmatch(r"list\((\w+)\.(keys|values)\(\)\)", text)
        if match and isinstance(table := self._constants.get(match[1]), dict):
            return list(table) if match[2] == "keys" else list(table.values())
        self._source.refuse(node, f"Cog cannot resolve choices={text}; name a literal list of this file")
