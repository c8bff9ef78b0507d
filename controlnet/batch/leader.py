"""A batch in a process of its own: Ray ends the process that leads one, without a word, if its head is killed."""

import os
import signal
import threading
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

import psutil

from controlnet.batch.folder import Folder, FolderError
from controlnet.batch.jobs import Batch, BatchError
from controlnet.batch.results import write_results

Work = Callable[[Batch], Counter[str]]
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_LOOK_EVERY = 2.0
"""Seconds between two looks at the processes that the leader has started."""


class RayLost(RuntimeError):
    """Ray was lost in the middle of a batch. The message says what is there."""


def run_batch(batch: Batch) -> Counter[str]:
    """controlnet.batch.run.run, which is imported only now, because it imports Ray and torch."""
    from controlnet.batch.run import run

    return run(batch)


def lead(batch: Batch, work: Work = run_batch) -> Counter[str]:
    """What work(batch) returns: how many jobs succeeded, failed, or were left. It runs in another process.

    Ctrl-C and the signals that end a process are handed on to it. Raises its BatchError or FolderError. Raises RayLost
    if it ended without a word, once results.jsonl has the jobs that are over, and nothing that it started is left.
    """
    context = get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    leader = context.Process(target=_lead, args=(work, batch, sender))
    started: set[psutil.Process] = set()
    with _handing_on(leader) as handed_on:
        leader.start()
        sender.close()
        while leader.exitcode is None:
            with suppress(psutil.Error):  # it has just ended
                started.update(psutil.Process(leader.pid).children(recursive=True))
            leader.join(_LOOK_EVERY)
    with suppress(EOFError):
        said = receiver.recv()
        if isinstance(said, Exception):
            raise said
        return said
    for process in started:
        with suppress(psutil.Error):
            process.kill()  # not another one that has its number: psutil knows when each was started
    folder = Folder(batch.out)
    with folder.claimed():
        counts = write_results(folder, batch.jobs, stopped=True)
    if handed_on:
        return counts
    raise RayLost(
        f"Ray ended in the middle of the batch, and {counts['left']} jobs are left: the same command carries on. Its "
        "head may have been killed because memory was short."
    )


def _lead(work: Work, batch: Batch, sender: Connection) -> None:
    """In the leader: do the work, and send what came of it."""
    os.setpgrp()  # a terminal's Ctrl-C reaches it through lead() alone, once
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        said: Counter[str] | Exception = work(batch)
    except (BatchError, FolderError) as error:
        said = error
    except KeyboardInterrupt:
        return
    except Exception as error:
        traceback.print_exc()
        said = BatchError(f"The batch failed ({type(error).__name__}), see above.")
    sender.send(said)


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)  # and Ray with it


@contextmanager
def _handing_on(process: BaseProcess) -> Iterator[list[int]]:
    """Hand signals on to a process, once it is started, during the block. Gives the list of those that came."""
    came: list[int] = []

    def hand_on(signum: int, frame: object) -> None:
        if process.pid is None:
            raise KeyboardInterrupt
        came.append(signum)
        with suppress(ProcessLookupError):
            os.kill(process.pid, signum)

    heard = [each for each in _SIGNALS if signal.getsignal(each) is not signal.SIG_IGN]
    before = {each: signal.signal(each, hand_on) for each in heard}
    try:
        yield came
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
