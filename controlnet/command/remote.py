"""script/predict --url: the prediction of a server that runs already."""

import re
import threading
import time
import uuid
from typing import Any

from controlnet.command.display import Display
from controlnet.command.output_files import File
from controlnet.serving.api import FAILURES, Api, ServerError, describe_faults, plain_error, read_output

CANCEL_SECONDS = 15.0
"""How long to cancel a prediction until it is over."""
BUSY_SECONDS = 60.0
"""How long to wait for a server that works for somebody else."""
FOLLOW_SECONDS = 0.2
"""Time between two looks at the log of a prediction."""

Json = dict[str, Any]


class NotCancelled(KeyboardInterrupt):
    """Ctrl-C, and the prediction may go on. The message is for the user."""


def make(api: Api, inputs: Json, display: Display) -> tuple[list[File], Json]:
    """Run one prediction on a server that is ready. Returns its files and metrics, or raises ServerError.

    Ctrl-C cancels it there before this raises KeyboardInterrupt.
    """
    prediction_id = uuid.uuid4().hex

    def waiting() -> None:
        display.say(f"The server is busy. Trying again for up to {BUSY_SECONDS:.0f} s.")

    log = _Log(api, prediction_id, display)
    try:
        status, answer = api.predict(inputs, prediction_id, BUSY_SECONDS, on_busy=waiting)
    except FAILURES:
        raise ServerError("The server stopped during the prediction; it may have run out of memory.") from None
    except KeyboardInterrupt:
        if api.cancel_until_over(prediction_id, CANCEL_SECONDS):
            raise
        said = f"Interrupted. The server did not end the prediction within {CANCEL_SECONDS:.0f} s."
        raise NotCancelled(said) from None
    finally:
        log.stop()
    if status == 422:
        raise ServerError("\n".join(describe_faults(answer)))
    if status == 409:
        raise ServerError(f"The server at {api.url} is busy. Try again later.")
    if status != 200 or not isinstance(answer, dict) or answer.get("status") != "succeeded":
        error = answer.get("error") if isinstance(answer, dict) else answer
        raise ServerError(plain_error(str(error or f"The server answered with HTTP status {status}.")))
    log.catch_up((answer.get("logs") or "") + "\n")
    output = answer.get("output") or []
    files = [read_output(url) for url in ([output] if isinstance(output, str) else output)]
    return files, answer.get("metrics", {})


class _Log:
    """Shows the log of a running prediction, read on a thread of its own until stop()."""

    def __init__(self, api: Api, prediction_id: str, display: Display) -> None:
        self._api, self._id, self._display = api, prediction_id, display
        self._shown = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._over.set()
        self._thread.join()

    def catch_up(self, text: str) -> None:
        """Show the lines of the log so far that were not shown yet. Its last line may not be at its end."""
        lines = [line for line in re.split(r"[\r\n]", text)[:-1] if line]
        for line in lines[self._shown :]:
            self._display.show(line)
        self._shown = max(self._shown, len(lines))

    def _follow(self) -> None:
        pause = FOLLOW_SECONDS
        while not self._over.wait(pause):
            started = time.monotonic()
            try:
                self.catch_up(self._api.logs_of(self._id) or "")
            except FAILURES:
                continue
            # The answers repeat the inputs, pictures too, so over a slow line they must not be asked for all the time.
            pause = max(FOLLOW_SECONDS, 5 * (time.monotonic() - started))
