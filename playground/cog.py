"""Cog's HTTP server as the playground uses it: one queue in front of its one slot, progress, and cancelling."""

import asyncio
import re
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import httpx

from controlnet.serving.api import ServerError, is_starting, plain_error
from playground.pictures import File

Json = dict[str, Any]
FOLLOW_SECONDS = 0.2
"""Time between two looks at the log of a running prediction."""
PAUSE_SECONDS = 0.05
"""Time before a request is sent again that met 409: the server frees its slot only after its answer."""
LONGEST_PAUSE_SECONDS = 0.5
QUESTION_SECONDS = 10
"""How long the server may take to answer anything but a prediction."""
CANCEL_SECONDS = 15
LOOK_SECONDS = 2
"""Time between two looks at the server's health."""
LOST = "lost"


class Lost(ConnectionError):
    """The server cannot be reached, or ended during the request."""


@dataclass
class Faults(Exception):
    """The server refused the inputs: a sentence for each that is wrong, by its name. "" names none."""

    sentences: dict[str, str]


@dataclass
class Health:
    """What is known of the server."""

    status: str = "STARTING"
    """READY, BUSY, STARTING, LOST, or what else /health-check says."""
    sentence: str = "The server is starting."
    since: float = field(default_factory=time.monotonic)
    bundle: str = ""
    """The bundle that a server of this project has opened. "" if it has not said."""


class Cog:
    """The server at `url`. It need not be there yet."""

    def __init__(
        self,
        url: str,
        transport: httpx.AsyncBaseTransport | None = None,
        last_words: Callable[[], str] = lambda: "",
    ) -> None:
        """`last_words` returns what the server said when it ended, if it is a child process that has."""
        self.url = url.rstrip("/")
        self._last_words = last_words
        # Proxies of the environment are not asked: they could not reach 127.0.0.1.
        self._client = httpx.AsyncClient(
            base_url=self.url, timeout=QUESTION_SECONDS, transport=transport, trust_env=False
        )
        self._slot = asyncio.Lock()
        """Held by whoever's request is in the server, or next to be. Waiters get it in the order in which they came."""
        self.waiting = 0
        """How many requests wait for the slot."""
        self.health = Health()

    async def close(self) -> None:
        await self._client.aclose()

    # ---- what it is and how it is

    async def document(self) -> Json:
        """Its OpenAPI document. Raises Lost if it cannot be reached, ValueError if it is not Cog's server."""
        try:
            answer = await self._client.get("/openapi.json")
            document = answer.json()
            return document if isinstance(document["components"]["schemas"]["Input"], dict) else {}
        except httpx.HTTPError as error:
            raise Lost(self._lost()) from error
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{self.url} has no /openapi.json as Cog's servers have it.") from error

    async def look(self) -> Health:
        """Ask how the server is, and remember the answer."""
        try:
            answer = (await self._client.get("/health-check")).json()
            status = str(answer["status"])
            self.health.bundle = _bundle(answer)
            ready = f"Ready: {self.health.bundle}." if self.health.bundle else "Ready."
            sentence = {"READY": ready, "BUSY": "The server is busy."}.get(status, "")
            if not sentence:
                sentence = _starting(answer) if is_starting(answer) else f"The server is {status}."
        except ServerError as error:  # setup() failed
            status, sentence = "SETUP_FAILED", str(error)
        except httpx.HTTPError:
            status, sentence = LOST, self._lost()
        except (ValueError, KeyError, TypeError, AttributeError):
            status, sentence = LOST, f"What answers at {self.url} is not Cog's server."
        if status != self.health.status:
            self.health.since = time.monotonic()
        self.health.status, self.health.sentence = status, sentence
        return self.health

    async def watch(self) -> None:
        """Look every few seconds, for ever."""
        while True:
            await self.look()
            await asyncio.sleep(LOOK_SECONDS)

    def _lost(self) -> str:
        words = self._last_words()
        return words or f"The server at {self.url} does not answer. Start it again; this page goes on by itself."

    # ---- predictions

    async def predict(
        self,
        inputs: Json,
        prediction_id: str = "",
        more: Json = {},
        on_start: Callable[[], None] = lambda: None,
        on_answer: Callable[[int], None] = lambda status: None,
        on_log: Callable[[str], None] | None = None,
    ) -> Json:
        """Run one prediction when its turn comes, and return the server's answer once it has ended.

        `more` goes into the body beside the inputs. `on_start` is called when its turn has come, `on_answer` with the
        status of the answer, and `on_log` with the log so far, while it runs. Raises Faults for a 422 and Lost. If the
        task that awaits this is cancelled, so is the prediction; this returns once that is over.
        """
        prediction_id = prediction_id or uuid.uuid4().hex
        self.waiting += 1
        try:
            await self._slot.acquire()
        finally:
            self.waiting -= 1
        try:
            on_start()
            answer = asyncio.ensure_future(self._put(prediction_id, {"input": inputs} | more))
            follower = asyncio.ensure_future(self._follow(prediction_id, on_log)) if on_log else None
            try:
                response = await answer
            except asyncio.CancelledError:
                answer.cancel()
                await asyncio.shield(asyncio.ensure_future(self._cancel_until_over(prediction_id)))
                raise
            finally:
                if follower:
                    follower.cancel()
        finally:
            self._slot.release()
        on_answer(response.status_code)
        return _read(response)

    async def _put(self, prediction_id: str, body: Json) -> httpx.Response:
        pause = PAUSE_SECONDS
        while True:
            try:
                response = await self._client.put(f"/predictions/{prediction_id}", json=body, timeout=None)
            except httpx.HTTPError as error:
                raise Lost(self._lost()) from error
            if response.status_code != 409:
                return response
            await asyncio.sleep(pause)
            pause = min(LONGEST_PAUSE_SECONDS, pause * 1.2)

    async def fetch(self, url: str) -> File:
        """An output that the server uploaded elsewhere. Raises Lost."""
        if not url.startswith(("http://", "https://")):
            raise Lost(f"The server sent neither a file nor an http(s) URL: {url[:100]}")
        try:
            response = (await self._client.get(url, follow_redirects=True, timeout=60)).raise_for_status()
        except httpx.HTTPError as error:
            raise Lost(f"Cannot fetch {url}: {error}") from error
        return File(response.content, response.headers.get("content-type", "").split(";")[0])

    async def logs_of(self, prediction_id: str) -> str | None:
        """What a running prediction has printed so far. None if it does not run.

        A PUT with the id of a running prediction is answered with its state. Without inputs it cannot start one.
        """
        response = await self._client.put(f"/predictions/{prediction_id}", json={"input": {}})
        return str(response.json().get("logs") or "") if response.status_code == 202 else None

    async def _follow(self, prediction_id: str, on_log: Callable[[str], None]) -> None:
        pause = FOLLOW_SECONDS
        while True:
            await asyncio.sleep(pause)
            asked = time.monotonic()
            with suppress(httpx.HTTPError, ValueError):
                if logs := await self.logs_of(prediction_id):
                    on_log(logs)
            # The answers repeat the inputs, pictures too.
            pause = max(FOLLOW_SECONDS, 5 * (time.monotonic() - asked))

    async def _cancel_until_over(self, prediction_id: str) -> None:
        """One cancel is not enough: the server loses it between receiving a prediction and starting it."""
        deadline = time.monotonic() + CANCEL_SECONDS
        absent = 0
        while absent < 2 and time.monotonic() < deadline:
            try:
                await self._client.post(f"/predictions/{prediction_id}/cancel")
                absent = absent + 1 if await self.logs_of(prediction_id) is None else 0
            except (httpx.HTTPError, ValueError):
                return  # the server has ended: there is nothing to cancel
            await asyncio.sleep(0.02)


def _setup_log(answer: Json) -> str:
    return str((answer.get("setup") or {}).get("logs") or "")


def _bundle(answer: Json) -> str:
    named = re.search(r"^\[coglet::setup\] bundle: (\S+) on ", _setup_log(answer), re.MULTILINE)
    return named[1] if named else ""


def _starting(answer: Json) -> str:
    logs = _setup_log(answer)
    lines = [line.removeprefix("[coglet::setup] ") for line in logs.splitlines() if line.startswith("[coglet::setup]")]
    return f"The server is starting: {lines[-1]}" if lines else "The server is starting."


def _read(response: httpx.Response) -> Json:
    try:
        answer = response.json()
    except ValueError:
        answer = {}
    if response.status_code == 422:
        raise Faults({str(fault["loc"][-1]): str(fault["msg"]) for fault in answer["detail"]})
    if response.status_code == 503:
        raise Lost("The server has not finished starting.")
    if response.status_code != 200 or "status" not in answer:
        raise Lost(f"The server answered with HTTP status {response.status_code}.")
    return answer


def error_of(answer: Json) -> str:
    """The sentence of predict() in an answer that failed."""
    return plain_error(str(answer.get("error") or "The server gave no reason."))


def percent(logs: str) -> int | None:
    """How far a prediction is, by the last progress bar in its log. None before the first."""
    bars = re.findall(r"(\d+)%\|", logs)
    return int(bars[-1]) if bars else None
