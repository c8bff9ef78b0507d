"""A TOML table, read strictly: a key that is missing, misspelt or of another kind is an error that names it."""

import re
from collections.abc import Iterator
from typing import Any

_KINDS = {
    str: "a string",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    list: "a list",
    dict: "a table",
}


class ManifestError(ValueError):
    """A manifest that cannot be used. The message names the file, the key, and what belongs there."""


class Table:
    """A TOML table that is emptied key by key; what is left at the end is a key that nobody knows."""

    def __init__(self, values: dict[str, Any], where: str, prefix: str = "") -> None:
        self._values = dict(values)
        self._where = where
        self._prefix = prefix

    def error(self, key: str, problem: str) -> ManifestError:
        return ManifestError(f"{self._where}: {self._prefix}{key}: {problem}.")

    def take(self, key: str, kind: type, default: Any = None) -> Any:
        """The value of `key`, which must be a `kind`. A key that is absent and has no default is an error."""
        value = self._values.pop(key, default)
        if value is None:
            raise self.error(key, f"missing, expected {_KINDS[kind]}")
        if kind is float and type(value) is int:
            return float(value)
        if type(value) is not kind:  # not isinstance: true would pass as the integer 1
            raise self.error(key, f"expected {_KINDS[kind]}, got {value!r}")
        return value

    def text(self, key: str, default: str | None = None) -> str:
        """A string; one without a default must not be empty."""
        value = self.take(key, str, default)
        if default is None and not value.strip():
            raise self.error(key, "expected some text, got an empty string")
        return value

    def name(self, key: str, pattern: re.Pattern[str], like: str, default: str | None = None) -> str:
        """A string that `pattern` matches as a whole."""
        value = self.take(key, str, default)
        if value != default and not pattern.fullmatch(value):
            raise self.error(key, f"expected a name like {like!r}, got {value!r}")
        return value

    def number(self, key: str, lowest: int, kind: type = int) -> Any:
        """A number of that kind, at least `lowest`."""
        value = self.take(key, kind)
        if not value >= lowest:
            raise self.error(key, f"expected a number of at least {lowest}, got {value!r}")
        return value

    def table(self, key: str, default: dict[str, Any] | None = None) -> "Table":
        return Table(self.take(key, dict, default), self._where, f"{self._prefix}{key}.")

    def tables(self, key: str) -> Iterator["Table"]:
        """The tables of an array, each with its number, counted from 1, in its errors."""
        for number, values in enumerate(self.take(key, list), start=1):
            if type(values) is not dict:
                raise self.error(key, f"expected tables, got {values!r}")
            yield Table(values, self._where, f"{self._prefix}{key}[{number}].")

    def left(self) -> list[str]:
        return list(self._values)

    def rest(self) -> dict[str, Any]:
        """Whatever is left, taken as it is."""
        values, self._values = self._values, {}
        return values

    def close(self) -> None:
        if self._values:
            raise self.error(min(self._values), "unknown key")
