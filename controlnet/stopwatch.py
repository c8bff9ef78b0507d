"""Where a request's time goes, for the metrics of its response."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch


class Stopwatch:
    """Seconds of each phase of one request, added up by name and told as the metric timing.<phase>.

    `record` takes a metric's name and value, as Cog's record_metric does; it is called at the end of every phase, with
    the sum so far, so that a request which fails later still says how long the earlier phases took.
    """

    def __init__(self, record: Callable[[str, float], None] = lambda name, seconds: None) -> None:
        self.record = record
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """Time what happens inside. Nothing is recorded where that raises."""
        started = time.perf_counter()
        yield
        if torch.cuda.is_available():
            torch.cuda.synchronize()  # a GPU works on after the calls return
        self.seconds[phase] = self.seconds.get(phase, 0.0) + time.perf_counter() - started
        self.record(f"timing.{phase}", round(self.seconds[phase], 4))
