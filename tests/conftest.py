"""Fixtures and options for all tests."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from random_bundle import write_bundle
from support.server import Server


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One real server with the tiny bundle for all tests in this process: starting it takes over ten seconds.

    It fetches LoRAs from this machine, over HTTP.
    """
    cache = str(tmp_path_factory.mktemp("loras"))
    loras = {"CONTROLNET_LORA_HOSTS": "http://127.0.0.1:*", "CONTROLNET_LORA_CACHE": cache}
    with Server({"CONTROLNET_BUNDLE": "tiny"} | loras) as running:
        yield running


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-table", action="store_true", help="write docs/combinations.md from what the tests find")


@pytest.fixture
def update_table(request: pytest.FixtureRequest) -> bool:
    return request.config.getoption("--update-table")


@pytest.fixture(scope="session")
def tiny_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with small random weights of the tiny bundle, which no test changes."""
    folder = tmp_path_factory.mktemp("tiny")
    write_bundle("tiny", folder, small=True)
    return folder
