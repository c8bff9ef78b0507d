"""Hold the values that reach predict() to what its signature declares.

Cog's server validates requests only where it finds the schema that `cog build` writes; elsewhere anything reaches
predict(). Even with the schema 4.0 passes as an integer and arrives as a float. The declarations in predict.py stay the
only list of names, types, bounds and choices: this module reads them from the signature.
"""

import inspect
import math
import pathlib
import re
import secrets
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cog
from cog.input import FieldInfo

LONGEST_ECHO = 40  # characters of a wrong value that an error repeats


class InputError(ValueError):
    """One or more inputs are not what predict() declares; the message has one sentence for each."""


class _Mismatch(Exception):
    """A value is not of the type at hand."""


def check_inputs(predict: Callable[..., Any], values: dict[str, Any]) -> dict[str, Any]:
    """The declared inputs out of `values` (predict's locals()), checked against the signature of `predict`.

    Absent inputs get their defaults; 4.0 becomes 4 where an integer is declared, 4 becomes 4.0 where a float is.
    Whatever is no parameter (and `self`) is left out. Raises InputError that lists every fault.
    """
    hints = typing.get_type_hints(predict)
    checked, faults = {}, []
    for name, parameter in inspect.signature(predict).parameters.items():
        if name == "self":
            continue
        declared = _Declared(name, hints[name], _field(parameter))
        try:
            checked[name] = declared.check(values.get(name, declared.field))
        except InputError as fault:
            faults.append(str(fault))
    if faults:
        raise InputError(" ".join(faults))
    return checked


def pick_seed(seed: int | None) -> int:
    """`seed` itself, 0 included; for None one drawn by the operating system, from 0 to 2³² − 1."""
    return secrets.randbits(32) if seed is None else seed


def _field(parameter: inspect.Parameter) -> FieldInfo:
    default = parameter.default
    if isinstance(default, FieldInfo):
        return default
    return FieldInfo(default=None if default is inspect.Parameter.empty else default)


@dataclass(frozen=True)
class _Declared:
    """One parameter of predict(): its name, its annotation and what its Input() says."""

    name: str
    hint: Any
    field: FieldInfo

    def check(self, value: Any) -> Any:
        if isinstance(value, FieldInfo):  # predict() called from Python leaves its defaults in place
            value = value.default
        kinds = typing.get_args(self.hint) if _is_union(self.hint) else (self.hint,)
        if value is None and types.NoneType in kinds:
            return None
        kinds = tuple(kind for kind in kinds if kind is not types.NoneType)
        for kind in kinds:
            try:
                converted = KINDS[kind].convert(value)
            except (_Mismatch, OverflowError):  # overflow: an integer too large for a float
                continue
            if all(rule.holds(converted, bound) for rule, bound in self._rules()):
                return converted
            break
        # A client's local path or file:// URL arrives as str where a file is declared; it is not repeated.
        got = "plain text" if isinstance(value, str) and cog.Path in kinds else _shown(value)
        raise InputError(f"{self.name}: expected {self._expectation(kinds)}; got {got}.")

    def _rules(self) -> list[tuple["_Rule", Any]]:
        bounds = ((rule, getattr(self.field, attribute)) for attribute, rule in RULES.items())
        return [(rule, bound) for rule, bound in bounds if bound is not None]

    def _expectation(self, kinds: tuple[Any, ...]) -> str:
        if self.field.choices is not None:
            return "one of " + ", ".join(map(str, self.field.choices))
        words = [" or ".join(KINDS[kind].words for kind in kinds)]
        words += [rule.words.format(bound) for rule, bound in self._rules()]
        return words[0] + (", " + " and ".join(words[1:]) if words[1:] else "")


def _is_union(hint: Any) -> bool:
    return typing.get_origin(hint) in (typing.Union, types.UnionType)


def _instance(kind: type) -> Callable[[Any], Any]:
    def convert(value: Any) -> Any:
        if not isinstance(value, kind):
            raise _Mismatch
        return value

    return convert


def _number(value: Any) -> float:
    # bool is an int to Python and not to a client; NaN would pass any comparison written the wrong way round
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise _Mismatch
    return float(value)


def _integer(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value // 1:
        raise _Mismatch
    return int(value)


@dataclass(frozen=True)
class _Kind:
    words: str
    convert: Callable[[Any], Any]
    """Returns the value as this type, or raises _Mismatch."""


KINDS: dict[Any, _Kind] = {
    bool: _Kind("true or false", _instance(bool)),
    int: _Kind("an integer", _integer),
    float: _Kind("a number", _number),
    str: _Kind("text", _instance(str)),
    cog.Path: _Kind("an uploaded file, an http(s) URL or a data URL", _instance(pathlib.Path)),
}
"""The types that predict() may declare: a new one is an entry here."""


@dataclass(frozen=True)
class _Rule:
    words: str
    holds: Callable[[Any, Any], bool]


RULES: dict[str, _Rule] = {
    "ge": _Rule("at least {}", lambda value, bound: value >= bound),
    "le": _Rule("at most {}", lambda value, bound: value <= bound),
    "choices": _Rule("one of {}", lambda value, bound: value in bound),
    "min_length": _Rule("at least {} characters long", lambda value, bound: len(value) >= bound),
    "max_length": _Rule("at most {} characters long", lambda value, bound: len(value) <= bound),
    "regex": _Rule("matching {}", lambda value, bound: re.search(bound, value) is not None),
}
"""What Input() can declare beside type and default, by the name that FieldInfo gives it."""


def _shown(value: Any) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return str(value).lower()
    if not isinstance(value, str | int | float):
        return f"a {type(value).__name__}"  # no repr: a Path's would name a place on this machine
    if isinstance(value, int) and value.bit_length() > 64:
        return "a very large number"
    text = repr(value)
    return text if len(text) <= LONGEST_ECHO else text[:LONGEST_ECHO] + "…"
