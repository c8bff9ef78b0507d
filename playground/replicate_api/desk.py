"""Predictions of Replicate's clients, from the POST to the end: taken in, waited for, kept, cancelled."""

import asyncio
import hashlib
import json
import re
from pathlib import Path
from typing import Any

from fastapi import Request, Response
from fastapi.responses import JSONResponse

from playground.cog import Cog, Faults, Lost
from playground.replicate_api.shelf import ENDED, Posted, Prediction, Shelf, Stored, mapped, now

Json = dict[str, Any]
MOST_PREDICTIONS = 200
MOST_FILES = 200
MOST_BYTES = 1_000_000_000
"""Of all predictions that are kept, and again of all files."""
MOST_BODY = 100_000_000
"""Of one request, as Replicate takes it."""
MOST_WAITING = 100
"""Predictions that have not ended."""
WAIT_SECONDS = 60
"""How long `Prefer: wait` waits, unless it names a shorter time."""
REFUSAL_SECONDS = 0.25
"""How long the answer to a new prediction waits for the server to refuse its inputs."""
CANCEL_SECONDS = 20
NO_OWNER = "local/controlnet"
"""The model's name if a request names but a version."""
# They make a file of an output only if its URL begins with https: or data:, and this server has no certificate. With
# Prefer: wait it is their run() that asks.
READS_NO_HTTP = re.compile(r"replicate-(python|javascript)|(Async)?Replicate/Python")


def problem(status: int, title: str, detail: str) -> JSONResponse:
    """An error as Replicate's API writes it."""
    return JSONResponse({"title": title, "detail": detail, "status": status}, status)


class Unreadable(ValueError):
    """A body that cannot be used. The message is for the client."""


class Desk:
    """Takes predictions in, lets them wait for their turn, and keeps what came of them."""

    def __init__(self, cog: Cog, folder: Path, data_urls: bool) -> None:
        self.cog, self.folder, self.data_urls = cog, folder, data_urls
        self.started_at = now()
        self.predictions = Shelf[Prediction](MOST_PREDICTIONS, MOST_BYTES)
        self.files = Shelf[Posted](MOST_FILES, MOST_BYTES)
        (folder / "files").mkdir(parents=True, exist_ok=True)

    async def create(self, request: Request, model: str | None) -> Response:
        """Answer to a POST of a prediction, of `model` or of the version in its body."""
        try:
            body, size = await _json(request)
            version = body.get("version")
            if model is None and not isinstance(version, str):
                raise Unreadable("Expected the version of a model in `version`.")
            if not isinstance(body.get("input", {}), dict):
                raise Unreadable("Expected an object in `input`.")
            inputs = mapped(body.get("input", {}), self._inlined)
        except Unreadable as error:
            return problem(422, "Unprocessable request", str(error))
        if sum(not each.may_go for each in self.predictions.items.values()) >= MOST_WAITING:
            return problem(429, "Too many requests", f"{MOST_WAITING} predictions wait already. Try again later.")
        name, _, named = (version or "").rpartition(":") if "/" in (version or "") else ("", "", version)
        wait = _wait(request.headers.get("prefer", ""))
        inline = wait > 0 and bool(READS_NO_HTTP.match(request.headers.get("user-agent", "")))
        prediction = Prediction(
            folder=self.folder / "placeholder",
            model=model or name or NO_OWNER,
            version=named or await self.version(),
            input=body.get("input", {}),
            bytes_in=size,
            inline=inline or self.data_urls,
        )
        prediction.folder = self.folder / prediction.id
        self.predictions.add(prediction.id, prediction)
        more = {name: body[name] for name in ("webhook", "webhook_events_filter") if body.get(name)}
        prediction.task = asyncio.create_task(self._run(prediction, inputs, more))
        await asyncio.wait({prediction.task}, timeout=wait or REFUSAL_SECONDS)
        if prediction.faults is not None:
            self.predictions.remove(prediction.id)
            lines = [f"- input.{name}: {said}" if name else f"- {said}" for name, said in prediction.faults.items()]
            return problem(422, "Input validation failed", "\n".join(lines))
        answer = prediction.as_json(base_of(request))
        if wait and prediction.status not in ENDED:
            answer["status"] = "starting"  # the clients take any other word for the end
        return JSONResponse(answer, 201 if prediction.status in ENDED else 202 if wait else 201)

    async def _run(self, prediction: Prediction, inputs: Json, more: Json) -> None:
        def start() -> None:
            prediction.status, prediction.started_at = "processing", now()

        try:
            answer = await self.cog.predict(inputs, prediction.id, more, on_start=start)
            prediction.logs = answer.get("logs") or prediction.logs
            prediction.metrics = answer.get("metrics") or {}
            await asyncio.to_thread(prediction.store, answer.get("output"))
            prediction.end(answer["status"], answer.get("error"))
        except Faults as faults:
            prediction.faults = faults.sentences
            prediction.end("failed", "; ".join(f"{name}: {said}" for name, said in faults.sentences.items()))
        except Lost as lost:
            prediction.end("failed", str(lost))
        except asyncio.CancelledError:
            prediction.end("canceled")
        finally:
            self.predictions.make_room()

    async def read(self, request: Request, prediction: Prediction) -> Response:
        """A prediction as it is now."""
        if prediction.status == "processing":
            try:
                prediction.logs = await self.cog.logs_of(prediction.id) or prediction.logs
            except (OSError, ValueError, ConnectionError):
                pass  # the task that waits for its end will see
        return JSONResponse(prediction.as_json(base_of(request)))

    async def cancel(self, request: Request, prediction: Prediction) -> Response:
        """Cancel it, wherever it is, and answer when it is over."""
        if prediction.task and not prediction.task.done():
            prediction.task.cancel()
            await asyncio.wait({prediction.task}, timeout=CANCEL_SECONDS)
        return JSONResponse(prediction.as_json(base_of(request)))

    async def version(self) -> str:
        """An id of what the server is: it changes with its inputs."""
        try:
            document = await self.cog.document()
        except (Lost, ValueError):
            document = {}
        return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()

    async def version_json(self, version: str = "") -> Json:
        """A version with its schema. Any id is that of the one server that there is."""
        document = await self.cog.document()
        return {
            "id": version or await self.version(),
            "created_at": self.started_at,
            "cog_version": str(document.get("info", {}).get("version", "")),
            "openapi_schema": document,
        }

    def _inlined(self, value: Any) -> Any:
        """A file of ours as a data URL: a container could not reach this server on 127.0.0.1."""
        if not isinstance(value, str):
            return value
        posted = re.fullmatch(r"https?://[^/]+/v1/files/(\w+)", value)
        made = re.fullmatch(r"https?://[^/]+/delivery/(\w+)/([\w.-]+)", value)
        ours = self.files.get(posted[1]) if posted else self.delivered(made[1], made[2]) if made else None
        return ours.file().data_url if ours else value

    def delivered(self, prediction_id: str, name: str) -> Stored | None:
        """A file of a prediction's output."""
        prediction = self.predictions.get(prediction_id)
        found: list[Any] = []
        mapped(prediction.output if prediction else None, found.append)
        return next((each for each in found if isinstance(each, Stored) and each.path.name == name), None)


async def _json(request: Request) -> tuple[Json, int]:
    text = bytearray()
    async for chunk in request.stream():
        text += chunk
        if len(text) > MOST_BODY:
            raise Unreadable(f"The body has more than {MOST_BODY / 1e6:.0f} MB. Post large files to /v1/files first.")
    try:
        body = json.loads(bytes(text))
    except ValueError as error:
        raise Unreadable("Expected JSON.") from error
    if not isinstance(body, dict):
        raise Unreadable("Expected a JSON object.")
    return body, len(text)


def base_of(request: Request) -> str:
    return str(request.base_url).rstrip("/")


def _wait(prefer: str) -> float:
    """For how many seconds `Prefer: wait` or `Prefer: wait=5` waits. 0 without it."""
    found = re.search(r"\bwait(?:=(\d+))?\b", prefer)
    return 0 if not found else min(WAIT_SECONDS, max(1, int(found[1] or WAIT_SECONDS)))
