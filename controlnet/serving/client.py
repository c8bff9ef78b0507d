"""script/predict: one prediction from the command line, with the same server and checks as in production."""

import argparse
import base64
import difflib
import importlib.metadata
import json
import mimetypes
import os
import re
import shutil
import signal
import sys
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from controlnet.serving.schema import SchemaError, openapi_schema
from controlnet.serving.server import ROOT, Server, ServerError, plain_error
from controlnet.weights.manifest import BUNDLE, choose_bundle

PROGRESS_BAR = re.compile(r"\d+%\|")
"""Matches a line that tqdm prints."""

CLEAN_UP_SECONDS = 3.0
"""How long to wait for a cancelled prediction to clean up before the server is stopped."""

Json = dict[str, Any]


class ArgumentError(ValueError):
    """An -i option is wrong or missing."""


# ---- inputs


def _resolve(prop: Json, schemas: Json) -> Json:
    """Return the schema that has the type: the property, or the enumeration that it refers to."""
    return schemas[prop["allOf"][0]["$ref"].rsplit("/", 1)[1]] if "allOf" in prop else prop


def parse_inputs(pairs: Sequence[str], schemas: Json) -> Json:
    """Turn "name=value" strings into the JSON input of a request, by the types in `schemas` (components/schemas).

    A file input takes @path or a URL; a text input takes @path for the text of a UTF-8 file. A value that does not fit
    its type is sent as text, and the server says what is wrong with it. Raises ArgumentError for an unknown name (which
    the server would silently drop), a name given twice, a missing required name and a file that cannot be read.
    """
    properties = schemas["Input"]["properties"]
    inputs: Json = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals:
            raise ArgumentError(f"-i takes name=value, got {pair!r}.")
        if name not in properties:
            close = difflib.get_close_matches(name, properties, 1)
            hint = f"did you mean {close[0]}?" if close else f"the inputs are {', '.join(properties)}."
            raise ArgumentError(f"There is no input {name!r}; {hint}")
        if name in inputs:
            raise ArgumentError(f"The input {name!r} is given twice.")
        inputs[name] = _parse_value(name, text, _resolve(properties[name], schemas))
    missing = [name for name in schemas["Input"].get("required", []) if name not in inputs]
    if missing:
        lines = [f"-i {name}={'@file' if properties[name].get('format') == 'uri' else '...'}" for name in missing]
        raise ArgumentError(f"Missing: {' '.join(lines)}")
    return inputs


def _parse_value(name: str, text: str, schema: Json) -> Any:
    if schema.get("format") == "uri":
        return _file_value(name, text)
    types = [schema["type"]] if "type" in schema else [member["type"] for member in schema["anyOf"]]
    for json_type in types:
        if json_type in VALUE_PARSERS:
            try:
                return VALUE_PARSERS[json_type](text)
            except (KeyError, ValueError):
                continue
    is_text = "string" in types and "enum" not in schema
    return _text_of_file(name, text[1:]) if is_text and text.startswith("@") else text


def _text_of_file(name: str, path: str) -> str:
    try:
        return _read(name, path).decode()
    except UnicodeDecodeError as error:
        raise ArgumentError(f"Cannot read {path!r} for the input {name!r}: expected text in UTF-8.") from error


VALUE_PARSERS: dict[str, Callable[[str], Any]] = {
    "integer": int,
    "number": float,
    "boolean": lambda text: {"true": True, "false": False}[text.lower()],
    "array": json.loads,
    "object": json.loads,
}


def _file_value(name: str, text: str) -> str:
    if not text.startswith("@"):
        if re.match(r"(https?|data|s3|gs|az):", text):
            return text
        raise ArgumentError(f"The input {name!r} is a file: write -i {name}=@{text} or give a URL.")
    content = _read(name, text[1:])
    mime = mimetypes.guess_type(Path(text[1:]).name, strict=False)[0] or "application/octet-stream"
    return f"data:{mime};base64,{base64.b64encode(content).decode()}"


def _read(name: str, path: str) -> bytes:
    try:
        return Path(path).expanduser().read_bytes()
    except OSError as error:
        raise ArgumentError(f"Cannot read {path!r} for the input {name!r}: {error.strerror}.") from error


# ---- outputs


def decode_data_url(url: str) -> tuple[bytes, str]:
    """Return the content of a data URL and the suffix for its type, such as ".webp"."""
    header, _, payload = url.partition(",")
    mime = header.removeprefix("data:").split(";")[0]
    content = base64.b64decode(payload) if header.endswith(";base64") else payload.encode()
    return content, mimetypes.guess_extension(mime, strict=False) or ".bin"


def write_outputs(urls: Sequence[str], folder: Path) -> list[Path]:
    """Write the files of one prediction to `folder`: 0001.webp, or 0001-1.webp, 0001-2.webp if there are several.

    The number is the highest number in the folder plus one. JSON holds the poses: it is called poses.json, or
    poses-0001.json with that number if there is a poses.json already. An existing file is never overwritten.
    """
    folder.mkdir(parents=True, exist_ok=True)
    used = (re.match(r"(?:poses-)?(\d+)[-.]", path.name) for path in folder.iterdir())
    number = 1 + max((int(match[1]) for match in used if match), default=0)
    files = [decode_data_url(url) for url in urls]
    pictures = sum(ending != ".json" for _, ending in files)
    paths: list[Path] = []
    index = 0
    for content, ending in files:
        if ending == ".json":
            name = f"poses-{number:04}.json" if (folder / "poses.json").exists() else "poses.json"
        else:
            index += 1
            name = f"{number:04}{ending}" if pictures == 1 else f"{number:04}-{index}{ending}"
        with (folder / name).open("xb") as file:
            file.write(content)
        paths.append(folder / name)
    return paths


# ---- the terminal


class Display:
    """Prints the server's log. A terminal shows a progress bar in one line; other outputs get its last state only."""

    def __init__(self) -> None:
        self.terminal = sys.stderr.isatty()
        self.in_bar = False

    def show(self, source: str, text: str) -> None:
        """Print one line of the server's log, unless the source is the server itself ("coglet")."""
        if source == "coglet":
            return
        text = text.strip("\r\n")
        bar = bool(PROGRESS_BAR.search(text))
        if bar and self.terminal:
            width = shutil.get_terminal_size().columns - 1
            print(f"\r\x1b[K{text[:width]}", end="", file=sys.stderr, flush=True)
            self.in_bar = True
        elif not bar or "100%" in text:
            self.end_bar()
            print(text, file=sys.stderr, flush=True)

    def end_bar(self) -> None:
        """Start a new line if the last line is a progress bar."""
        if self.in_bar:
            print(file=sys.stderr)
        self.in_bar = False


def describe_faults(answer: Any) -> list[str]:
    """Return a readable line for each fault in the body of a 422 response."""
    faults = answer["detail"] if isinstance(answer, dict) and "detail" in answer else []
    return [f"{fault['loc'][-1]}: {fault['msg']}" for fault in faults] or [str(answer)]


def describe_inputs(schemas: Json) -> str:
    """Return the list of inputs for -h."""
    lines = []
    for name, prop in schemas["Input"]["properties"].items():
        schema = _resolve(prop, schemas)
        values = "@file or URL" if schema.get("format") == "uri" else schema.get("type", "value")
        values = "|".join(map(str, schema["enum"])) if "enum" in schema else values
        default = "" if prop.get("default") in (None, "") else f", default {json.dumps(prop['default'])}"
        required = " (required)" if name in schemas["Input"].get("required", []) else ""
        lines.append(f"  {name}{required}: {values}{default}")
    return "\n".join(lines)


# ---- the command


def run(inputs: Json, output_folder: Path, environ: Mapping[str, str], root: Path = ROOT) -> int:
    """Start the server, run one prediction, write its files and return the exit code."""
    bundle, reason = choose_bundle(environ)
    if reason:
        print(reason, file=sys.stderr)
    display = Display()
    prediction_id = uuid.uuid4().hex
    with Server(dict(environ) | {BUNDLE: bundle}, root, display.show) as server:
        try:
            server.wait_ready()
            status, answer = server.predict(inputs, prediction_id)
        except ServerError as error:
            return _fail(display, str(error))
        except OSError:
            return _fail(display, "The server stopped during the prediction; it may have run out of memory.")
        except KeyboardInterrupt:
            _cancel(server, prediction_id)
            _fail(display, "Cancelled.")
            return 130
    if status == 422:
        return _fail(display, *describe_faults(answer))
    if status != 200 or answer.get("status") != "succeeded":
        error = answer.get("error") if isinstance(answer, dict) else answer
        return _fail(display, plain_error(str(error or answer)))
    return _report(display, answer, output_folder, bundle)


def _report(display: Display, answer: Json, output_folder: Path, bundle: str) -> int:
    display.end_bar()
    output = answer.get("output") or []
    try:
        paths = write_outputs([output] if isinstance(output, str) else output, output_folder)
    except OSError as error:
        return _fail(display, f"Cannot write to {output_folder}: {error.strerror}.")
    for path in paths:
        print(path)
    metrics = answer.get("metrics", {})
    seed = f"seed {metrics['seed']:.0f}, " if "seed" in metrics else ""
    print(f"{seed}bundle {bundle}, {metrics.get('predict_time', 0):.1f} s", file=sys.stderr)
    return 0


def _fail(display: Display, *lines: str) -> int:
    display.end_bar()
    print(*lines, sep="\n", file=sys.stderr)
    return 1


def _cancel(server: Server, prediction_id: str) -> None:
    try:
        server.cancel(prediction_id)
    except OSError:
        return  # the server does not listen yet, or has stopped: there is nothing to cancel
    deadline = time.monotonic() + CLEAN_UP_SECONDS
    while server.health().get("status") == "BUSY" and time.monotonic() < deadline:
        time.sleep(0.05)


def _interrupt(signum: int, frame: object) -> NoReturn:
    raise KeyboardInterrupt


def main(arguments: list[str] | None = None) -> int:
    """The command line of script/predict."""
    for signum in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, _interrupt)
    try:
        schemas = openapi_schema((ROOT / "predict.py").read_text(), cog_version=importlib.metadata.version("cog"))
    except SchemaError as error:
        sys.exit(str(error))
    schemas = schemas["components"]["schemas"]
    parser = argparse.ArgumentParser(
        prog="script/predict",
        description="Run one prediction. The bundle is CONTROLNET_BUNDLE.",
        epilog=f"inputs:\n{describe_inputs(schemas)}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "-i", "--input", action="append", default=[], metavar="name=value", help="file or text: name=@path"
    )
    parser.add_argument("-o", "--output", default="output", metavar="DIR", help="where files go (default: output)")
    parser.add_argument("--folder", default=".", help=argparse.SUPPRESS)  # script/env leaves the user's folder
    options = parser.parse_args(arguments)
    os.chdir(options.folder)
    try:
        inputs = parse_inputs(options.input, schemas)
    except ArgumentError as error:
        print(error, file=sys.stderr)
        return 2
    return run(inputs, Path(options.output).expanduser(), os.environ)


if __name__ == "__main__":
    sys.exit(main())
