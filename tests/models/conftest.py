"""A bundle of random weights that the tests of several modules read. It is not changed."""

from pathlib import Path

import pytest
from random_bundle import write_bundle


@pytest.fixture(scope="session")
def tiny_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with small random weights of the tiny bundle."""
    folder = tmp_path_factory.mktemp("tiny")
    write_bundle("tiny", folder, small=True)
    return folder
