"""The playground as a process, and a browser that looks at it."""

import os
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from controlnet.serving.server import free_port
from support import ROOT

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
# Chromium would otherwise look up its maker's hosts, and as root it needs --no-sandbox.
QUIET = ("no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking")
QUIET += ("disable-component-update", "disable-sync")
START_SECONDS = 120
"""A guard against hanging: importing NiceGUI takes a second on an idle machine."""


def executable() -> str | None:
    """The browser of this machine, if it has one."""
    return next(filter(None, map(shutil.which, BROWSERS)), None)


@contextmanager
def playground(server: str, *options: str) -> Iterator[str]:
    """Run the playground in front of the server at a URL. Yields the playground's own URL."""
    port = free_port()
    command = [sys.executable, "-m", "playground", "--url", server, "--port", str(port), *options]
    # NiceGUI would take itself for a part of the tests.
    environ = {name: value for name, value in os.environ.items() if name != "PYTEST_CURRENT_TEST"}
    process = subprocess.Popen(command, cwd=ROOT, env=environ, stdin=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + START_SECONDS
        while not answers(url):
            assert process.poll() is None and time.monotonic() < deadline, "the playground did not start"
            time.sleep(0.1)
        yield url
    finally:
        process.terminate()
        process.wait(30)


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/v1/files", timeout=5):
            return True
    except OSError:
        return False


@contextmanager
def chromium() -> Iterator[Any]:
    """A headless browser, driven by playwright."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable(), args=[f"--{option}" for option in QUIET])
        yield browser
        browser.close()
