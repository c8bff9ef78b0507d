"""Cog's HTTP server outside a container, started in the same way and with the same checks of every request.

`python -m controlnet.serving.server [--host HOST] [-p PORT] [--upload-url URL]` chooses the bundle, writes the schema
that the server validates requests with, prints its URL and becomes the server. `Server` runs that command as a child
process.
"""

import argparse
import importlib.metadata
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path

from controlnet.serving.api import Api, ServerError, is_starting
from controlnet.serving.schema import PREDICTOR, SchemaError, write_schema
from controlnet.settings import Settings, SettingsError
from controlnet.weights.manifest import BUNDLE, ManifestError, choose_bundle

ROOT = Path(__file__).resolve().parents[2]
LOCALHOST = "127.0.0.1"

# Cog warns about these names at every start. This project keeps them, because cog-safe-push needs `predict:`.
QUIET = ",".join(f"ignore:{name} is deprecated:DeprecationWarning" for name in ("BasePredictor", "Predictor.predict()"))


def free_port() -> int:
    """Return a free port of this machine."""
    with socket.socket() as probe:
        probe.bind((LOCALHOST, 0))
        return probe.getsockname()[1]


# ---- becoming the server


def serve(host: str, port: int, upload_url: str | None = None, announced: bool = True, target: str = PREDICTOR) -> None:
    """Replace this process with a server of ./predict.py, or of the interface in `target`.

    Raises ServerError or SchemaError.

    If there is an upload_url, the server PUTs output files there instead of answering with data URLs. The
    server's own URL is printed if `announced`.
    """
    _check_port(host, port)
    name, reason = choose_bundle(Settings.read().bundle)
    if reason:
        print(f"bundle {name}: {reason}", file=sys.stderr, flush=True)
    write_schema(Path.cwd(), importlib.metadata.version("cog"), target)
    if announced:
        print(f"http://{LOCALHOST if host == '0.0.0.0' else host}:{port}", flush=True)
    os.environ |= {
        BUNDLE: name,
        "COG_PREDICT_TYPE_STUB": target,
        "PORT": str(port),
        "PYTHONWARNINGS": ",".join(filter(None, (os.environ.get("PYTHONWARNINGS"), QUIET))),
        # The server starts its worker as `python` from PATH, not with the interpreter that it runs under.
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
    }
    upload = [f"--upload-url={upload_url}"] if upload_url else []
    os.execv(sys.executable, [sys.executable, "-m", "cog.server.http", f"--host={host}", *upload])


def interfaces_in(root: Path) -> dict[str, str]:
    """Each interface in root/interfaces by its name, as Cog names a predictor: interfaces/jagilley.py:Canny."""
    found = {}
    for file in sorted(root.glob("interfaces/*.py")):
        for name in re.findall(r"^class (\w+)\(BasePredictor\):", file.read_text("utf-8"), re.MULTILINE):
            own = "" if name == "Predictor" else f"-{name.lower()}"
            found[f"{file.stem}{own}"] = f"{file.relative_to(root)}:{name}"
    return found


def _check_port(host: str, port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            reason = error.strerror.lower() if error.strerror else "no reason given"
            raise ServerError(f"Cannot listen on port {port}: {reason}. Try script/serve -p PORT.") from error


def _end_with_stdin() -> None:
    """Start a process that kills this process group when stdin closes, which means that the client has ended.

    Killing the server alone is not enough: its worker is a separate process and lives until its prediction ends.
    """
    if os.fork() == 0:
        silence = os.open(os.devnull, os.O_RDWR)
        os.dup2(silence, 1)  # otherwise the client would wait for the end of the log
        os.dup2(silence, 2)
        os.read(0, 1)
        os.killpg(0, signal.SIGKILL)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)


def main(arguments: list[str] | None = None) -> None:
    """The command line of script/serve."""
    parser = argparse.ArgumentParser(
        prog="script/serve", description="Serve predictions over HTTP. The bundle is CONTROLNET_BUNDLE."
    )
    parser.add_argument("-p", "--port", type=int, default=os.environ.get("PORT", "5000"), help="default: 5000")
    parser.add_argument(
        "--host", default=LOCALHOST, help="address to listen on, 0.0.0.0 for all (default: this machine only)"
    )
    parser.add_argument("--upload-url", metavar="URL", help="PUT output files here instead of sending data URLs")
    interfaces = interfaces_in(Path.cwd())
    parser.add_argument(
        "--interface",
        metavar="NAME",
        choices=interfaces,
        help=f"take the inputs of another model: {', '.join(interfaces)}",
    )
    parser.add_argument("--end-with-stdin", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.end_with_stdin:
        _end_with_stdin()
    try:
        target = interfaces.get(options.interface, PREDICTOR)
        serve(options.host, options.port, options.upload_url, announced=not options.end_with_stdin, target=target)
    except (SchemaError, ServerError, SettingsError, ManifestError) as error:
        sys.exit(str(error))


# ---- the server as a child


class Server(Api):
    """A server of root/predict.py as a child process, on a free port of 127.0.0.1. Leaving the block stops it.

    Entering does not wait until the server is ready: call wait_ready().
    """

    def __init__(
        self,
        environ: Mapping[str, str] = os.environ,
        root: Path = ROOT,
        interface: str | None = None,
    ) -> None:
        self.environ = dict(environ)
        self.root = root
        self.interface = interface
        super().__init__(f"http://{LOCALHOST}:{free_port()}")
        self.lines: list[tuple[str, str]] = []
        """The (source, text) of each line of the log so far. The source is "setup", "prediction" or "user" for what
        predict.py prints, "coglet" for the server's own log, and "server" for the rest."""

    def __enter__(self) -> "Server":
        search = [str(ROOT), self.environ.get("PYTHONPATH", "")]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "controlnet.serving.server", f"--host={LOCALHOST}"]
            + [f"--port={self.port}", "--end-with-stdin"]
            + ([f"--interface={self.interface}"] if self.interface else []),
            cwd=self.root,
            env=self.environ | {"PYTHONPATH": os.pathsep.join(filter(None, search)), "PYTHONUNBUFFERED": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C must not reach it: the client cancels the prediction first
        )
        self.reader = threading.Thread(target=self._read_log, daemon=True)
        self.reader.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    def stop(self, patience: float = 3.0) -> None:
        """Stop the server and all processes that it started, after `patience` seconds at the latest."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(patience)
            except subprocess.TimeoutExpired:
                pass  # it is busy and would wait for the prediction to end
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass  # all have ended
        self.process.wait()
        if self.process.stdin:
            self.process.stdin.close()
        self.reader.join(patience)

    def _read_log(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as log:
            for raw in log:
                self.lines.append(_log_line(raw.decode(errors="replace").rstrip("\n")))

    def wait_ready(self) -> None:
        """Wait until setup() has finished. Raises ServerError with its message if it failed or the server stopped."""
        while is_starting(self.health()):
            if self.process.poll() is not None:
                self.reader.join(1.0)
                said = [text for source, text in self.lines if source == "server"]
                raise ServerError(said[-1] if said else "The server stopped without a message.")
            time.sleep(0.02)


def _log_line(line: str) -> tuple[str, str]:
    """Split one line of the server's output, JSON or not, into its source and text."""
    try:
        record = json.loads(line)
        fields = record["fields"]
        target = record["target"].removeprefix("coglet::")
        printed = "source" in fields or target == "user"  # "user": the server does not know during which call
        return (target if printed else "coglet"), str(fields["message"])
    except (ValueError, KeyError, TypeError):
        return "server", line


if __name__ == "__main__":
    main()
