"""What script/bench/speed measures time with, and how runs of several sides take turns."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch


class Clock(Protocol):
    """Marks points in time."""

    name: str

    def mark(self) -> Any:
        """This moment."""
        ...

    def seconds(self, start: Any, end: Any) -> float:
        """The time between two marks."""
        ...


class ProcessorClock:
    """The processor time of this process: other work on the machine does not count, waiting neither."""

    name = "processor time"

    def mark(self) -> float:
        return time.process_time()

    def seconds(self, start: float, end: float) -> float:
        return end - start


class CudaClock:
    """CUDA events, which the GPU sets when it comes to them."""

    name = "CUDA events"

    def mark(self) -> Any:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def seconds(self, start: Any, end: Any) -> float:
        end.synchronize()
        return start.elapsed_time(end) / 1000


@dataclass(frozen=True)
class Times:
    """Seconds of each counted run of one side."""

    runs: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.runs)

    @property
    def spread(self) -> tuple[float, float]:
        """The shortest and the longest run."""
        return min(self.runs), max(self.runs)


def take_turns(sides: Mapping[str, Callable[[], Any]], rounds: int, clock: Clock) -> dict[str, Times]:
    """Run each side `rounds` times in turn, every other round in the opposite order. All should have run before."""
    runs: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds):
        for name in list(sides)[:: -1 if number % 2 else 1]:
            start = clock.mark()
            sides[name]()
            runs[name].append(clock.seconds(start, clock.mark()))
    return {name: Times(tuple(each)) for name, each in runs.items()}
