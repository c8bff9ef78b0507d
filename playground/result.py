"""The right half of the page: what came of a request, to compare, to save and to run again."""

from collections.abc import Callable
from functools import partial
from typing import Any

from nicegui import ui
from nicegui.element import Element

from playground.programs import LANGUAGES, program, shortened
from playground.tab import Tab

FITS = {"crop": "cover", "fill": "contain", "stretch": "fill"}
"""By resize_mode."""
COPY = """
async () => {
  const text = await (await fetch('URL')).text();
  if (!navigator.clipboard) return emit('The browser copies from this machine or over https alone: download it.');
  await navigator.clipboard.writeText(text);
  emit('Copied.');
}
"""


class Compare(Element, component="compare.js"):
    """Pictures on top of each other, with a slider."""

    def show(self, layers: dict[str, str], fit: str) -> None:
        """Show pictures by their names, first to last. `fit` is how the first lies in the shape of the last."""
        fits = {label: fit if index == 0 else "contain" for index, label in enumerate(layers)}
        self.props["layers"] = [{"label": label, "url": url, "fit": fits[label]} for label, url in layers.items()]
        self.update()


class Result:
    """The last answer of a tab."""

    def __init__(
        self, tab: Tab, server: str, keep_seed: Callable[[int], None], paint_another: Callable[[], None]
    ) -> None:
        """`server` is the URL that copied programs ask."""
        self.tab, self.server = tab, server
        self.chosen = 0
        """Which of several pictures is shown."""
        self.compare = Compare().classes("compare-box")
        self.empty = ui.label("Press Paint: all that it needs is there.").classes("empty")
        self.thumbnails = ui.row().classes("thumbnails")
        with ui.row().classes("buttons") as self.seeds:
            self.keeper = ui.button("Keep seed", icon="push_pin", on_click=lambda: keep_seed(self.seed()))
            again = ui.button("Again with another seed", icon="casino", on_click=paint_another)
            for button in (self.keeper, again):
                button.props("outline no-caps")
        self.ignored = ui.label().classes("had-no-effect").props('role="status"')
        self.downloads = ui.row().classes("downloads")
        with ui.expansion("Code", icon="code").classes("group").props("dense") as self.code:
            with ui.tabs().props("dense no-caps align=left active-color=primary") as tabs:
                for language in LANGUAGES:
                    ui.tab(language)
            with ui.tab_panels(tabs, value="curl", animated=False).classes("full-width"):
                self.listings = {language: self._build_program(language) for language in LANGUAGES}
            ui.label("Run, it writes the very files that are shown here.").classes("explained")
        self.code.on_value_change(self._show_programs)
        self.show()

    def _build_program(self, language: str) -> ui.label:
        url = f"/tab/{self.tab.token}/program/{language}"
        with ui.tab_panel(language).classes("program"):
            with ui.row():
                copier = ui.button("Copy", icon="content_copy").props("flat dense no-caps")
                # In the browser, since it must be the click itself that copies.
                copier.on("click", lambda event: ui.notify(event.args), js_handler=COPY.replace("URL", url))
                self._link(f"Download {LANGUAGES[language]}", url, LANGUAGES[language])
            return ui.label().classes("listing").props(f'tabindex=0 role="region" aria-label="{language} program"')

    @staticmethod
    def _link(text: str, url: str, name: str) -> None:
        ui.button(text, icon="download").props(f'flat dense no-caps type=a href="{url}" download="{name}"')

    def _url(self, digest: str) -> str:
        return f"/tab/{self.tab.token}/file/{digest}"

    def seed(self) -> int:
        """The seed of the picture that is shown."""
        return int(self.tab.made.metrics.get("seed", 0)) + self.chosen if self.tab.made else 0

    def inputs(self) -> dict[str, Any]:
        """The inputs that made what is shown, or those of the next request."""
        return self.tab.made.inputs if self.tab.made else self.tab.inputs()

    def program(self, language: str) -> str:
        """What is shown, as a program."""
        return program(language, self.server, self.inputs())

    # ---- showing

    def show(self) -> None:
        """Show the pictures as they are now."""
        made, drawn = self.tab.made, self.tab.map
        layers = {}
        if picture := self.tab.pictures.get(self.tab.form.picture or ""):
            layers["Picture"] = self._url(picture.digest)
        if drawn and drawn.maps:
            layers["Map"] = self._url(drawn.maps[0].digest)
        if made and made.pictures:
            layers["Result"] = self._url(made.pictures[min(self.chosen, len(made.pictures) - 1)].digest)
        self.compare.show(layers, self._fit())
        self.empty.set_visibility(not made)
        self.seeds.set_visibility(bool(made and "seed" in made.metrics))
        self.keeper.set_text(f"Keep seed {self.seed()}")
        self._show_programs()

    def show_answer(self, new: bool) -> list[str]:
        """Show the files of the last answers. `new`: there are other pictures, and the first of them is shown.

        Returns the names of the inputs that had no effect on them.
        """
        made = self.tab.made
        self.chosen = 0 if new else self.chosen
        self.downloads.clear()
        self.thumbnails.clear()
        files = {name: file for each in (self.tab.map, made) if each for name, file in each.files().items()}
        with self.downloads:
            for name, file in files.items():
                self._link(name, self._url(file.digest), name)
        pictures = made.pictures if made else ()
        with self.thumbnails:
            for index, file in enumerate(pictures if len(pictures) > 1 else ()):
                button = ui.button(on_click=partial(self._choose, index)).props("flat dense padding=none")
                with button.props(f'aria-label="Picture {index + 1}"'):
                    ui.element("img").props(f'src="{self._url(file.digest)}" alt=""').classes("thumbnail")
        names = [str(name) for name in (made.metrics.get("ignored") or [])] if made else []
        self.ignored.set_text(f"Had no effect: {', '.join(names)}." if names else "")
        if made and (withheld := made.metrics.get("withheld")):
            self.ignored.set_text(f"The safety checker withheld {withheld:.0f}. {self.ignored.text}")
        self.show()
        return names

    def _fit(self) -> str:
        """How the picture lies in what was made of it, in the words of CSS."""
        last = self.tab.made or self.tab.map
        inputs = last.inputs if last else {}
        extended = any(name.startswith("outpaint_") for name in inputs)
        return "contain" if extended else FITS.get(inputs.get("resize_mode", "crop"), "contain")

    def _choose(self, index: int) -> None:
        self.chosen = index
        self.show()

    def _show_programs(self) -> None:
        if self.code.value:
            for language, listing in self.listings.items():
                listing.set_text(program(language, self.server, shortened(self.inputs())))
