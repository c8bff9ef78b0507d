"""The -i options of script/predict: turned into the input of a request, and described for -h, both from the schema."""

import base64
import difflib
import json
import math
import mimetypes
import os
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from controlnet.temporary import MOST_BYTES

Json = dict[str, Any]


class ArgumentError(ValueError):
    """An option is wrong or missing. The message is for the user."""


FILE_ENDINGS = (".safetensors", ".json", ".txt")
"""A text that ends so, and names a file that is there, means the file."""


def _whole(text: str) -> int:
    """A whole number, also one that is written as 4.0, as JSON may have it."""
    try:
        return int(text)
    except ValueError:
        number = _finite(text)
        if not number.is_integer():
            raise
        return int(number)


def _finite(text: str) -> float:
    """A number that JSON has: not nan or inf."""
    number = float(text)
    if not math.isfinite(number):
        raise ValueError
    return number


VALUE_PARSERS: dict[str, Callable[[str], Any]] = {
    "integer": _whole,
    "number": _finite,
    "boolean": lambda text: {"true": True, "false": False}[text.lower()],
    "array": json.loads,
    "object": json.loads,
}


def parse_inputs(pairs: Sequence[str], schemas: Json) -> Json:
    """Turn "name=value" strings into the JSON input of a request, by the types in `schemas` (components/schemas).

    A file input takes @path or a URL. A text input takes @path for the text of a UTF-8 file, or for a .safetensors file
    itself as a data: URI, and @@text for a text that begins with @. A value that does not fit its type is sent as text,
    and the server says what is wrong with it.

    Raises ArgumentError for an unknown name (which the server would silently drop), a name given twice, a missing
    required name, a file that cannot be read, and a text that is the path of a file, without @.
    """
    properties = schemas["Input"]["properties"]
    inputs: Json = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals:
            raise ArgumentError(f"-i takes name=value, got {pair!r}.")
        if any("\ud800" <= letter <= "\udfff" for letter in pair if not text.startswith("@")):
            raise ArgumentError(f"The input {name!r} is not text in UTF-8.")  # JSON could not say what it is
        if name not in properties:
            close = difflib.get_close_matches(name, properties, 1)
            hint = f"did you mean {close[0]}?" if close else "script/predict -h lists the inputs."
            raise ArgumentError(f"There is no input {name!r}; {hint}")
        if name in inputs:
            raise ArgumentError(f"The input {name!r} is given twice.")
        inputs[name] = _parse_value(name, text, schemas)
    missing = [name for name in schemas["Input"].get("required", []) if name not in inputs]
    if missing:
        lines = [f"-i {name}={'@file' if properties[name].get('format') == 'uri' else '...'}" for name in missing]
        raise ArgumentError(f"Missing: {' '.join(lines)}")
    return inputs


def _resolve(prop: Json, schemas: Json) -> Json:
    """Return the schema that has the type: the property, or the enumeration that it refers to."""
    return schemas[prop["allOf"][0]["$ref"].rsplit("/", 1)[1]] if "allOf" in prop else prop


def _types(schema: Json) -> list[str]:
    return [schema["type"]] if "type" in schema else [member["type"] for member in schema["anyOf"]]


def json_types(name: str, schemas: Json) -> list[str]:
    """The JSON types that the input `name` takes."""
    return _types(_resolve(schemas["Input"]["properties"][name], schemas))


def typed_value(text: str, name: str, schemas: Json) -> Any:
    """A text as the type of the input `name`; unchanged if it is a file or does not fit."""
    for json_type in json_types(name, schemas):
        if json_type in VALUE_PARSERS:
            try:
                return VALUE_PARSERS[json_type](text)
            except (KeyError, ValueError):
                continue
    return text


def _parse_value(name: str, text: str, schemas: Json) -> Any:
    schema = _resolve(schemas["Input"]["properties"][name], schemas)
    if schema.get("format") == "uri":
        return _file_value(name, text)
    value, types = typed_value(text, name, schemas), _types(schema)
    if value is not text:
        return value
    if "string" not in types or "enum" in schema:
        return text
    if not text.startswith("@"):
        if text.lower().endswith(FILE_ENDINGS) and os.path.isfile(os.path.expanduser(text)):
            raise ArgumentError(
                f"The input {name!r} is a text, and {text!r} is a file: @ is missing in -i {name}=@{text}."
            )
        return text
    if text.startswith("@@"):
        return text[1:]
    return _file_value(name, text) if text.endswith(".safetensors") else _text_of_file(name, text[1:])


def _text_of_file(name: str, path: str) -> str:
    try:
        return _read(name, path).decode("utf-8-sig")  # editors on Windows begin a file with a byte order mark
    except UnicodeDecodeError as error:
        raise ArgumentError(f"Cannot read {path!r} for the input {name!r}: expected text in UTF-8.") from error


def _file_value(name: str, text: str) -> str:
    if not text.startswith("@"):
        if re.match(r"(https?|data|s3|gs|az):", text, re.IGNORECASE):
            return text
        raise ArgumentError(f"The input {name!r} is a file: write -i {name}=@{text} or give a URL.")
    content = _read(name, text[1:])
    mime = mimetypes.guess_type(Path(text[1:]).name, strict=False)[0] or "application/octet-stream"
    return f"data:{mime};base64,{base64.b64encode(content).decode()}"


def _read(name: str, path: str) -> bytes:
    try:
        with Path(path).expanduser().open("rb") as file:
            content = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise ArgumentError(f"Cannot read {path!r} for the input {name!r}: {error.strerror}.") from error
    if len(content) > MOST_BYTES:
        raise ArgumentError(f"{path!r} for the input {name!r} is larger than {MOST_BYTES // 2**20} MB.")
    return content


# ---- for -h


def describe_inputs(schemas: Json, width: int = 80) -> str:
    """Return the list of inputs for -h: for each its values, bounds and default, then its description, indented."""
    entries = []
    for name, prop in schemas["Input"]["properties"].items():
        required = "required" if name in schemas["Input"].get("required", []) else ""
        default = "" if prop.get("default") in (None, "") else f"default {_literal(prop['default'])}"
        facts = ", ".join(filter(None, (_values(_resolve(prop, schemas)), default, required)))
        entries += _wrapped(f"{name}: {facts}", width, "  ")
        entries += _wrapped(prop.get("description", ""), width, "      ")
    return "\n".join(entries)


def _wrapped(text: str, width: int, indent: str) -> list[str]:
    return textwrap.wrap(
        text,
        width,
        initial_indent=indent,
        subsequent_indent=" " * 6,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _literal(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _values(schema: Mapping[str, Any]) -> str:
    """What an input takes, in a few words: "integer 1 to 4", "canny, hed or mlsd"."""
    if "enum" in schema:
        *others, last = map(str, schema["enum"])
        return f"{', '.join(others)} or {last}" if others else last
    if schema.get("format") == "uri":
        return "@file or URL"
    words = {"string": "text or @file", "boolean": "true or false"}
    named = " or ".join(words.get(json_type, json_type) for json_type in _types(dict(schema)))
    lowest, highest = schema.get("minimum"), schema.get("maximum")
    if lowest is not None and highest is not None:
        return f"{named} {lowest} to {highest}"
    if lowest is not None:
        return f"{named}, at least {lowest}"
    return named if highest is None else f"{named}, at most {highest}"
