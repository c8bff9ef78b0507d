"""The HTTP interface of Cog's server, as a client uses it: https://cog.run/http."""

import base64
import http.client
import json
import mimetypes
import re
import time
import urllib.request
import uuid
from collections.abc import Callable, Collection, Mapping
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import urlsplit

# coglet puts "Prediction failed: " twice, or several "setup failed", and the exception's class before its message.
# None of them helps the user.
ERROR_PREFIX = re.compile(
    r"(?:Prediction failed: )*(?:worker setup failed.*?: (?:setup failed|failed to load predictor): )?"
    r"(?:\w+(?:Error|Fault|Mismatch): )?"
)
EMPTY = {"input": {}}
"""The body of a request that starts no prediction, because a prompt is required."""
QUESTION_SECONDS = 10
"""How long a server may take to answer anything but a prediction."""
FETCH_SECONDS = 60
"""How long a server of uploaded files may be silent."""

Json = dict[str, Any]
FAILURES = (OSError, http.client.HTTPException)
"""The exceptions of a request that gets no answer in HTTP."""


class ServerError(RuntimeError):
    """A server could not be started or reached, or its setup() failed. The message is for the user."""


def plain_error(text: str) -> str:
    """Return only the exception's message from the server's error text."""
    return ERROR_PREFIX.sub("", text, count=1)


class Api:
    """A server at a URL. It need not be there yet. Raises ServerError for what is not an http(s) URL."""

    def __init__(self, url: str) -> None:
        try:
            parts = urlsplit(url.encode("ascii").decode())
            host, port = parts.hostname, parts.port
        except ValueError:  # such as a port of letters, or a letter that a URL does not have
            parts, host, port = None, None, None
        if (
            not url.isascii()
            or parts is None
            or parts.scheme not in ("http", "https")
            or not host
            or parts.query
            or parts.fragment
        ):
            raise ServerError(f"Expected a server's URL such as http://localhost:5000, got {url!r}.")
        self.url = url.rstrip("/")
        self.secure = parts.scheme == "https"
        self.host = host
        self.port = port or (443 if self.secure else 80)
        self.prefix = parts.path.rstrip("/")

    def request(
        self, method: str, path: str, body: Any = None, headers: Mapping[str, str] = {}, timeout: float | None = None
    ) -> tuple[int, Any]:
        """Send one HTTP request. Returns the status and the body, decoded if it is JSON. Raises one of FAILURES."""
        connect = http.client.HTTPSConnection if self.secure else http.client.HTTPConnection
        connection = connect(self.host, self.port, timeout=timeout)
        try:
            text = body if isinstance(body, (str, bytes, type(None))) else json.dumps(body)
            connection.request(method, self.prefix + path, text, {"Content-Type": "application/json"} | dict(headers))
            response = connection.getresponse()
            answer = response.read()
            is_json = (response.getheader("Content-Type") or "").startswith("application/json")
            return response.status, json.loads(answer) if is_json else answer.decode(errors="replace")
        except json.JSONDecodeError as error:
            raise http.client.HTTPException(f"its answer is not JSON: {error}") from error
        finally:
            connection.close()

    # ---- is it ready

    def health(self) -> Json:
        """Return the response of /health-check, or {} if nothing listens or it is not Cog's server."""
        try:
            answer = self.request("GET", "/health-check", timeout=QUESTION_SECONDS)[1]
        except FAILURES:
            return {}
        return answer if isinstance(answer, dict) else {}

    def schemas(self, required: Collection[str], on_starting: Callable[[], None] = lambda: None) -> Json:
        """Return the schemas of a server that somebody else started, from its /openapi.json. Waits for its setup().

        `on_starting` is called once if there is a wait. Raises ServerError if nothing listens, if setup() failed, and
        if it is not a server of this project, which means that it does not require the inputs named `required`.
        """
        stranger = ServerError(f"The server at {self.url} is not one of this project. Start one with script/serve.")
        announced = False
        try:
            while is_starting(self._health_of_stranger(stranger)):
                if not announced:
                    on_starting()
                announced = True
                time.sleep(0.2)
            document = self.request("GET", "/openapi.json", timeout=QUESTION_SECONDS)[1]
            schemas = document["components"]["schemas"]
            if not required or not {*required} <= {*schemas["Input"]["required"]}:
                raise stranger
        except ConnectionRefusedError as error:
            raise ServerError(f"Nothing listens at {self.url}. Start a server with script/serve.") from error
        except TimeoutError as error:
            raise ServerError(f"{self.url} did not answer within {QUESTION_SECONDS} s.") from error
        except OSError as error:
            raise ServerError(f"Cannot reach {self.url}: {error.strerror or error}.") from error
        except (http.client.HTTPException, KeyError, TypeError) as error:
            raise stranger from error
        return schemas

    def _health_of_stranger(self, stranger: ServerError) -> Json:
        status, health = self.request("GET", "/health-check", timeout=QUESTION_SECONDS)
        if status in (301, 302, 307, 308):
            raise ServerError(f"{self.url} redirects to another address. Give that one.")
        if status != 200 or not isinstance(health, dict) or "status" not in health:
            raise stranger
        return health

    # ---- predictions

    def predict(
        self,
        inputs: Mapping[str, Any],
        prediction_id: str = "",
        patience: float = 5.0,
        timeout: float | None = None,
        on_busy: Callable[[], None] = lambda: None,
    ) -> tuple[int, Any]:
        """Run one prediction and wait for its end. Returns the HTTP status and the body of the response.

        The server answers 409 while it works for somebody else, and sometimes right after another prediction. Then the
        request is repeated for up to `patience` seconds, and `on_busy` is called once if it takes more than a second.
        """
        path = f"/predictions/{prediction_id or uuid.uuid4().hex}"
        body = json.dumps({"input": dict(inputs)})
        started, pause, announced = time.monotonic(), 0.05, False
        while True:
            status, answer = self.request("PUT", path, body, timeout=timeout)
            waited = time.monotonic() - started
            if status != 409 or waited > patience:
                return status, answer
            if waited > 1 and not announced:
                on_busy()
                announced = True
            time.sleep(pause)
            pause = min(0.5, pause * 1.2)

    def logs_of(self, prediction_id: str) -> str | None:
        """Return what a running prediction has printed so far, or None if it does not run.

        To a PUT with the id of a running prediction the server answers with its state. One without inputs cannot start
        a prediction if it has ended meanwhile.
        """
        status, answer = self.request("PUT", f"/predictions/{prediction_id}", EMPTY, timeout=QUESTION_SECONDS)
        return (answer.get("logs") or "") if status == 202 else None

    def cancel(self, prediction_id: str) -> int:
        """Cancel a prediction. Returns the HTTP status: 404 if it is not running."""
        return self.request("POST", f"/predictions/{prediction_id}/cancel", timeout=QUESTION_SECONDS)[0]

    def cancel_until_over(self, prediction_id: str, patience: float) -> bool:
        """Cancel a prediction until it is over, for up to `patience` seconds. Returns whether it is over.

        One cancel is not enough: the server loses it between receiving a prediction and starting it. For the same
        reason the prediction has to be absent twice.
        """
        deadline = time.monotonic() + patience
        absent = 0
        while absent < 2 and time.monotonic() < deadline:
            try:
                self.cancel(prediction_id)
                absent = absent + 1 if self.logs_of(prediction_id) is None else 0
            except ConnectionError:
                return True  # the server does not listen yet, or has stopped: there is nothing to cancel
            except FAILURES:
                absent = 0
            time.sleep(0.05)
        return absent == 2


def is_starting(health: Json) -> bool:
    """Whether setup() has not ended yet, by the response of /health-check. Raises ServerError if it failed."""
    status = health.get("status", "STARTING")
    if status in ("STARTING", "READY", "BUSY"):
        return status == "STARTING"
    if status != "SETUP_FAILED":
        raise ServerError(f"The server is {status}. Restart it.")
    logs = (health.get("setup") or {}).get("logs") or status
    if logs == "worker crashed":
        logs = "The server's worker ended during setup. It may have run out of memory."
    raise ServerError(plain_error(logs))


def describe_faults(answer: Any) -> list[str]:
    """Return a readable line for each fault in the body of a 422 response."""
    faults = answer["detail"] if isinstance(answer, dict) and "detail" in answer else []
    return [f"{fault['loc'][-1]}: {fault['msg']}" for fault in faults] or [str(answer)]


# ---- the files of an answer


def decode_data_url(url: str) -> tuple[bytes, str]:
    """Return the content of a data URL and the suffix for its type, such as ".webp"."""
    header, _, payload = url.partition(",")
    mime = header.removeprefix("data:").split(";")[0]
    content = base64.b64decode(payload) if header.endswith(";base64") else payload.encode()
    return content, mimetypes.guess_extension(mime, strict=False) or ".bin"


def read_output(url: str) -> tuple[bytes, str]:
    """Return the content and the suffix of an output. A server with --upload-url answers with http(s) URLs.

    Raises ServerError if it cannot be fetched, or is neither such a URL nor a data URL.
    """
    if url.startswith("data:"):
        return decode_data_url(url)
    if urlsplit(url).scheme not in ("http", "https"):  # such as file:, which would copy a file of this machine
        raise ServerError(f"The server sent neither a file nor an http(s) URL: {url[:100]}")
    try:
        with urllib.request.urlopen(url, timeout=FETCH_SECONDS) as response:
            return response.read(), PurePosixPath(urlsplit(url).path).suffix or ".bin"
    except FAILURES as error:
        raise ServerError(f"Cannot fetch {url}: {error}.") from error
