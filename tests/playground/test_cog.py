"""Cog's server as the playground sees it, played by a transport: 409, 422, cancelling, lost."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from playground import cog as module
from playground.cog import Cog, Faults, Lost, error_of, percent
from playground.form import Form
from playground.tab import Tab
from playground.work import Work

PICTURE = "data:image/webp;base64,eA=="
DONE = {"status": "succeeded", "output": [PICTURE], "metrics": {}, "logs": ""}


class Played:
    """A server whose predictions take a moment. It notes what it was asked."""

    def __init__(self, answer: Callable[[Any], httpx.Response] | None = None, seconds: float = 0.0) -> None:
        self.answer = answer or (lambda body: httpx.Response(200, json=DONE))
        self.seconds = seconds
        self.inputs: list[dict] = []
        self.cancelled: list[str] = []
        self.running = 0
        self.most_running = 0

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        name = request.url.path.split("/")[-1]
        if request.method == "POST":
            self.cancelled.append(request.url.path.split("/")[-2])
            return httpx.Response(200, json={})
        body = json.loads(request.content)
        if not body["input"]:
            running = self.running and name not in self.cancelled
            return httpx.Response(202 if running else 422, json={"logs": " 40%|####| 2/5"})
        self.running += 1
        self.most_running = max(self.running, self.most_running)
        try:
            self.inputs.append(body["input"])
            await asyncio.sleep(self.seconds)
            return self.answer(body)
        finally:
            self.running -= 1

    def cog(self) -> Cog:
        return Cog("http://played", httpx.MockTransport(self))


def run(coroutine: Any) -> Any:
    return asyncio.run(asyncio.wait_for(coroutine, 30))


def test_a_busy_server_is_asked_again() -> None:
    answers = iter([409, 409, 200])
    played = Played(lambda body: httpx.Response(next(answers), json=DONE))
    assert run(played.cog().predict({"prompt": "x"})) == DONE
    assert len(played.inputs) == 3


def test_requests_queue_in_their_order_for_the_one_slot() -> None:
    played = Played(seconds=0.01)

    async def several() -> None:
        cog = played.cog()
        await asyncio.gather(*(cog.predict({"n": n}) for n in range(5)))

    run(several())
    assert played.inputs == [{"n": n} for n in range(5)] and played.most_running == 1


def test_a_422_names_each_input() -> None:
    detail = [{"loc": ["body", "input", "seed"], "msg": "-1 is less than the minimum of 0"}]
    with pytest.raises(Faults) as faults:
        run(Played(lambda body: httpx.Response(422, json={"detail": detail})).cog().predict({"seed": -1}))
    assert faults.value.sentences == {"seed": "-1 is less than the minimum of 0"}


def test_cancelling_the_task_cancels_the_prediction_and_frees_the_slot() -> None:
    played = Played(seconds=20)

    async def cancelled() -> None:
        cog = played.cog()
        task = asyncio.create_task(cog.predict({"prompt": "long"}, "abc"))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        played.seconds = 0
        assert await cog.predict({"prompt": "next"}) == DONE

    run(cancelled())
    assert set(played.cancelled) == {"abc"}


def test_a_lost_server_is_said_in_words() -> None:
    def refuse(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused")

    cog = Cog("http://gone:1", httpx.MockTransport(refuse))
    with pytest.raises(Lost, match="http://gone:1 does not answer"):
        run(cog.predict({}))
    words = Cog("http://gone:1", httpx.MockTransport(refuse), last_words=lambda: "It ran out of memory.")
    assert run(words.look()).sentence == "It ran out of memory."


@pytest.mark.parametrize(
    ("health", "sentence"),
    [
        ({"status": "READY"}, "Ready."),
        (
            {"status": "READY", "setup": {"logs": "[coglet] x\n[coglet::setup] bundle: tiny on cpu in float32\n"}},
            "Ready: tiny.",
        ),
        ({"status": "BUSY"}, "The server is busy."),
        (
            {"status": "STARTING", "setup": {"logs": "[coglet::setup] unet: 2 MB\n"}},
            "The server is starting: unet: 2 MB",
        ),
        ({"status": "SETUP_FAILED", "setup": {"logs": "worker setup failed: x: setup failed: ValueError: No."}}, "No."),
        ({"status": "DEFUNCT"}, "The server is DEFUNCT. Restart it."),
        ("hello", "What answers at http://played is not Cog's server."),
    ],
)
def test_the_state_of_the_server_in_words(health: Any, sentence: str) -> None:
    cog = Cog("http://played", httpx.MockTransport(lambda request: httpx.Response(200, json=health)))
    assert run(cog.look()).sentence == sentence


def test_progress_and_errors_are_read_from_what_the_server_says() -> None:
    assert percent("seed: 1\n  0%|  | 0/5\n 40%|####| 2/5\n") == 40 and percent("seed: 1") is None
    assert (
        error_of({"error": "Prediction failed: Prediction failed: RequestError: width: too small."})
        == "width: too small."
    )


# ---- the requests of a tab


class Seen:
    """A View that notes what it is told."""

    def __init__(self) -> None:
        self.shares: list[int] = []
        self.sentences: dict[str, str] = {}
        self.ends: list[tuple[str, bool]] = []

    def started(self, purpose: str, waiting: bool) -> None: ...
    def made(self, purpose: str) -> None: ...
    def progressed(self, share: int) -> None:
        self.shares.append(share)

    def failed(self, purpose: str, sentences: dict[str, str]) -> None:
        self.sentences |= sentences

    def ended(self, purpose: str, cancelled: bool) -> None:
        self.ends.append((purpose, cancelled))


def a_tab() -> Tab:
    names = {"prompt": {"type": "string"}, "image": {"type": "string", "format": "uri"}}
    names |= {name: {"type": "boolean", "default": False} for name in ("map_only", "go_fast", "return_control_map")}
    names |= {name: {"type": "integer", "default": None} for name in ("resolution", "seed", "num_inference_steps")}
    tab = Tab(Form.read({"components": {"schemas": {"Input": {"properties": names, "required": ["prompt", "image"]}}}}))
    tab.take_drawing("image", None, True)
    return tab


def work_on(played: Played) -> tuple[Tab, Work, Seen]:
    from support.requests_to_tiny import CAT, encoded

    tab, seen = a_tab(), Seen()
    tab.take_upload("image", encoded(CAT))
    return tab, Work(played.cog(), tab, seen), seen  # type: ignore[arg-type]


def test_forty_quick_changes_ask_for_one_map_and_the_prompt_for_none(monkeypatch) -> None:
    monkeypatch.setattr("playground.work.DEBOUNCE_SECONDS", 0.05)
    played = Played()

    async def moved() -> None:
        tab, work, _ = work_on(played)
        for resolution in range(64, 104):
            tab.values["resolution"] = resolution
            work.changed()
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.3)
        tab.values["prompt"] = "another"
        work.changed()
        await asyncio.sleep(0.3)

    run(moved())
    assert [inputs["resolution"] for inputs in played.inputs] == [103]
    assert played.inputs[0]["map_only"] is True


def test_the_switch_turns_the_map_off(monkeypatch) -> None:
    monkeypatch.setattr("playground.work.DEBOUNCE_SECONDS", 0.01)
    played = Played()

    async def off() -> None:
        tab, work, _ = work_on(played)
        work.maps_at_once = False
        tab.values["resolution"] = 64
        work.changed()
        await asyncio.sleep(0.1)

    run(off())
    assert played.inputs == []


def test_live_pictures_follow_the_newest_drawing_one_at_a_time() -> None:
    played = Played(seconds=0.1)

    async def drawing() -> None:
        tab, work, _ = work_on(played)
        work.live = True
        tab.values["num_inference_steps"] = 50
        for resolution in range(64, 94):
            tab.values["resolution"] = resolution
            work.changed()
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.5)

    run(drawing())
    sizes = [inputs["resolution"] for inputs in played.inputs]
    assert 3 <= len(sizes) < 12 and sizes == sorted(sizes) and sizes[-1] == 93
    assert all(inputs["go_fast"] and inputs["return_control_map"] for inputs in played.inputs)
    assert not any("num_inference_steps" in inputs for inputs in played.inputs), "go_fast has its own number of steps"


def test_painting_reports_progress_and_can_be_cancelled(monkeypatch) -> None:
    monkeypatch.setattr(module, "FOLLOW_SECONDS", 0.01)
    played = Played(seconds=20)

    async def painting() -> Seen:
        _, work, seen = work_on(played)
        work.paint()
        work.paint()  # a second click does nothing
        await asyncio.sleep(0.2)
        work.cancel()
        await asyncio.sleep(0.3)
        return seen

    seen = run(painting())
    assert seen.shares and set(seen.shares) == {40}
    assert seen.ends == [("paint", True)] and len(played.inputs) == 1 and played.cancelled


def test_a_failure_stands_beside_the_input_that_it_names() -> None:
    failed = {"status": "failed", "error": "Prediction failed: RequestError: resolution: too large."}

    async def painting() -> Seen:
        _, work, seen = work_on(Played(lambda body: httpx.Response(200, json=failed)))
        work.paint()
        await asyncio.sleep(0.2)
        return seen

    assert run(painting()).sentences == {"resolution": "resolution: too large."}
