"""Batches for tests: job files, and bad lines of all kinds with what is said about them."""

import json
from pathlib import Path

from PIL import Image

from controlnet.batch.jobs import Job, read_jobs
from controlnet.serving.schema import openapi_schema
from support import ROOT
from support.requests_to_tiny import CAT, FAST, encoded

SCHEMAS = openapi_schema((ROOT / "predict.py").read_text("utf-8"))["components"]["schemas"]
FILES = frozenset(name for name, field in SCHEMAS["Input"]["properties"].items() if field.get("format") == "uri")
ASK = FAST | {"image": "cat.png"}

NO_REQUEST = 'expected one request, such as {"prompt": "a house", "image": "photo.jpg"}.'
BAD: list[tuple[bytes | dict, str]] = [
    (b"{", f"The line is not JSON: {NO_REQUEST}"),
    (b'{"prompt": "\xff"}', f"The line is not text in UTF-8: {NO_REQUEST}"),
    (b"[" * 100_000, f"The line is not JSON: {NO_REQUEST}"),
    (b"[1, 2]", f"The line is not an object of inputs: {NO_REQUEST}"),
    (b"null", f"The line is not an object of inputs: {NO_REQUEST}"),
    (b'{"input": 3}', f"The line is not an object of inputs: {NO_REQUEST}"),
    (b"{}", "prompt: expected text; got nothing. image: expected"),
    ({"promt": "a house"}, "There is no input 'promt'; did you mean prompt?"),
    ({"prompt": None}, "prompt: expected text; got nothing."),
    ({"prompt": ["a", "b"]}, "prompt: expected text; got a list."),
    ({"image": None}, "image: expected an uploaded file, an http(s) URL or a data URL; got nothing."),
    ({"image": 3}, "image: expected a PIL picture"),
    ({"image": "no/such.png"}, "no/such.png' is not there."),
    ({"image": "."}, "is a folder."),
    ({"image": "notes.txt"}, "The image is not a picture that can be read"),
    ({"image": "half.png"}, "The image is damaged or incomplete"),
    ({"image": "empty.png"}, "The image is empty (0 bytes)"),
    ({"image": "small.png"}, "The image is too small"),
    ({"image": "narrow.png"}, "The image is too long and narrow"),
    ({"image": "data:zzz"}, "image: the data URL could not be decoded"),
    ({"image": "ftp://host/a.png"}, "image: 'ftp://host/a.png' is not a place that can be used"),
    ({"seed": -1}, "seed: expected an integer, at least 0 and at most 4294967295; got -1."),
    ({"num_outputs": 2.5}, "num_outputs: expected an integer"),
    ({"conditioner": "cany"}, "conditioner: expected one of canny, hed"),
    ({"control_start": 0.8, "control_end": 0.2}, "control_end"),
    ({"mask": "black.png"}, "mask is black everywhere"),
    ({"pose_json": "{", "conditioner": "openpose"}, "The pose is not JSON"),
    ({"image": "iVBORw0KGgoAAAANSUhEUgAAADAAAAAg" * 100}, "(if it is base64, put data:;base64, before it)."),
    *[({name: "\ud83d.png"}, "The line has half a character in it") for name in ("image", "prompt", "seed", "\ud83d")],
]
"""Lines, or inputs that are wrong in place of those of ASK, each with a part of the error."""


def write_pictures(folder: Path) -> None:
    """Write the pictures that ASK and BAD name."""
    cat = encoded(CAT.resize((226, 150)))
    files = {"cat.png": cat, "half.png": cat[:2000], "empty.png": b"", "notes.txt": b"not a picture"}
    sizes = {"small.png": (10, 10), "narrow.png": (200, 20), "black.png": (226, 150)}
    for name, content in (files | {name: encoded(Image.new("RGB", size)) for name, size in sizes.items()}).items():
        (folder / name).write_bytes(content)


def good_lines(count: int, **inputs: object) -> list[bytes]:
    """Lines of requests, each with a seed of its own."""
    return [json.dumps(ASK | {"seed": seed} | inputs).encode() for seed in range(count)]


def bad_lines() -> list[bytes]:
    """The lines of BAD."""
    return [line if isinstance(line, bytes) else json.dumps(ASK | line).encode() for line, _ in BAD]


def jobs_in(folder: Path, lines: list[bytes]) -> list[Job]:
    """The jobs of a file with these lines in a folder that gets the pictures."""
    write_pictures(folder)
    (folder / "jobs.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    return read_jobs(str(folder / "jobs.jsonl"), "tiny", {}, SCHEMAS)


def results(out: Path) -> list[dict]:
    """The lines of results.jsonl."""
    return [json.loads(line) for line in (out / "results.jsonl").read_text(encoding="utf-8").splitlines()]


def contents(folder: Path) -> dict[str, bytes]:
    """The content of each file in a folder, by name."""
    return {file.name: file.read_bytes() for file in folder.iterdir()}
