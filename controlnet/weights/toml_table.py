"""Strict reading of a TOML table: a key that is missing, misspelt or of the wrong type is an error that names it."""

import re
from collections.abc import Iterator
from typing import Any

_TYPE_WORDS = {
    str: "a string",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    list: "a list",
    dict: "a table",
}


class ManifestError(ValueError):
    """A manifest cannot be used. The message names the file, the key, and the expected value."""


class Table:
    """A TOML table whose keys are taken one by one. `close` reports a key that was not taken as unknown.

    `source` names the file in errors, `prefix` the table inside it ("limits.").
    """

    def __init__(self, values: dict[str, Any], source: str, prefix: str = "") -> None:
        self._values = dict(values)
        self._source = source
        self._prefix = prefix

    def error(self, key: str, problem: str) -> ManifestError:
        return ManifestError(f"{self._source}: {self._prefix}{key}: {problem}.")

    def take(self, key: str, expected: type, default: Any = None) -> Any:
        """Take out the value of `key`, which must have the expected type. Without a default, the key is required."""
        value = self._values.pop(key, default)
        if value is None:
            raise self.error(key, f"missing, expected {_TYPE_WORDS[expected]}")
        if expected is float and type(value) is int:
            return float(value)
        if type(value) is not expected:  # isinstance would accept true as the integer 1
            raise self.error(key, f"expected {_TYPE_WORDS[expected]}, got {value!r}")
        return value

    def text(self, key: str, default: str | None = None) -> str:
        """Take out a string. Without a default, the key is required and must not be empty."""
        value = self.take(key, str, default)
        if default is None and not value.strip():
            raise self.error(key, "expected some text, got an empty string")
        return value

    def name(self, key: str, pattern: re.Pattern[str], example: str, default: str | None = None) -> str:
        """Take out a string that fully matches `pattern`. The error shows the example."""
        value = self.take(key, str, default)
        if value != default and not pattern.fullmatch(value):
            raise self.error(key, f"expected a name like {example!r}, got {value!r}")
        return value

    def number(self, key: str, lowest: int, expected: type = int) -> Any:
        """Take out a number of at least `lowest`, of type int or float."""
        value = self.take(key, expected)
        if not value >= lowest:
            raise self.error(key, f"expected a number of at least {lowest}, got {value!r}")
        return value

    def table(self, key: str, default: dict[str, Any] | None = None) -> "Table":
        return Table(self.take(key, dict, default), self._source, f"{self._prefix}{key}.")

    def is_table(self, key: str) -> bool:
        """Whether the value of `key`, which is not taken out, is a table."""
        return type(self._values.get(key)) is dict

    def tables(self, key: str) -> Iterator["Table"]:
        """Take out an array of tables. Their errors number them from 1: parts[1]."""
        for number, values in enumerate(self.take(key, list), start=1):
            if type(values) is not dict:
                raise self.error(key, f"expected tables, got {values!r}")
            yield Table(values, self._source, f"{self._prefix}{key}[{number}].")

    def remaining_keys(self) -> list[str]:
        return list(self._values)

    def take_rest(self) -> dict[str, Any]:
        """Take out all remaining values unchecked."""
        values, self._values = self._values, {}
        return values

    def close(self) -> None:
        """Raise ManifestError if a key remains."""
        if self._values:
            raise self.error(min(self._values), "unknown key")
