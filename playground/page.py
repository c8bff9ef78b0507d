"""The page: what is asked on the left, what came of it on the right."""

import secrets
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from pathlib import Path
from typing import Any

from fastapi import APIRouter
from nicegui import Client, app, ui
from nicegui.element import Element

from playground.cog import LOST, Cog
from playground.fields import Entry, Fields, PictureEntry
from playground.form import Form
from playground.guard import Guard
from playground.programs import LANGUAGES, program, shortened
from playground.routes import tab_routes
from playground.tab import Tab
from playground.work import Purpose, Work

CSS = Path(__file__).with_name("page.css")
BLUE = "#1565c0"
LIGHT_BLUE = "#90caf9"


class Compare(Element, component="compare.js"):
    """Pictures on top of each other, with a slider."""

    def show(self, layers: dict[str, str]) -> None:
        """Show pictures by their names, first to last."""
        self.props["layers"] = [{"label": label, "url": url} for label, url in layers.items()]
        self.update()


class Page:
    """One tab: its form, its requests and what they made. Implements work.View."""

    def __init__(self, cog: Cog, form: Form, client: Client) -> None:
        self.cog, self.client = cog, client
        self.tab = Tab(form)
        self.work = Work(cog, self.tab, self)
        self.seed = secrets.randbelow(2**32)
        self.chosen = 0
        """Which of several pictures is shown."""
        with ui.element("div").classes("columns"):
            with ui.element("section").classes("ask").props('aria-label="Request"'):
                self.fields = Fields(self.tab, self._changed)
                self.fields.build_first()
                self._build_buttons()
            with ui.element("section").classes("result").props('aria-label="Result"'):
                self._build_result()
            with ui.element("section").classes("more").props('aria-label="All inputs"'):
                self.fields.build_others()
        ui.keyboard(self._key, ignore=[])
        self._show()
        self.work.changed()

    # ---- what there is

    def _build_buttons(self) -> None:
        with ui.row().classes("buttons"):
            self.painter = ui.button("Paint", icon="brush", on_click=self.paint).props('unelevated no-caps title="Ctrl+Enter"')
            self.canceller = ui.button("Cancel", icon="close", on_click=self.cancel).props('outline no-caps title="Esc"')
            if "go_fast" in self.tab.form.fields:
                self.liver = ui.switch("Live", on_change=lambda event: self._live(event.value)).props("dense")
                self.liver.tooltip("The picture follows the pen, with go_fast")
            if self.tab.form.draws_maps:
                ui.switch("Map at once", value=True, on_change=lambda event: self._maps(event.value)).props(
                    "dense"
                ).tooltip("Draw the control map whenever picture, conditioner or a knob changes. Off spares a shared server.")
        self.progress = ui.linear_progress(show_value=False).props('instant-feedback aria-label="Progress"').classes("bar")
        self.doing = ui.label().classes("doing").props('role="status"')
        self.wrong = ui.label().classes("said").props('role="alert"')
        self.progress.set_visibility(False)
        self.wrong.set_visibility(False)
        self.canceller.disable()

    def _build_result(self) -> None:
        self.compare = Compare().classes("compare-box")
        self.empty = ui.label("Press Paint. The doodle and the prompt are there already.").classes("empty")
        self.thumbnails = ui.row().classes("thumbnails")
        with ui.row().classes("buttons") as self.after:
            self.keeper = ui.button("Keep seed", icon="push_pin", on_click=self.keep_seed).props("outline no-caps")
            self.again = ui.button("Again with another seed", icon="casino", on_click=self.paint_another)
            self.again.props("outline no-caps")
        self.ignored = ui.label().classes("had-no-effect").props('role="status"')
        self.downloads = ui.row().classes("downloads")
        self.after.set_visibility(False)
        with ui.expansion("Code", icon="code").classes("group").props("dense") as expansion:
            with ui.tabs().props("dense no-caps align=left") as tabs:
                for language in LANGUAGES:
                    ui.tab(language)
            with ui.tab_panels(tabs, value="curl").classes("full-width").props("animated=false"):
                self.listings = {language: self._build_program(language) for language in LANGUAGES}
            ui.label("Run, it writes the very files that are shown here.").classes("explained")
        expansion.on_value_change(lambda event: self._show_programs())
        self.coded = expansion

    def _build_program(self, language: str) -> ui.label:
        url = f"/tab/{self.tab.token}/program/{language}"
        with ui.tab_panel(language).classes("program"):
            with ui.row():
                copier = ui.button("Copy", icon="content_copy").props(f'flat dense no-caps aria-label="Copy the {language} program"')
                copier.on("click", js_handler=f"async () => navigator.clipboard.writeText(await (await fetch('{url}')).text())")
                copier.on("click", lambda: ui.notify("Copied."))
                self._link("Download", url, LANGUAGES[language])
            return ui.label().classes("listing").props(f'tabindex=0 role="region" aria-label="{language} program"')

    @staticmethod
    def _link(text: str, url: str, name: str) -> None:
        button = ui.button(text, icon="download").props(f'flat dense no-caps type=a href="{url}" download="{name}"')
        button.props(f'aria-label="{text} {name}"' if text == "Download" else "")

    # ---- what a person does

    def _changed(self, name: str, final: bool) -> None:
        field = self.tab.form.fields[name]
        if self.work.live and (final or field.kind == "picture") and name != "seed":
            self.work.changed()
        elif final and self.tab.form.shapes_map(name):
            self.work.changed()
        if final:
            self._show()

    def paint(self) -> None:
        """Make the picture."""
        self.fields.blame({})
        self._say("")
        self._with_seed(self.work.paint)

    def paint_another(self) -> None:
        """Make the picture with a seed that is drawn anew."""
        self._set_seed(None)
        self.seed = secrets.randbelow(2**32)
        self.paint()

    def keep_seed(self) -> None:
        """Enter the seed of the picture that is shown."""
        if self.tab.made:
            self._set_seed(int(self.tab.made.metrics.get("seed", self.seed)) + self.chosen)

    def _set_seed(self, seed: int | None) -> None:
        entry = self.fields.entries.get("seed")
        if isinstance(entry, Entry):
            entry.set(seed)

    def cancel(self) -> None:
        """Cancel all that runs."""
        self.work.cancel()

    def _live(self, live: bool) -> None:
        self.work.live = live
        if live:
            self.work.changed()

    def _maps(self, at_once: bool) -> None:
        self.work.maps_at_once = at_once
        if at_once:
            self.work.redraw_map()

    def _key(self, event: Any) -> None:
        if event.action.keydown and event.key == "Enter" and event.modifiers.ctrl:
            self.paint()
        elif event.action.keydown and event.key == "Escape":
            self.cancel()

    # ---- what is shown

    def _say(self, sentence: str) -> None:
        self.wrong.set_text(sentence)
        self.wrong.set_visibility(bool(sentence))

    def _url(self, digest: str) -> str:
        return f"/tab/{self.tab.token}/file/{digest}"

    def _show(self) -> None:
        """Show pictures, map and result, and what can be done with them."""
        made, drawn = self.tab.made, self.tab.map
        layers = {}
        if picture := self.tab.pictures.get("image"):
            layers["Picture"] = self._url(picture.digest)
        if drawn and drawn.maps:
            layers["Map"] = self._url(drawn.maps[0].digest)
        if made and made.pictures:
            layers["Result"] = self._url(made.pictures[min(self.chosen, len(made.pictures) - 1)].digest)
        self.compare.show(layers)
        self.empty.set_visibility(not made)
        self.after.set_visibility(bool(made and made.pictures and "seed" in self.tab.form.fields))
        self._show_programs()

    def _show_files(self) -> None:
        self.downloads.clear()
        self.thumbnails.clear()
        answers = [made for made in (self.tab.made, self.tab.map) if made]
        files = {name: file for made in reversed(answers) for name, file in made.files().items()}
        with self.downloads:
            for name, file in files.items():
                self._link(name, self._url(file.digest), name)
        if self.tab.made and len(self.tab.made.pictures) > 1:
            with self.thumbnails:
                for index, file in enumerate(self.tab.made.pictures):
                    button = ui.button(on_click=lambda index=index: self._choose(index)).props("flat dense padding=none")
                    with button.props(f'aria-label="Picture {index + 1}"'):
                        ui.element("img").props(f'src="{self._url(file.digest)}" alt=""').classes("thumbnail")

    def _choose(self, index: int) -> None:
        self.chosen = index
        self._show_seed()
        self._show()

    def _show_seed(self) -> None:
        made = self.tab.made
        if made and "seed" in made.metrics:
            self.keeper.set_text(f"Keep seed {int(made.metrics['seed']) + self.chosen}")

    def inputs(self) -> dict[str, Any]:
        """The inputs that made what is shown, or those of the next request."""
        return self.tab.made.inputs if self.tab.made else self.tab.inputs()

    def program(self, language: str) -> str:
        """What is shown, as a program."""
        return program(language, self.cog.url, self.inputs())

    def _show_programs(self) -> None:
        if self.coded.value:
            for language, listing in self.listings.items():
                listing.set_text(program(language, self.cog.url, shortened(self.inputs())))

    # ---- work.View

    def _with_seed(self, do: Callable[[], None]) -> None:
        """Do it with a seed among the values, so that what is shown can be made again."""
        values = self.tab.values
        draws = "seed" in self.tab.form.fields and values.get("seed") is None
        if draws:
            values["seed"] = self.seed
        do()
        if draws:
            del values["seed"]

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
            if purpose != "map":
                self.chosen = 0
                self._show_seed()
                made = self.tab.made
                names = [str(name) for name in (made.metrics.get("ignored") or [])] if made else []
                self.fields.ignore(names)
                self.ignored.set_text(f"Had no effect: {', '.join(names)}." if names else "")
            self._show_files()
            self._show()

    def failed(self, purpose: Purpose, sentences: dict[str, str]) -> None:
        with self.client:
            if purpose == "live":
                self.liver.set_value(False)
            self._say(" ".join(self.fields.blame(sentences)))

    def ended(self, purpose: Purpose) -> None:
        with self.client:
            if purpose == "paint":
                self.progress.set_visibility(False)
                self.doing.set_text("")
                self.painter.enable()
            if not any(self.work.is_running(each) for each in ("map", "live", "paint") if each != purpose):
                self.canceller.disable()

    # ---- routes.Open

    async def take_file(self, name: str, content: bytes) -> None:
        with self.client:
            await self._picture(name).picture.take_file(content)

    async def take_drawing(self, name: str, layer: bytes | None, sheet: bool, final: bool) -> None:
        with self.client:
            await self._picture(name).picture.take_drawing(layer, sheet, final)

    def _picture(self, name: str) -> PictureEntry:
        entry = self.fields.entries[name]
        assert isinstance(entry, PictureEntry)
        return entry


def build(cog: Cog, tabs: dict[str, Any]) -> Callable[[], Any]:
    """The function that makes the page for a tab. It puts itself into `tabs` while it is open."""

    async def page() -> None:
        client = ui.context.client
        ui.colors(primary=BLUE)
        ui.add_css(CSS)
        dark = ui.dark_mode(None)
        with ui.header().classes("header"):
            ui.label("ControlNet playground").classes("name").props("role=heading aria-level=1")
            health = ui.label().classes("health").props('role="status"')
            ui.space()
            ui.button(icon="dark_mode", on_click=lambda: dark.set_value(not dark.value)).props(
                'flat round dense aria-label="Dark or light"'
            )
        here = ui.element("div").classes("page")

        async def show() -> None:
            health.set_text(cog.health.sentence if not cog.waiting else f"Busy: {cog.waiting} waiting.")
            health.classes(replace=f"health health-{cog.health.status.lower()}")
            if client.id in opened or cog.health.status in (LOST, "STARTING"):
                return
            try:
                form = Form.read(await cog.document())
            except (ConnectionError, ValueError) as error:
                health.set_text(str(error))
                return
            opened.add(client.id)
            with here:
                made = Page(cog, form, client)
            tabs[made.tab.token] = made

            def close() -> None:
                made.work.cancel()

            def forget() -> None:
                made.work.cancel()
                tabs.pop(made.tab.token, None)
                opened.discard(client.id)

            client.on_disconnect(close)
            client.on_delete(forget)

        opened: set[str] = set()
        await cog.look()
        await show()
        ui.timer(1.0, show)

    return page


def run(cog: Cog, api: APIRouter, host: str, port: int, watching: Callable[[], AbstractAsyncContextManager[None]]) -> None:
    """Serve the page and `api` until Ctrl-C. `watching` is entered while the server runs."""
    tabs: dict[str, Any] = {}
    stack = AsyncExitStack()
    app.include_router(tab_routes(tabs))
    app.include_router(api)
    app.add_middleware(Guard, host=host)
    app.on_startup(lambda: stack.enter_async_context(watching()))
    app.on_shutdown(stack.aclose)
    ui.page("/", title="ControlNet playground", favicon="🖌")(build(cog, tabs))
    ui.run(
        host=host,
        port=port,
        dark=None,
        language="en-US",
        tailwind=False,
        reload=False,
        show=False,
        show_welcome_message=False,
        message_history_length=0,
        reconnect_timeout=3.0,
    )
