"""What all tests of annotators share: one thread, and networks in the published file layout with random weights."""

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest
import torch
from annotator_weights import make_part

from controlnet.maps.annotators import ANNOTATORS, Annotator


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Networks this small gain nothing from threads, and on a busy machine threads wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """folder_of(part): the folder of a bundle's part, written on first use."""
    root = tmp_path_factory.mktemp("bundle")
    return cache(lambda part: make_part(part, root))


@pytest.fixture(scope="session")
def loaded(folder_of: Callable[[str], Path]) -> Callable[[str], Annotator]:
    """loaded(kind): the annotator on the CPU, loaded on first use. Tests must not change its networks."""
    return cache(lambda kind: ANNOTATORS[kind].load(folder_of, torch.device("cpu")))
