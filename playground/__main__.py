"""script/playground and script/replicate-api: see -h."""

import argparse
import asyncio
import os
import socket
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext, suppress
from typing import Any

import uvicorn
from fastapi import FastAPI

from controlnet.serving.api import Api, ServerError
from controlnet.serving.server import LOCALHOST, ROOT, Server, interfaces_in
from playground.cog import Cog
from playground.guard import Guard

PORT = 5001


def parsed(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="script/playground",
        description="A page in the browser for a server of this project, and Replicate's HTTP API in front of it.",
    )
    parser.add_argument("--url", help="a server that runs already, here or elsewhere (default: start one of its own)")
    parser.add_argument("-p", "--port", type=int, default=PORT, help=f"where the page is (default: {PORT})")
    parser.add_argument("--host", default=LOCALHOST, help="address to listen on (default: this machine only)")
    names = interfaces_in(ROOT)
    parser.add_argument("--interface", metavar="NAME", choices=names, help=f"of its own server: {', '.join(names)}")
    parser.add_argument("--no-page", action="store_true", help="only Replicate's API (script/replicate-api)")
    parser.add_argument("--data-urls", action="store_true", help="Replicate's API: outputs as data URLs for everyone")
    options = parser.parse_args(arguments)
    if options.url and options.interface:
        parser.error("--interface is for a server of its own; the one at --url has its interface already.")
    return options


def check_port(host: str, port: int) -> None:
    """Raises ServerError if `port` is taken."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except (OSError, OverflowError) as error:
            said = getattr(error, "strerror", None) or error
            raise ServerError(f"Cannot listen on {host}:{port}: {said}. Try --port with another one.") from error


def serve(options: argparse.Namespace, cog: Cog, folder: str) -> None:
    """Serve until Ctrl-C."""
    from playground.replicate_api.routes import routes

    @asynccontextmanager
    async def watching(_: Any = None) -> AsyncIterator[None]:
        watch = asyncio.create_task(cog.watch())
        try:
            yield
        finally:
            watch.cancel()
            with suppress(asyncio.CancelledError):
                await watch
            await cog.close()

    shown = LOCALHOST if options.host in ("0.0.0.0", "::") else options.host
    print(f"http://{shown}:{options.port}", flush=True)
    if options.host not in (LOCALHOST, "localhost", "::1"):
        print("Anybody who reaches this address can use it: it asks for no password.", file=sys.stderr, flush=True)
    api = routes(cog, folder, options.data_urls)
    if options.no_page:
        app = FastAPI(lifespan=watching, openapi_url=None)
        app.include_router(api)
        app.add_middleware(Guard, host=options.host)
        uvicorn.run(app, host=options.host, port=options.port, log_level="warning")
        return
    os.environ["NICEGUI_STORAGE_PATH"] = folder  # otherwise it would make .nicegui in the working folder
    from playground.page import run

    run(cog, api, options.host, options.port, watching)


def server_of(options: argparse.Namespace, environ: Mapping[str, str]) -> AbstractContextManager[Api]:
    """The server that the page is for."""
    return nullcontext(Api(options.url)) if options.url else Server(environ, interface=options.interface)


def last_words(server: Api) -> str:
    """What a server of our own said when it ended. "" while it runs, or if it is not ours."""
    if not isinstance(server, Server) or server.process.poll() is None:
        return ""
    said = [text for source, text in server.lines if source == "server"]
    return f"The server has ended. {said[-1] if said else ''} Start script/playground again."


def main(arguments: list[str] | None = None) -> None:
    options = parsed(arguments)
    try:
        check_port(options.host, options.port)
        with tempfile.TemporaryDirectory() as folder, server_of(options, os.environ) as server:
            serve(options, Cog(server.url, last_words=lambda: last_words(server)), folder)
    except ServerError as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        pass


if __name__ in {"__main__", "__mp_main__"}:
    main()
