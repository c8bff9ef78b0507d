"""Tests that need a CUDA card. On other machines they are skipped.

`CONTROLNET_GPU_WEIGHTS=DIR script/test tests/gpu` uses the sd15 bundle in DIR, trained or random. Without it, the
bundle is first written with random numbers (18 GB). With reference pictures, it has the files for them, too.
"""

import os
from pathlib import Path

import pytest
import torch
from random_bundle import write_bundle


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        for item in items:
            if Path(__file__).parent in item.path.parents:
                item.add_marker(pytest.mark.skip(reason="no CUDA card"))


@pytest.fixture(scope="session")
def sd15(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that has the bundle sd15 at full size."""
    if given := os.environ.get("CONTROLNET_GPU_WEIGHTS"):
        return Path(given)
    folder = tmp_path_factory.mktemp("sd15")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CONTROLNET_REFERENCE", "1")
        write_bundle("sd15", folder)
    return folder


@pytest.fixture(autouse=True)
def without_gradients():
    with torch.no_grad():
        yield
