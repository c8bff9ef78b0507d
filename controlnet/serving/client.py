"""script/predict: one prediction from the command line, with the same server and checks as in production."""

import argparse
import os
import shutil
import signal
import sys
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

from controlnet.serving.api import FAILURES, Api, ServerError, describe_faults, plain_error
from controlnet.serving.arguments import ArgumentError, describe_inputs, parse_inputs
from controlnet.serving.display import Display
from controlnet.serving.output_files import write_outputs
from controlnet.serving.schema import SchemaError, openapi_schema
from controlnet.serving.server import ROOT, Server
from controlnet.settings import Settings
from controlnet.weights.files import check_chosen
from controlnet.weights.lockfile import WeightsError
from controlnet.weights.manifest import BUNDLE, ManifestError, choose_bundle

CLEAN_UP_SECONDS = 3.0
"""How long to wait for a cancelled prediction to clean up before the command's own server is stopped."""
CANCEL_SECONDS = 15.0
"""How long to cancel a prediction of another server until it is over."""
BUSY_SECONDS = 60.0
"""How long to wait for a server that works for somebody else."""
FOLLOW_SECONDS = 0.2
"""Time between two looks at the log of another server's prediction."""
WIDEST_HELP = 100

Json = dict[str, Any]


def run(inputs: Json, output_folder: Path, environ: Mapping[str, str], root: Path = ROOT, verbose: bool = False) -> int:
    """Start a server, run one prediction, write its files and return the exit code."""
    bundle, reason = choose_bundle(environ.get(BUNDLE, ""))
    display = Display(verbose)
    display.start_loading(bundle)

    def predict(prediction_id: str) -> tuple[int, Any]:
        server.wait_ready()
        display.loaded(reason)
        return server.predict(inputs, prediction_id)

    with Server(dict(environ) | {BUNDLE: bundle}, root, display.show) as server:
        ending = _predict(predict, server, CLEAN_UP_SECONDS, output_folder, display)
    return ending()


def run_at(api: Api, inputs: Json, output_folder: Path, verbose: bool = False) -> int:
    """Run one prediction on a server that is ready, write its files and return the exit code."""
    display = Display(verbose)
    over = threading.Event()

    def predict(prediction_id: str) -> tuple[int, Any]:
        threading.Thread(target=_follow, args=(api, prediction_id, display, over), daemon=True).start()
        try:
            return api.predict(inputs, prediction_id, BUSY_SECONDS, on_busy=waiting)
        finally:
            over.set()

    def waiting() -> None:
        display.say(f"The server is busy. Trying again for up to {BUSY_SECONDS:.0f} s.")

    return _predict(predict, api, CANCEL_SECONDS, output_folder, display)()


def _follow(api: Api, prediction_id: str, display: Display, over: threading.Event) -> None:
    """Show the log of a running prediction until it is over."""
    pause = FOLLOW_SECONDS
    while not over.wait(pause):
        started = time.monotonic()
        try:
            logs = api.logs_of(prediction_id)
        except FAILURES:
            continue
        if logs and not over.is_set():
            display.catch_up(logs, complete=False)
        # The answers repeat the inputs, pictures too, so over a slow line they must not be asked for all the time.
        pause = max(FOLLOW_SECONDS, 5 * (time.monotonic() - started))


Ending = Callable[[], int]
"""Says how the command ended and returns the exit code. It is called once the command's own server has stopped."""


def _predict(
    predict: Callable[[str], tuple[int, Any]], api: Api, patience: float, output_folder: Path, display: Display
) -> Ending:
    """Run predict(prediction_id), and write the files if it succeeds."""
    prediction_id = uuid.uuid4().hex
    try:
        status, answer = predict(prediction_id)
    except ServerError as error:
        return _failing(display, str(error) if display.verbose else _without_details(str(error)))
    except FAILURES:
        return _failing(display, "The server stopped during the prediction; it may have run out of memory.")
    except KeyboardInterrupt:
        over = api.cancel_until_over(prediction_id, patience)
        said = "Cancelled." if over else f"Interrupted. The server did not end the prediction within {patience:.0f} s."
        return _failing(display, said, code=130)
    if status == 422:
        return _failing(display, *describe_faults(answer))
    if status == 409:
        return _failing(display, f"The server at {api.url} is busy. Try again later.")
    if status != 200 or not isinstance(answer, dict) or answer.get("status") != "succeeded":
        error = answer.get("error") if isinstance(answer, dict) else answer
        return _failing(display, plain_error(str(error or f"The server answered with HTTP status {status}.")))
    return _report(display, answer, output_folder)


def _report(display: Display, answer: Json, output_folder: Path) -> Ending:
    display.catch_up(answer.get("logs") or "")
    display.end_line()
    output = answer.get("output") or []
    try:
        paths = write_outputs([output] if isinstance(output, str) else output, output_folder)
    except OSError as error:
        return _failing(display, f"Cannot write to {output_folder}: {error.strerror}.")
    except ServerError as error:
        return _failing(display, str(error))
    for path in paths:
        print(path, flush=True)
    metrics = answer.get("metrics", {})
    seed = f"seed {metrics['seed']:.0f}, " if "seed" in metrics else ""
    bundle = f"bundle {metrics['bundle']} on {metrics.get('device')}, " if "bundle" in metrics else ""
    display.say(f"{seed}{bundle}{metrics.get('predict_time', 0):.1f} s")
    return lambda: 0


def _without_details(text: str) -> str:
    """A message without its indented lines, such as those that name each missing file."""
    return " ".join(line for line in text.splitlines() if not line.startswith(" "))


def _failing(display: Display, *lines: str, code: int = 1) -> Ending:
    def say() -> int:
        display.say(*lines)
        return code

    return say


# ---- the command line


def _interrupt(signum: int, frame: object) -> NoReturn:
    raise KeyboardInterrupt


def _parser(schemas: Json) -> argparse.ArgumentParser:
    width = min(shutil.get_terminal_size().columns, WIDEST_HELP)
    parser = argparse.ArgumentParser(
        prog="script/predict",
        usage="script/predict [-v] [--url URL] [-o DIR] -i name=value ...",
        description="Run one prediction. The bundle is CONTROLNET_BUNDLE.",
        epilog=f"inputs:\n{describe_inputs(schemas, width)}",
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, width=width),
    )
    pairs = "an input, see below; a file is @path or a URL, a text may be in a file (@path), and @@ is a literal @"
    parser.add_argument("-i", "--input", action="append", default=[], metavar="name=value", help=pairs)
    parser.add_argument("-o", "--output", default="output", metavar="DIR", help="where files go (default: output)")
    parser.add_argument("--url", help="use this server instead of starting one, such as http://localhost:5000")
    parser.add_argument("-v", "--verbose", action="store_true", help="show the whole log")
    parser.add_argument("--folder", default=".", help=argparse.SUPPRESS)  # script/env leaves the user's folder
    return parser


def main(arguments: list[str] | None = None) -> int:
    """The command line of script/predict."""
    for signum in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, _interrupt)
    verbose = False
    try:
        schemas = openapi_schema((ROOT / "predict.py").read_text("utf-8"))["components"]["schemas"]
        options = _parser(schemas).parse_args(arguments)
        verbose = options.verbose
        os.chdir(options.folder)
        output_folder = Path(options.output).expanduser()
        if options.url is None:
            inputs = parse_inputs(options.input, schemas)
            check_chosen(Settings.read())  # the server says the same, but after it has imported torch
            return run(inputs, output_folder, os.environ, verbose=options.verbose)
        api = Api(options.url)
        loading = "The server is still loading."
        theirs = api.schemas(schemas["Input"]["required"], lambda: print(loading, file=sys.stderr, flush=True))
        return run_at(api, parse_inputs(options.input, theirs), output_folder, options.verbose)
    except ArgumentError as error:
        print(error, file=sys.stderr)
        return 2
    except (SchemaError, ServerError, ManifestError) as error:
        print(error, file=sys.stderr)
        return 1
    except WeightsError as error:
        print(error if verbose else _without_details(str(error)), file=sys.stderr)
        return 1
    except KeyboardInterrupt:  # before a prediction, or again while one was cancelled
        return 130


if __name__ == "__main__":
    sys.exit(main())
