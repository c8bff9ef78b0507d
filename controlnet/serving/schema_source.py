"""The text of a predict.py with its syntax tree, and the error that says what Cog cannot resolve in it."""

import ast
from collections.abc import Sequence
from itertools import accumulate
from typing import NoReturn


class SchemaError(ValueError):
    """predict.py has something that Cog's static parser refuses or drops. The message names the input and the line."""


class Source:
    """One source text. Keeps what is being read, such as an input, for errors."""

    def __init__(self, source: str) -> None:
        # Python and Cog skip a byte order mark at the start of a file. ast.parse() refuses one in a str.
        text = source.removeprefix("\ufeff")
        self.subject = "predict()"
        try:
            self.module = ast.parse(text)
        except SyntaxError as error:
            raise SchemaError(f"predict.py line {error.lineno}: {error.msg}") from None
        self._bytes = text.encode()
        self._line_starts = [0, *accumulate(map(len, self._bytes.splitlines(keepends=True)))]

    def refuse(self, node: ast.AST, problem: str) -> NoReturn:
        """Raise SchemaError for `node`, a part of what is being read."""
        raise SchemaError(f"predict.py line {getattr(node, 'lineno', 1)}: {self.subject}: {problem}")

    def text(self, node: ast.AST) -> str:
        """The source of a node; "" if it has no place in the source. (ast.get_source_segment takes a second in all.)"""
        first, last = self._range(node)
        return self._bytes[first:last].decode()

    def between(self, node: ast.AST, parts: Sequence[ast.AST]) -> list[str]:
        """The source of a node without that of its parts: before the first, between each two, and after the last.

        `parts` are in the order of the source.
        """
        first, last = self._range(node)
        ranges = [self._range(part) for part in parts]
        starts = [first, *(end for _, end in ranges)]
        ends = [*(start for start, _ in ranges), last]
        return [self._bytes[start:end].decode() for start, end in zip(starts, ends, strict=True)]

    def _range(self, node: ast.AST) -> tuple[int, int]:
        """The bytes of a node, as first and one past the last."""
        line, last_line = getattr(node, "lineno", None), getattr(node, "end_lineno", None)
        if not line or not last_line:
            return 0, 0
        first = self._line_starts[line - 1] + getattr(node, "col_offset", 0)
        return first, self._line_starts[last_line - 1] + (getattr(node, "end_col_offset", None) or 0)
