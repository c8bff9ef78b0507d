"""The requests of one tab: its map at once, its picture live while it is drawn, and its picture when asked for."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Literal, Protocol

from playground.cog import Cog, Faults, Lost, error_of, percent
from playground.pictures import File
from playground.tab import Made, Tab

Json = dict[str, Any]
Purpose = Literal["map", "live", "paint"]
DEBOUNCE_SECONDS = 0.35
"""How long nothing must change before a map is asked for."""
NOT_LIVE = ("num_inference_steps", "guidance_scale", "scheduler", "eta", "num_outputs", "upscale", "return_pose_json")
"""Inputs that a live picture leaves out: go_fast has its own, or they take time."""


class View(Protocol):
    """What shows the tab to a person."""

    def started(self, purpose: Purpose, waiting: bool) -> None: ...
    def progressed(self, share: int) -> None: ...
    def made(self, purpose: Purpose) -> None: ...
    def failed(self, purpose: Purpose, sentences: dict[str, str]) -> None: ...
    def ended(self, purpose: Purpose, cancelled: bool) -> None: ...


class Work:
    """At most one request of each purpose. A newer map takes the place of an older one."""

    def __init__(self, cog: Cog, tab: Tab, view: View) -> None:
        self.cog, self.tab, self.view = cog, tab, view
        self.maps_at_once = tab.form.draws_maps
        self.live = False
        self._tasks: dict[Purpose, asyncio.Task[object]] = {}
        self._shown: Json | None = None
        """What the map depends on that is shown, or being drawn."""
        self._stale = False
        """Whether something was drawn since the running live picture began."""

    # ---- what starts a request

    def changed(self) -> None:
        """Something that may shape the map has changed."""
        if not self._complete():
            self._cancel("map")
        elif self.live:
            self._stale = True
            if not self.is_running("live"):
                self._start("live", self._follow_the_pen())
        elif self.maps_at_once and self._map_key() != self._shown:
            self._start("map", self._draw_map())

    def redraw_map(self) -> None:
        """Draw the map, whether it changed or not."""
        self._shown = None
        self.changed()

    def paint(self) -> None:
        """Make the picture. Does nothing while one is being made."""
        if not self.is_running("paint"):
            for purpose in ("map", "live"):
                self._cancel(purpose)
            self._start("paint", self._request("paint", self.tab.inputs()))

    def cancel(self) -> None:
        """Cancel all that runs."""
        for purpose in tuple(self._tasks):
            self._cancel(purpose)

    def is_running(self, purpose: Purpose) -> bool:
        task = self._tasks.get(purpose)
        return task is not None and not task.done()

    def others_run(self, purpose: Purpose) -> bool:
        """Whether a request of another purpose is running."""
        return any(self.is_running(each) for each in self._tasks if each != purpose)

    # ---- the requests

    def _start(self, purpose: Purpose, work: Coroutine[Any, Any, object]) -> None:
        self._cancel(purpose)
        self._tasks[purpose] = asyncio.create_task(work)

    def _cancel(self, purpose: Purpose) -> None:
        if self.is_running(purpose):
            self._tasks[purpose].cancel()
            if purpose == "map":
                self._shown = None

    def _complete(self) -> bool:
        """Whether the pictures are there that every request has."""
        fields = self.tab.form.fields.values()
        return all(field.name in self.tab.pictures for field in fields if field.required and field.kind == "picture")

    def _map_key(self) -> Json:
        inputs = self.tab.inputs()
        return {name: value for name, value in inputs.items() if self.tab.form.shapes_map(name)}

    async def _draw_map(self) -> None:
        self._shown = self._map_key()
        await asyncio.sleep(DEBOUNCE_SECONDS)
        self._shown = self._map_key()
        await self._request("map", self.tab.form.map_inputs(self.tab.inputs()))

    async def _follow_the_pen(self) -> None:
        """Make picture after picture until nothing new was drawn. The newest drawing wins."""
        while self.live and self._stale:
            self._stale = False
            inputs = {name: value for name, value in self.tab.inputs().items() if name not in NOT_LIVE}
            inputs |= {name: True for name in ("go_fast", "return_control_map") if name in self.tab.form.fields}
            if not await self._request("live", inputs):
                return

    async def _request(self, purpose: Purpose, inputs: Json) -> bool:
        """Make one request and show what comes of it. Returns whether it succeeded."""
        self.view.started(purpose, waiting=True)
        cancelled = False
        try:
            answer = await self.cog.predict(
                inputs,
                on_start=lambda: self.view.started(purpose, waiting=False),
                on_log=self._progress() if purpose == "paint" else None,
            )
            if answer["status"] != "succeeded":
                self._fail(purpose, error_of(answer))
                return False
            output = answer.get("output") or []
            urls = [output] if isinstance(output, str) else output
            files = [await self._file(url) for url in urls]
        except Faults as faults:
            self.view.failed(purpose, faults.sentences)
            return False
        except Lost as lost:
            self.view.failed(purpose, {"": str(lost)})
            return False
        except asyncio.CancelledError:
            cancelled = True
            raise
        finally:
            self.view.ended(purpose, cancelled)
        made = Made.of(inputs, self.tab.form, files, answer.get("metrics") or {})
        self.tab.take_answer(made, map_alone=purpose == "map")
        self.view.made(purpose)
        return True

    def _fail(self, purpose: Purpose, sentence: str) -> None:
        self.view.failed(purpose, {self.tab.form.named_in(sentence) or "": sentence})

    def _progress(self) -> Callable[[str], None]:
        def show(logs: str) -> None:
            share = percent(logs)
            if share is not None:
                self.view.progressed(share)

        return show

    async def _file(self, url: str) -> File:
        return File.of_data_url(url) if url.startswith("data:") else await self.cog.fetch(url)
