"""torch.compile in tests: its settings, functions and counters are those of one test."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch._inductor import config as inductor
from torch.fx.experimental import _config as shapes


@contextmanager
def compiling() -> Iterator[None]:
    """Whatever is set or compiled inside is gone afterwards."""
    dynamo = torch._dynamo.config
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    try:
        with (
            dynamo.patch(recompile_limit=dynamo.recompile_limit),
            shapes.patch(use_duck_shape=shapes.use_duck_shape),
            inductor.patch(compile_threads=inductor.compile_threads),
        ):
            yield
    finally:
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
