"""Fixtures and options for all tests."""

from collections.abc import Iterator

import pytest
from support.server import Server


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """One real server with the tiny bundle for all tests in this process: starting it takes over ten seconds."""
    with Server({"CONTROLNET_BUNDLE": "tiny"}) as running:
        yield running


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-table", action="store_true", help="write docs/combinations.md from what the tests find")


@pytest.fixture
def update_table(request: pytest.FixtureRequest) -> bool:
    return request.config.getoption("--update-table")
