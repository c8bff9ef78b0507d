"""The page: what is asked on the left, what came of it on the right."""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from pathlib import Path

from fastapi import APIRouter
from nicegui import Client, app, ui

from playground.cog import LOST, Cog
from playground.fields import Entry, Fields, PictureEntry
from playground.form import Form
from playground.guard import Guard
from playground.result import Result
from playground.routes import tab_routes
from playground.tab import Tab
from playground.work import Purpose, Work

CSS = Path(__file__).with_name("page.css")
# Before the element that has the focus: a button would take Enter for itself.
KEYS = """
document.addEventListener("keydown", (event) => {
  const paints = event.key === "Enter" && (event.ctrlKey || event.metaKey);
  if (paints) event.preventDefault(), event.stopPropagation();
  if (paints || event.key === "Escape") document.querySelector(paints ? ".paint" : ".cancel")?.click();
}, true);
"""
RECONNECT_SECONDS = 20.0
"""How long a tab is kept whose connection was lost. The longer, the longer may the browser be too busy to answer."""


class Page:
    """One tab: its form, its requests and what they made. Implements View of work.py and Open of routes.py."""

    def __init__(self, cog: Cog, form: Form, client: Client) -> None:
        self.client = client
        self.tab = Tab(form, cog.health.bundle)
        self.work = Work(cog, self.tab, self)
        with ui.element("div").classes("columns"):
            with ui.element("section").classes("ask").props('aria-label="Request"'):
                self.fields = Fields(self.tab, self._changed)
                self.fields.build_first()
                self._build_buttons()
            with ui.element("section").classes("result").props('aria-label="Result"'):
                self.result = Result(self.tab, cog.url, self._set_seed, self.paint_another)
            with ui.element("section").classes("more").props('aria-label="All inputs"'):
                self.fields.build_others()
        ui.add_body_html(f"<script>{KEYS}</script>")
        self.work.changed()

    def _build_buttons(self) -> None:
        with ui.row().classes("buttons"):
            self.painter = (
                ui.button("Paint", icon="brush", on_click=self.paint).props("unelevated no-caps").classes("paint")
            )
            self.painter.tooltip("Ctrl+Enter")
            self.canceller = ui.button("Cancel", icon="close", on_click=self.work.cancel).props("outline no-caps")
            self.canceller.classes("cancel")
            self.canceller.tooltip("Esc")
            if "go_fast" in self.tab.form.fields:
                self.liver = ui.switch("Live", on_change=lambda event: self._live(bool(event.value))).props("dense")
                self.liver.tooltip("The picture follows the pen, with go_fast")
            if self.tab.form.draws_maps:
                maps = ui.switch("Map at once", value=True, on_change=lambda event: self._maps(bool(event.value)))
                maps.props("dense").tooltip("Draw the map at each change. Off spares a server that others use too.")
        self.progress = ui.linear_progress(show_value=False).props('instant-feedback aria-label="Progress"')
        self.progress.classes("bar")
        self.doing = ui.label().classes("doing").props('role="status"')
        self.wrong = ui.label().classes("said").props('role="alert"')
        self.progress.set_visibility(False)
        self.wrong.set_visibility(False)
        self.canceller.disable()

    # ---- what a person does

    def _changed(self, name: str, final: bool) -> None:
        field = self.tab.form.fields[name]
        if self.work.live:
            if name != "seed" and (final or field.kind == "picture"):
                self.work.changed()
        elif final and self.tab.form.shapes_map(name):
            self.work.changed()
        if final:
            self.result.show()

    def paint(self) -> None:
        """Make the picture."""
        self.fields.blame({})
        self._say("")
        self.work.paint()

    def paint_another(self) -> None:
        """Make the picture with a new seed."""
        self._set_seed(None)
        self.tab.draw_seed()
        self.paint()

    def _set_seed(self, seed: int | None) -> None:
        entry = self.fields.entries.get("seed")
        if isinstance(entry, Entry):
            entry.set(seed)

    def _live(self, live: bool) -> None:
        self.work.live = live
        if live:
            self.work.changed()

    def _maps(self, at_once: bool) -> None:
        self.work.maps_at_once = at_once
        if at_once:
            self.work.redraw_map()

    def _say(self, sentence: str) -> None:
        self.wrong.set_text(sentence)
        self.wrong.set_visibility(bool(sentence))

    # ---- work.View

    def started(self, purpose: Purpose, waiting: bool) -> None:
        with self.client:
            if purpose == "paint":
                self.doing.set_text("Waiting for the server." if waiting else "Painting.")
                self.progress.set_value(0)
                self.progress.set_visibility(True)
                self.painter.disable()
            self.canceller.enable()

    def progressed(self, share: int) -> None:
        with self.client:
            self.progress.set_value(share / 100)
            self.doing.set_text(f"Painting: {share}%")

    def made(self, purpose: Purpose) -> None:
        with self.client:
            self.fields.blame({})
            self._say("")
            ignored = self.result.show_answer(new=purpose != "map")
            self.fields.ignore(ignored)

    def failed(self, purpose: Purpose, sentences: dict[str, str]) -> None:
        with self.client:
            if purpose == "live":
                self.liver.set_value(False)
            self._say(" ".join(self.fields.blame(sentences, focus=purpose == "paint")))

    def ended(self, purpose: Purpose, cancelled: bool) -> None:
        with self.client:
            if purpose == "paint":
                self.progress.set_visibility(False)
                self.doing.set_text("Cancelled." if cancelled else "")
                self.painter.enable()
            if not self.work.others_run(purpose):
                self.canceller.disable()

    # ---- routes.Open

    async def take_file(self, name: str, content: bytes) -> None:
        with self.client:
            await self._picture(name).picture.take_file(content)

    async def take_drawing(self, name: str, layer: bytes | None, sheet: bool, final: bool) -> None:
        with self.client:
            await self._picture(name).picture.take_drawing(layer, sheet, final)

    def program(self, language: str) -> str:
        return self.result.program(language)

    def _picture(self, name: str) -> PictureEntry:
        entry = self.fields.entries[name]
        assert isinstance(entry, PictureEntry)
        return entry


class Opening:
    """A tab from its first moment: it says how the server is, and becomes a Page once the server can be asked."""

    def __init__(self, cog: Cog, tabs: dict[str, Page]) -> None:
        self.cog, self.tabs = cog, tabs
        self.client = ui.context.client
        self.page: Page | None = None
        ui.add_css(CSS)
        dark = ui.dark_mode(None)
        with ui.header().classes("header"):
            ui.label("ControlNet playground").classes("name").props("role=heading aria-level=1")
            self.health = ui.label().classes("health").props('role="status"')
            ui.space()
            after = {None: True, True: False, False: None}
            colours = ui.button(icon="contrast", on_click=lambda: dark.set_value(after[dark.value]))
            colours.props('flat round dense aria-label="Dark, light, or as the system has it"')
        self.here = ui.element("div").classes("page")
        self.client.on_disconnect(self.cancel)
        self.client.on_delete(self.close)

    async def show(self) -> None:
        """Say how the server is. Build the page once it has told its inputs."""
        health = self.cog.health
        busy = f"{self.cog.waiting} waiting." if self.cog.waiting else ""
        self.health.set_text(f"{health.sentence} {busy}")
        self.health.classes(replace=f"health health-{health.status.lower()}")
        if self.page or health.status in (LOST, "STARTING", "SETUP_FAILED"):
            return
        try:
            form = Form.read(await self.cog.document())
        except (ConnectionError, ValueError) as error:
            self.health.set_text(str(error))
            return
        with self.here:
            self.page = Page(self.cog, form, self.client)
        self.tabs[self.page.tab.token] = self.page

    def cancel(self) -> None:
        """Cancel what runs for this tab."""
        if self.page:
            self.page.work.cancel()

    def close(self) -> None:
        """Forget the tab."""
        self.cancel()
        if self.page:
            self.tabs.pop(self.page.tab.token, None)


def run(
    cog: Cog, api: APIRouter, host: str, port: int, watching: Callable[[], AbstractAsyncContextManager[None]]
) -> None:
    """Serve the page and `api` until Ctrl-C. `watching` is entered while the server runs."""
    tabs: dict[str, Page] = {}
    stack = AsyncExitStack()

    async def page() -> None:
        opening = Opening(cog, tabs)
        await cog.look()
        await opening.show()
        ui.timer(1.0, opening.show)

    app.include_router(tab_routes(tabs))
    app.include_router(api)
    app.add_middleware(Guard, host=host)
    app.on_startup(lambda: stack.enter_async_context(watching()))
    app.on_shutdown(stack.aclose)
    ui.page("/", title="ControlNet playground", favicon="🖌")(page)
    ui.run(
        host=host,
        port=port,
        dark=None,
        language="en-US",
        tailwind=False,
        reload=False,
        show=False,
        show_welcome_message=False,
        message_history_length=100,  # without pictures, which go over plain HTTP
        reconnect_timeout=RECONNECT_SECONDS,
    )
