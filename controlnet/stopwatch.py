"""The time that each phase of a request takes, for the metrics of its response."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch


class Stopwatch:
    """Adds up the seconds of each phase of one request and records them as the metric timing.<phase>.

    `record` takes a metric's name and value, like Cog's record_metric. It is called at the end of every phase with the
    sum so far. So a request that fails still has the metrics of the phases before.
    """

    def __init__(self, record: Callable[[str, float], None] = lambda name, seconds: None) -> None:
        self.record = record
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """Time the block. Nothing is recorded if it raises."""
        started = time.perf_counter()
        yield
        if torch.cuda.is_available():
            torch.cuda.synchronize()  # the calls return before the GPU has finished
        self.seconds[phase] = self.seconds.get(phase, 0.0) + time.perf_counter() - started
        self.record(f"timing.{phase}", round(self.seconds[phase], 4))
