"""Fetch a LoRA within a request: without a thread, within a total time, and ended at once by a cancellation."""

import json
import os
import pickle
import subprocess
import sys
import time
from pathlib import Path
from typing import BinaryIO

from controlnet.log import say
from controlnet.weights.lora_files import FileRefused, LoraError, LoraNotFetched
from controlnet.weights.lora_sources import RemoteSource

MOST_SECONDS = 300.0
"""For the whole fetch, tries and waits included. 500 MB need 1.7 MB/s."""
_SAY_EVERY = 2.0
"""Seconds between two lines about a fetch."""
_LOOK_EVERY = 0.05
"""Seconds. A cancellation comes between two looks."""
_ROOT = Path(__file__).resolve().parents[2]


def fetch(source: RemoteSource, file: BinaryIO, name: str) -> str:
    """Write what lies at an address to an empty file, and return its SHA-256. `name` is the input's, for the log.

    Raises LoraNotFetched for what may pass later, FileRefused for a file that is not taken, another LoraError for other
    refusals, and OSError if the file cannot be written.
    """
    # The process ends when `ours` is closed. That needs no instruction here, so it happens after any cancellation. A
    # pipe of Popen would stay open, because subprocess refers to what still runs.
    theirs, ours = map(os.fdopen, os.pipe(), ("rb", "wb"), (0, 0))
    with theirs, ours:
        process = subprocess.Popen(
            [sys.executable, "-m", "controlnet.weights.lora_remote"],
            stdin=theirs,
            stdout=subprocess.PIPE,
            pass_fds=[file.fileno()],
            process_group=0,  # Ctrl-C is for this process
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [str(_ROOT), os.environ.get("PYTHONPATH")]))},
        )
        assert process.stdout
        try:
            ours.write(pickle.dumps((source, file.fileno())))
            began = said = time.monotonic()
            while process.poll() is None:
                time.sleep(_LOOK_EVERY)
                now = time.monotonic()
                if now - began > MOST_SECONDS:
                    raise LoraNotFetched(f"it could not be fetched: that takes longer than {MOST_SECONDS:.0f} s.")
                if now - said > _SAY_EVERY:
                    said = now
                    say(f"{name}: fetched {os.fstat(file.fileno()).st_size / 1e6:.0f} MB")
            written = process.stdout.read()
        finally:
            process.kill()
            process.wait()
            process.stdout.close()
    return _outcome(written)


def _outcome(written: bytes) -> str:
    """The SHA-256 that the process printed. Raises what its error was."""
    try:
        outcome = json.loads(written)
    except ValueError:
        raise LoraNotFetched("it could not be fetched; the server's log says why.") from None
    if "sha256" in outcome:
        return outcome["sha256"]
    kinds = {"LoraNotFetched": LoraNotFetched, "FileRefused": FileRefused, "OSError": OSError}
    raise kinds.get(outcome["error"], LoraError)(outcome["message"])
