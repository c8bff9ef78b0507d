"""script/predict: one prediction from the command line, in this process or on a server that runs already."""

import argparse
import atexit
import os
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from controlnet.command import remote
from controlnet.command.display import Display
from controlnet.command.output_files import File, check_folder, write_files
from controlnet.serving.api import Api, ServerError
from controlnet.serving.arguments import ArgumentError, describe_inputs, parse_inputs
from controlnet.serving.schema import openapi_schema
from controlnet.settings import Settings
from controlnet.weights.files import check_chosen
from controlnet.weights.manifest import choose_bundle

ROOT = Path(__file__).resolve().parents[2]
WIDEST_HELP = 100

Json = dict[str, Any]


class _Interrupts:
    """Ctrl-C and the other signals that end a command: each raises KeyboardInterrupt."""

    def __init__(self) -> None:
        self.came = False
        # Python ends itself with SIGINT if an interrupt has passed through code that it runs from a string, even if the
        # interrupt was caught.
        atexit.register(lambda: os._exit(130) if self.came else None)  # first, so it runs after all others
        for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(signum, self._raise)

    def _raise(self, signum: int, frame: object) -> NoReturn:
        self.came = True
        sys.unraisablehook = lambda _: None  # such as of a progress bar that is half made and cannot close
        raise KeyboardInterrupt

    def check(self) -> None:
        """Raise the interrupt again if a finalizer or a library's `except:` has swallowed it."""
        if self.came:
            raise KeyboardInterrupt


def make(inputs: Json, display: Display, check: Callable[[], None]) -> tuple[list[File], Json]:
    """Load the bundle that the environment chooses, and run one prediction in this process: its files and metrics.

    `check` is called when the bundle is loaded, and may raise an interrupt.
    """
    with display.instead_of_output():
        settings = Settings.read()
        with display.loading(*choose_bundle(settings.bundle)):
            from controlnet import startup  # only now, because it imports torch
            from controlnet.api.opened import OpenModel

            model = OpenModel(settings, log=True)
            startup.hide_what_is_loaded()
            check()
        started = time.monotonic()
        pictures = model.make(inputs)
        files = [(content, Path(name).suffix) for name, content in pictures.files().items()]
        return files, pictures.metrics | {"predict_time": time.monotonic() - started}


def _run(options: argparse.Namespace, schemas: Json, display: Display, check: Callable[[], None]) -> None:
    os.chdir(options.folder)
    folder = Path(options.output).expanduser()
    if options.url is None:
        inputs = parse_inputs(options.input, schemas)
        check_folder(folder)
        check_chosen(Settings.read())  # so does opening it, but after torch is imported
        files, metrics = make(inputs, display, check)
    else:
        api = Api(options.url)
        theirs = api.schemas(schemas["Input"]["required"], lambda: display.say("The server is still loading."))
        inputs = parse_inputs(options.input, theirs)
        check_folder(folder)
        files, metrics = remote.make(api, inputs, display)
    check()
    display.end_line()
    for path in write_files(files, folder):
        print(path, flush=True)
    seed = f"seed {metrics['seed']:.0f}, " if "seed" in metrics else ""
    bundle = f"bundle {metrics['bundle']} on {metrics.get('device')}, " if "bundle" in metrics else ""
    display.say(f"{seed}{bundle}{metrics.get('predict_time', 0):.1f} s")


def _told(error: BaseException, verbose: bool) -> str:
    """An error for the user: its message, without the indented lines that name each missing file unless `verbose`."""
    if isinstance(error, ServerError):
        return str(error)
    if verbose:
        ours = type(error).__module__.startswith("controlnet.")
        return str(error) if ours else "".join(traceback.format_exception(error)).rstrip()
    return " ".join(line for line in str(error).splitlines() if not line.startswith(" "))


# ---- the command line


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
    parser.add_argument("--url", help="ask this server instead of loading the bundle, such as http://localhost:5000")
    parser.add_argument("-v", "--verbose", action="store_true", help="show the whole log")
    parser.add_argument("--folder", default=".", help=argparse.SUPPRESS)  # script/env leaves the user's folder
    return parser


def main(arguments: list[str] | None = None) -> int:
    """The command line of script/predict. Returns 0, 1 if there is no picture, 2 for wrong options, 130 for Ctrl-C."""
    interrupts = _Interrupts()
    schemas = openapi_schema((ROOT / "predict.py").read_text("utf-8"))["components"]["schemas"]
    options = _parser(schemas).parse_args(arguments)
    display = Display(options.verbose)
    try:
        _run(options, schemas, display, interrupts.check)
        return 0
    except ArgumentError as error:
        display.say(str(error))
        return 2
    except (KeyboardInterrupt, Exception) as error:
        if interrupts.came:  # whatever a library has made of the interrupt
            display.say(str(error) if isinstance(error, remote.NotCancelled) else "Cancelled.")
            return 130
        display.say(_told(error, options.verbose))
        return 1


if __name__ == "__main__":
    sys.exit(main())
