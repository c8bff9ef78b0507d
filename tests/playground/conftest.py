"""One playground in front of the tests' server, and one browser for a module."""

from collections.abc import Iterator
from typing import Any

import pytest
from support import browser
from support.server import Server


@pytest.fixture(scope="session")
def playground(server: Server) -> Iterator[str]:
    """The URL of a playground for the tiny bundle."""
    with browser.playground(server.url) as url:
        yield url


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """A browser. For one module, because nothing else may run an event loop beside it."""
    if browser.executable() is None:
        pytest.skip(f"needs one of {', '.join(browser.BROWSERS)}")
    with browser.chromium() as started:
        yield started
