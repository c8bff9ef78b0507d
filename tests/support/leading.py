"""What a leader of a batch may do, for tests that start one: its process imports this module."""

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from controlnet.batch.folder import FolderError
from controlnet.batch.jobs import Batch


def makes_all(batch: Batch) -> Counter[str]:
    return Counter(succeeded=len(batch.jobs), failed=os.getpid() != os.getpgrp())


def refuses(batch: Batch) -> Counter[str]:
    raise FolderError("no such place")


def breaks(batch: Batch) -> Counter[str]:
    raise ZeroDivisionError


def is_ended_with_its_agent_left(batch: Batch) -> Counter[str]:
    """As Ray ends it: without a Python exception, and with a process of another session left."""
    agent = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    Path(batch.out, "agent").write_text(str(agent.pid))
    Path(batch.out, "done", f"{batch.jobs[0].name}.json").write_text('{"status": "succeeded"}')
    time.sleep(6)
    os._exit(1)


def counts_interrupts(batch: Batch) -> Counter[str]:
    """Until there has been none for a while."""
    heard: list[int] = []
    signal.signal(signal.SIGINT, lambda *signalled: heard.append(1))
    Path(batch.out, "ready").touch()
    deadline = time.monotonic() + 120
    while not heard and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(1)
    return Counter(left=len(heard))


def waits(batch: Batch) -> Counter[str]:
    Path(batch.out, "ready").write_text(str(os.getpid()))
    time.sleep(600)
    return Counter()
