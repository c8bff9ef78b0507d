"""Jobs in a table of text: CSV as spreadsheets and pandas write it."""

import csv
import io
import sys
from collections import Counter
from collections.abc import Iterator
from typing import Any

from controlnet.serving.arguments import json_types, typed_value

Json = dict[str, Any]
DELIMITERS = ",;\t"
"""A spreadsheet writes semicolons where the comma is the decimal mark."""
NOTHING = {"", "nan", "NaN", "<NA>", "None", "null", "NULL"}
"""Cells that leave their input out: what pandas and databases write for a value that is missing."""


class TableError(ValueError):
    """A table cannot be read. The message is for the user."""


def read_table(content: bytes, schemas: Json) -> Iterator[tuple[int, Json | None, str]]:
    """The inputs in each row of a CSV with a line of names, with the number of the row's last line, counted from 1.

    A row with too many cells gives None and what is wrong with it. A cell becomes a value of its input's type. A column
    without a name is left out if it only numbers the rows, as pandas' index does. Raises TableError.
    """
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise TableError("The CSV is not text in UTF-8: save it as UTF-8.") from None
    properties = schemas["Input"]["properties"]
    csv.field_size_limit(sys.maxsize)  # 131,072 characters otherwise, and a data URL is longer
    delimiter = max(DELIMITERS, key=lambda mark: len({*_names(_reader(text, mark))} & {*properties}))
    reader = _reader(text, delimiter)
    names = _names(reader)
    rows = [(reader.line_num, row) for row in reader if row]
    _check_names(names, [row for _, row in rows], properties)
    for number, row in rows:
        if len(row) > len(names):
            yield number, None, f"The line has more cells than the first one, which has {len(names)}."
            continue
        cells = {name: cell for name, cell in zip(names, row, strict=False) if name and cell.strip() not in NOTHING}
        if cells:
            yield number, {name: _value(name, cell, delimiter, schemas) for name, cell in cells.items()}, ""


def _reader(text: str, delimiter: str) -> Any:
    return csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)


def _names(reader: Iterator[list[str]]) -> list[str]:
    return [name.strip() for name in next(reader, [])]


def _check_names(names: list[str], rows: list[list[str]], properties: Json) -> None:
    """Raise TableError for a name that is no input or is there twice, and for a column of values without a name."""
    if unknown := [name for name in names if name and name not in properties]:
        raise TableError(f"The first line of the CSV names what is no input: {', '.join(unknown)}.")
    if twice := [name for name, count in Counter(filter(None, names)).items() if count > 1]:
        raise TableError(f"The first line of the CSV names an input twice: {', '.join(twice)}.")
    for number, name in enumerate(names):
        if not name and not all(row[number].isdecimal() or not row[number] for row in rows if number < len(row)):
            raise TableError(f"Column {number + 1} of the CSV has no name: name the input in the first line.")


def _value(name: str, cell: str, delimiter: str, schemas: Json) -> Any:
    if delimiter == ";" and {"integer", "number"} & {*json_types(name, schemas)}:
        cell = cell.replace(",", ".")
    return typed_value(cell, name, schemas)
