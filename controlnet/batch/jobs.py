"""The jobs of a batch: the requests in a file of JSON lines or a CSV, or one for each picture of a folder."""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from controlnet.api.sent import FETCHED
from controlnet.batch.folder import files_in, is_folder, join, parent, read, stamp
from controlnet.batch.tables import TableError, read_table

Json = dict[str, Any]
PICTURE_ENDINGS = {".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif"}
EXAMPLE = '{"prompt": "a house", "image": "photo.jpg"}'
HALVED = (
    "The line has half a character in it (a lone surrogate, such as \\ud83d without its other half): write whole ones."
)
SEEDS = 2**32


class BatchError(ValueError):
    """The batch cannot start. The message is for the user."""


@dataclass(frozen=True)
class Job:
    """One request of a batch."""

    line: int
    """Its line in the file, or the number of its picture in the folder, counted from 1."""
    name: str
    """Begins the names of its files, and tells it from all other jobs. The same job has the same name in every run."""
    inputs: Json
    """The inputs of the request. Its pictures are paths or URIs, or the URLs that the server takes."""
    fault: str | None = None
    """Why the line is no request."""


@dataclass(frozen=True)
class Batch:
    """What to make and where."""

    jobs: Sequence[Job]
    out: str
    bundle: str
    files: frozenset[str]
    """The names of the inputs that are files."""
    threads: int | None
    """The bundle's cpu_threads."""
    actors: int | None = None
    """How many models work at once. None: as many as fit."""
    address: str | None = None
    """Of a Ray cluster. None: this machine."""
    environ: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Line:
    """A line of the file before it is a job."""

    number: int
    inputs: Any
    fault: str | None = None


def read_jobs(place: str, bundle: str, shared: Mapping[str, Any], schemas: Json) -> list[Job]:
    """The jobs at a path or URI, in their order: a folder of pictures, a CSV by its ending, or JSON lines.

    `shared` are inputs of all jobs that do not have them. `schemas` are those of the API. Raises BatchError or
    FolderError if there are none.
    """
    properties = schemas["Input"]["properties"]
    if is_folder(place):
        lines, folder = list(_pictures(place)), place
    elif place.partition("?")[0].lower().endswith((".csv", ".tsv")):
        lines, folder = list(_rows(read(place), schemas)), parent(place)
    else:
        lines, folder = list(_json_lines(read(place))), parent(place)
    if not lines:
        raise BatchError(f"There are no jobs in {place!r}: expected lines such as {EXAMPLE}, or a folder of pictures.")
    files = {name for name, field in properties.items() if field.get("format") == "uri"}
    copies: Counter[str] = Counter()
    return [_job(line, bundle, shared, files, folder, copies) for line in lines]


def _pictures(place: str) -> Iterator[Line]:
    # macOS writes ._photo.png beside photo.png, with what other systems have no place for.
    names = [info.base_name for info in files_in(place) if not info.base_name.startswith(".")]
    pictures = [name for name in names if Path(name).suffix.lower() in PICTURE_ENDINGS]
    yield from (Line(number, {"image": name}) for number, name in enumerate(pictures, 1))


def _json_lines(content: bytes) -> Iterator[Line]:
    for number, raw in enumerate(content.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        if not raw.strip():
            continue
        try:
            inputs = json.loads(raw.decode(), parse_constant=_no_number)
        except (ValueError, RecursionError) as error:
            reason = "text in UTF-8" if isinstance(error, UnicodeDecodeError) else "JSON"
            yield Line(number, None, f"The line is not {reason}: expected one request, such as {EXAMPLE}.")
            continue
        if isinstance(inputs, dict) and inputs.keys() == {"input"}:
            inputs = inputs["input"]  # the body of a request over HTTP
        fault = f"The line is not an object of inputs: expected one request, such as {EXAMPLE}."
        yield Line(number, inputs, None if isinstance(inputs, dict) else fault)


def _no_number(text: str) -> float:
    raise ValueError(text)  # NaN and Infinity, which Python reads and no server takes


def _rows(content: bytes, schemas: Json) -> Iterator[Line]:
    try:
        for number, inputs, fault in read_table(content, schemas):
            yield Line(number, inputs, fault or None)
    except TableError as error:
        raise BatchError(str(error)) from None


def _job(
    line: Line, bundle: str, shared: Mapping[str, Any], files: set[str], folder: str, copies: "Counter[str]"
) -> Job:
    if line.fault is not None:
        return Job(line.number, "", {}, line.fault)
    inputs = {name: value for name, value in ({**shared, **line.inputs}).items() if value is not None}
    try:
        json.dumps(inputs, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return Job(line.number, "", {}, HALVED)
    places = {
        name: join(folder, inputs[name])
        for name in sorted(files & inputs.keys())
        if isinstance(inputs[name], str) and not FETCHED.match(inputs[name])
    }
    written = json.dumps(inputs, sort_keys=True)
    copy = 0
    if "seed" not in inputs and inputs.get("map_only") is not True:
        # Drawn from the job, so that a job that is made again after a crash gives the same pictures. Lines without a
        # seed that are equal otherwise are different jobs, with other seeds.
        copy = copies[written]
        copies[written] += 1
        inputs["seed"] = int(_digest([written, copy]), 16) % SEEDS
    key = _digest([bundle, written, copy, {name: stamp(place) for name, place in places.items()}])
    stem = re.sub(r"[^A-Za-z0-9_-]+", "-", Path(places["image"].partition("?")[0]).stem) if "image" in places else ""
    return Job(line.number, f"{stem[:40]}-{key}".lstrip("-"), inputs | places)


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:20]
