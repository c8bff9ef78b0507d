"""A batch from its jobs to results.jsonl: Ray Data gives each job to an actor that has the bundle loaded."""

import json
import logging
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tqdm import tqdm

from controlnet.batch.cluster import connected, open_switch, places_for_actors, ray
from controlnet.batch.folder import DONE, FAILED, PICTURES, Folder
from controlnet.batch.jobs import Batch, Job
from controlnet.batch.results import write_results
from controlnet.batch.worker import Worker

MOST_BLOCKS = 5000
"""Into how many blocks jobs are divided at most. A block of one is given to the next free actor; fewer cost less."""
RETRIES = 1
"""How often Ray gives a job whose process ended to the actor in its place."""
MORE_PASSES = 2
"""How often jobs are tried again that nobody has finished. Those of a machine that was lost wait for an actor there."""


def run(batch: Batch) -> Counter[str]:
    """Make what is not there yet, then results.jsonl. Returns how many jobs succeeded, failed, or were left."""
    folder, stopping = Folder(batch.out), Stopping()
    with folder.claimed():
        for inner in (DONE, FAILED, PICTURES):
            folder.remove_partial(inner)
        wanted = _wanted(batch, over := folder.names(DONE))
        _say_what_is_over(batch.jobs, wanted, over, folder.names(FAILED))
        if wanted:
            with stopping.on_interrupt(), connected(batch.address, batch.environ):
                _make(batch, wanted, stopping)
                for _ in range(MORE_PASSES):
                    over = folder.names(DONE) | folder.names(FAILED)
                    if not stopping.asked and (lost := _wanted(batch, over)):
                        _make(batch, lost, stopping)
        return write_results(folder, batch.jobs, stopping.asked)


def _say_what_is_over(jobs: Sequence[Job], wanted: Sequence[Job], over: set[str], failed: set[str]) -> None:
    """Tell a run that carries on from a new one."""
    before = sum(job.fault is None and f"{job.name}.json" in over for job in jobs)
    again = sum(f"{job.name}.json" in failed for job in wanted)
    if before or again:
        tried = f", and {again} that failed are tried again" if again else ""
        print(f"{before} of {len(jobs)} jobs were over before this run{tried}.", file=sys.stderr)


def _wanted(batch: Batch, over: set[str]) -> list[Job]:
    """The jobs without a record in `over`, each once."""
    named = {job.name: job for job in batch.jobs if job.fault is None}
    return [job for name, job in named.items() if f"{name}.json" not in over]


def _make(batch: Batch, jobs: list[Job], stopping: "Stopping") -> None:
    most, resources = places_for_actors(batch.threads)
    actors = min(batch.actors or most, len(jobs))
    stopping.switch = switch = open_switch()
    stopped = _Stopped(switch)
    worker: Any = Worker  # Ray's annotation wants an object that is called
    made = _dataset(jobs).map(
        worker,
        fn_constructor_args=(batch.bundle, batch.out, batch.files, stopped),
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=actors, initial_size=actors),
        ray_remote_args_fn=lambda: {"max_task_retries": RETRIES},
        **resources,
    )
    _follow(made.iter_rows(), len(jobs), lambda: min(actors, places_for_actors(batch.threads)[0]))


def _follow(rows: Iterable[dict[str, Any]], total: int, actors: Callable[[], int]) -> None:
    """Show the progress of a batch until its end, or until a batch that is being stopped makes nothing any more."""
    idle, failed = set(), 0
    pause = 0.5 if sys.stderr.isatty() else 10
    with tqdm(total=total, unit=" jobs", file=sys.stderr, smoothing=0, mininterval=pause) as bar:
        for row in rows:
            if row["status"] == "left":
                # An actor that leaves a job has ended the one before. Once all have, nothing is being made.
                idle.add(row["worker"])
                if len(idle) >= actors():  # fewer than at first, if a machine was lost
                    return
                continue
            if bar.n == 0:
                bar.start_t = time.time()  # loading the models says nothing about the jobs to come
            failed += row["status"] == "failed"
            bar.set_postfix_str(f"{failed} failed" if failed else "", refresh=False)
            bar.update()


def _dataset(jobs: list[Job]) -> "ray.data.Dataset":
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.max_errored_blocks = -1  # a job whose process ended again and again; results.jsonl says so
    context.max_tasks_in_flight_per_actor = 2  # the next job waits at the actor
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    rows = [{"name": job.name, "inputs": json.dumps(job.inputs)} for job in jobs]
    return ray.data.from_items(rows, override_num_blocks=min(len(rows), MOST_BLOCKS))


@dataclass(frozen=True)
class _Stopped:
    """Whether the batch is being stopped, asked from a worker."""

    switch: Any

    def __call__(self) -> bool:
        return ray.get(self.switch.is_on.remote())


class Stopping:
    """Ctrl-C: the first lets the jobs end that are being made, the second ends the batch at once."""

    def __init__(self) -> None:
        self.asked = False
        self.switch: Any = None

    @contextmanager
    def on_interrupt(self) -> Iterator[None]:
        """Take interrupts for the time of the block, instead of KeyboardInterrupt."""
        before: Callable | int | None = signal.signal(signal.SIGINT, self._interrupted)
        try:
            yield
        except KeyboardInterrupt:
            pass
        finally:
            signal.signal(signal.SIGINT, before)

    def _interrupted(self, *signalled: object) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        print("\nEnding the jobs that are being made. Ctrl-C again ends at once.", file=sys.stderr)
        if self.switch is None:
            raise KeyboardInterrupt
        self.switch.turn_on.remote()
