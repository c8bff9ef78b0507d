"""The real server, started as script/serve does, for tests over HTTP."""

import os
import threading
import time
import uuid
from collections.abc import Mapping
from concurrent.futures import Future, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from controlnet.serving import server as serving
from controlnet.serving.api import decode_data_url, plain_error


@dataclass
class Answer:
    """The answer to one prediction request."""

    http_status: int
    body: Any
    files: list[bytes] = field(default_factory=list)
    """The content of every file in the output, in order."""
    endings: list[str] = field(default_factory=list)
    """The ending of each file, such as ".webp", from the type that the server gave it."""

    @property
    def status(self) -> str:
        """succeeded, failed or canceled; "" if the request did not become a prediction."""
        return self.body.get("status", "") if isinstance(self.body, dict) else ""

    @property
    def error(self) -> str:
        """The error that the client sees: the message of the exception, or one line per fault of a 422."""
        if self.http_status == 422:
            return "\n".join(f"{fault['loc'][-1]}: {fault['msg']}" for fault in self.body["detail"])
        return plain_error(self.body.get("error", "")) if isinstance(self.body, dict) else str(self.body)

    @property
    def metrics(self) -> dict[str, Any]:
        return self.body.get("metrics", {})

    @property
    def logs(self) -> str:
        """What predict() printed. Empty if it failed or was cancelled; Server.logs has that too."""
        return self.body.get("logs", "")


class Server(serving.Server):
    """serving.Server that is ready once entered, returns `Answer`, and can run a prediction in the background.

        with Server({"CONTROLNET_BUNDLE": "tiny"}) as server:
            answer = server.run(prompt="a red house", image=data_url)

    `environ` is added to the environment of the tests. Raises serving.ServerError if setup() fails.
    """

    def __init__(
        self, environ: Mapping[str, str] | None = None, root: Path = serving.ROOT, interface: str | None = None
    ) -> None:
        super().__init__(dict(os.environ) | dict(environ or {}), root, interface=interface)

    def __enter__(self) -> "Server":
        super().__enter__()
        try:
            self.wait_ready()
        except BaseException:
            self.stop()  # __exit__ is not called if __enter__ raises
            raise
        return self

    @property
    def logs(self) -> str:
        """Everything that setup() and predict() have printed so far."""
        return "\n".join(text for source, text in self.lines if source in ("setup", "prediction", "user"))

    def run(self, prediction_id: str = "", **inputs: Any) -> Answer:
        """Run one prediction with exactly these inputs and wait for its end."""
        status, body = self.predict(inputs, prediction_id)
        output = (body.get("output") or []) if isinstance(body, dict) else []
        decoded = [decode_data_url(url) for url in ([output] if isinstance(output, str) else output)]
        return Answer(status, body, [content for content, _ in decoded], [ending for _, ending in decoded])

    def start(self, **inputs: Any) -> "Running":
        """Start a prediction in the background. Its id is known at once, and .result() waits for its answer."""
        prediction_id = uuid.uuid4().hex
        future: Future[Answer] = Future()

        def work() -> None:
            try:
                future.set_result(self.run(prediction_id, **inputs))
            except BaseException as error:
                future.set_exception(error)

        threading.Thread(target=work, daemon=True).start()
        return Running(self, prediction_id, future)


@dataclass
class Running:
    """A prediction that is running."""

    server: Server
    prediction_id: str
    future: "Future[Answer]"

    def cancel(self) -> int:
        """Cancel it; returns the HTTP status, which is 404 if it has not begun or is over."""
        return self.server.cancel(self.prediction_id)

    def stop(self) -> float:
        """Cancel it until it is over; returns the seconds from the first accepted cancel until then.

        One cancel is not enough: Cog's server accepts it between receiving a prediction and starting it, and then loses
        it (0.23: 20 of 150 in a tight loop).
        """
        accepted, deadline = 0.0, time.monotonic() + 20
        while not self.future.done():
            assert time.monotonic() < deadline, "it cannot be cancelled"
            if self.cancel() != 404 and not accepted:
                accepted = time.monotonic()
            wait([self.future], timeout=0.02)
        assert accepted, "it was over before it could be cancelled"
        return time.monotonic() - accepted

    def result(self, timeout: float = 60.0) -> Answer:
        """Wait for its end."""
        return self.future.result(timeout)
