"""Check the values that reach predict() against its signature.

Cog's server validates requests only if it finds the schema that `cog build` writes; without it anything reaches
predict(). Even with the schema 4.0 passes as an integer and arrives as a float. The declarations in predict.py are the
only list of names, types, bounds and choices: this module reads them from the signature.
"""

# pyright: reportMissingTypeStubs=false
# (Cog has annotations and no marker that says so.)

import inspect
import math
import pathlib
import re
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import cog
from cog.input import FieldInfo

LONGEST_ECHO = 40
"""Characters of a wrong value that an error repeats."""
HALVES = re.compile("[\ud800-\udfff]")
"""Halves of characters in UTF-16 (lone surrogates), which are no text: no tokenizer takes them, and no file or URL."""
HALVED = "text with half a character in it (a lone surrogate)"


class InputError(ValueError):
    """One or more inputs are not what predict() declares; the message has one sentence for each."""


class _Mismatch(Exception):
    """A value is not of the expected type."""


def check_inputs(predict: Callable[..., Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """The inputs in `values`, which are the locals() of `predict`, checked against its signature.

    Inputs that are absent get their declared defaults. 4.0 becomes 4 for an integer input, and 4 becomes 4.0 for a
    float input. `self` and names that are no parameters are left out. Raises InputError with one sentence per fault.
    """
    checked: dict[str, Any] = {}
    faults: list[str] = []
    for declared in _declarations(predict):
        try:
            checked[declared.name] = declared.check(values.get(declared.name, declared.field))
        except InputError as fault:
            faults.append(str(fault))
    if faults:
        raise InputError(" ".join(faults))
    return checked


def declared_defaults(predict: Callable[..., Any]) -> dict[str, Any]:
    """The default of each input, as the signature of `predict` declares it; None for a required one."""
    return {declared.name: declared.field.default for declared in _declarations(predict)}


def file_inputs(predict: Callable[..., Any]) -> set[str]:
    """The names of the inputs that are files."""
    return {each.name for each in _declarations(predict) if cog.Path in (each.hint, *typing.get_args(each.hint))}


@cache  # reading annotations takes longer than all that is done with them
def _declarations(predict: Callable[..., Any]) -> "tuple[_Declared, ...]":
    hints = typing.get_type_hints(predict)
    parameters = inspect.signature(predict).parameters.items()
    return tuple(_Declared(name, hints[name], _field(parameter)) for name, parameter in parameters if name != "self")


def _field(parameter: inspect.Parameter) -> FieldInfo:
    default = parameter.default
    if isinstance(default, FieldInfo):
        return default
    return FieldInfo(default=None if default is inspect.Parameter.empty else default)


@dataclass(frozen=True)
class _Declared:
    """One parameter of predict(): its name, its annotation, and what its Input() declares."""

    name: str
    hint: Any
    field: FieldInfo

    def check(self, value: Any) -> Any:
        if isinstance(value, FieldInfo):  # predict() called from Python leaves its defaults in place
            value = value.default
        members: tuple[Any, ...] = typing.get_args(self.hint) if _is_union(self.hint) else (self.hint,)
        if value is None and types.NoneType in members:
            return None
        members = tuple(member for member in members if member is not types.NoneType)
        for member in members:
            try:
                converted = TYPES[member].convert(value)
            except (_Mismatch, OverflowError):  # overflow: an integer too large for a float
                continue
            if all(constraint.holds(converted, bound) for constraint, bound in self._constraints()):
                return converted
            break
        # A client's local path or file:// URL arrives as str for a file input. It is not repeated.
        got = "plain text" if isinstance(value, str) and cog.Path in members else _shown(value)
        raise InputError(f"{self.name}: expected {self._expectation(members)}; got {got}.")

    def _constraints(self) -> list[tuple["_Constraint", Any]]:
        bounds = ((constraint, getattr(self.field, attribute)) for attribute, constraint in CONSTRAINTS.items())
        return [(constraint, bound) for constraint, bound in bounds if bound is not None]

    def _expectation(self, members: tuple[Any, ...]) -> str:
        if self.field.choices is not None:
            return "one of " + ", ".join(map(str, self.field.choices))
        words = [" or ".join(TYPES[member].words for member in members)]
        words += [constraint.words.format(bound) for constraint, bound in self._constraints()]
        return words[0] + (", " + " and ".join(words[1:]) if words[1:] else "")


def _is_union(hint: Any) -> bool:
    return typing.get_origin(hint) in (typing.Union, types.UnionType)


def _instance(expected: type) -> Callable[[Any], Any]:
    def convert(value: Any) -> Any:
        if not isinstance(value, expected):
            raise _Mismatch
        return value

    return convert


def _number(value: Any) -> float:
    # bool is an int to Python but not to a client. NaN would pass some comparisons.
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise _Mismatch
    return float(value)


def _integer(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value // 1:
        raise _Mismatch
    return int(value)


def _text(value: Any) -> str:
    if not isinstance(value, str) or HALVES.search(value):
        raise _Mismatch
    return value


@dataclass(frozen=True)
class _Type:
    words: str
    convert: Callable[[Any], Any]
    """Returns the value as this type, or raises _Mismatch."""


TYPES: dict[Any, _Type] = {
    bool: _Type("true or false", _instance(bool)),
    int: _Type("an integer", _integer),
    float: _Type("a number", _number),
    str: _Type("text", _text),
    cog.Path: _Type("an uploaded file, an http(s) URL or a data URL", _instance(pathlib.Path)),
}
"""The types that predict() may declare, each with its words and its conversion."""


@dataclass(frozen=True)
class _Constraint:
    words: str
    holds: Callable[[Any, Any], bool]


CONSTRAINTS: dict[str, _Constraint] = {
    "ge": _Constraint("at least {}", lambda value, bound: value >= bound),
    "le": _Constraint("at most {}", lambda value, bound: value <= bound),
    "choices": _Constraint("one of {}", lambda value, bound: value in bound),
    "min_length": _Constraint("at least {} characters long", lambda value, bound: len(value) >= bound),
    "max_length": _Constraint("at most {} characters long", lambda value, bound: len(value) <= bound),
    "regex": _Constraint("matching {}", lambda value, bound: re.search(bound, value) is not None),
}
"""What Input() can declare in addition to type and default, by the name of the attribute in FieldInfo."""


def _shown(value: Any) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return str(value).lower()
    if not isinstance(value, str | int | float):
        return f"a {type(value).__name__}"  # no repr: a Path's would name a place on this machine
    if isinstance(value, str) and HALVES.search(value):
        return HALVED
    if isinstance(value, int) and value.bit_length() > 64:
        return "a very large number"
    text = repr(value)
    return text if len(text) <= LONGEST_ECHO else text[:LONGEST_ECHO] + "…"
