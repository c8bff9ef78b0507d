"""One playground in front of the tests' server, and one browser for a module."""

from collections.abc import Iterator
from typing import Any

import pytest
from support import browser
from support.server import Server
from support.tab import Tab


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


@pytest.fixture
def tab(chromium: Any, playground: str) -> Iterator[Tab]:
    """A new tab. At its end, nothing went wrong in it and no request has left the machine."""
    context = chromium.new_context(viewport={"width": 1280, "height": 1000})
    opened = Tab(context.new_page(), playground)
    yield opened
    assert opened.wrong == []
    assert {url for url in opened.asked if not url.startswith((playground, "data:", "blob:"))} == set()
    context.close()
