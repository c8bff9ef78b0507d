"""Bundles of random weights that the tests of several modules read. They are not changed."""

from pathlib import Path

import pytest
from random_bundle import write_bundle


@pytest.fixture(scope="session")
def sd15_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with small random weights of the sd15 bundle."""
    folder = tmp_path_factory.mktemp("sd15")
    write_bundle("sd15", folder, small=True)
    return folder
