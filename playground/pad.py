"""A picture of a request: chosen, dropped, pasted, an example, or drawn; or a mask that is painted over another one."""

import asyncio
from collections.abc import Callable
from functools import partial

from nicegui import ui
from nicegui.element import Element

from playground.form import Field
from playground.pictures import size_to_draw
from playground.tab import EXAMPLES, PICTURES, Tab

SHEET = 512
"""Sides of an empty sheet of paper, in pixels."""
PEN, PEN_OF_MASK = 12, 40
"""How wide a pen is at the start, in pixels of what is drawn on."""
DRAWING = "doodle.png"
"""The example that is a drawing: it lies on the sheet and can be drawn on and erased."""


class Pad(Element, component="pad.js"):
    """The canvas. Its props are described in pad.js."""


class PictureInput:
    """One input that is a picture, with its tools."""

    def __init__(
        self, tab: Tab, field: Field, on_change: Callable[[str, bool], None], start: str | None = None
    ) -> None:
        """`on_change` is called with the input's name, and whether the stroke is over. `start` names an example."""
        self.tab, self.field, self.on_change = tab, field, on_change
        self.sheet = False
        with ui.element("section").classes("picture").props(f'aria-label="{field.title}"'):
            with ui.row().classes("picture-sources"):
                self._button("upload", "Choose a file, or drop or paste one", self._pick, "File")
                if not field.is_mask:
                    self._button("edit", "Draw on an empty sheet", self.new_sheet, "Sheet")
                    with self._button("collections", "Take one of the examples", None, "Example"), ui.menu():
                        for name in PICTURES:
                            title = name.rpartition(".")[0]
                            ui.menu_item(title, partial(self.take_example, name)).props("role=menuitem")
                else:
                    self._button("brush", "Paint over a part of the picture", self.paint_mask, "Mark a part")
                self.remover = self._button("close", "Leave this picture out", self.remove, "Remove")
            self.pad = Pad().classes("pad-box")
            self.pad.props.update(
                url=f"/tab/{tab.token}/{field.name}",
                ink="black",
                size=PEN_OF_MASK if field.is_mask else PEN,
                eraser=False,
                pastes=field.name == tab.form.picture,
            )
            self.pad.props["label"] = f"{field.title}: draw with mouse, pen or finger"
            self.pad.on("refused", lambda event: self.refuse(str(event.args)))
            with ui.row().classes("picture-tools") as self.tools:
                self.eraser = self._button("sym_o_ink_eraser", "Eraser", self._switch_eraser)
                self._button("undo", "Undo the last stroke", lambda: self.pad.run_method("undo"))
                self._button("layers_clear", "Clear", lambda: self.pad.run_method("clear"))
                self.inverter = self._button("invert_colors", "White on black, or black on white", self._invert)
                self.inverter.set_visibility(not field.is_mask)
                pen = ui.slider(min=2, max=64, value=self.pad.props["size"])
                pen.props(f'aria-label="Pen size of {field.title}" label').classes("pen-size").tooltip("Pen size")
                pen.on_value_change(lambda event: self._set(size=event.value))
            self.said = ui.label().classes("said").props('role="alert"')
        self.said.set_visibility(False)
        self._set(mode="mask" if field.is_mask else "photo", width=SHEET, height=SHEET, background=None)
        self._show(False)
        if start:
            self.take_example(start, silent=True)

    @staticmethod
    def _button(icon: str, title: str, handler: Callable[[], object] | None, text: str = "") -> ui.button:
        button = ui.button(text, icon=icon, on_click=handler).props("flat dense no-caps size=sm")
        if not text:
            button.props(f'aria-label="{title}"')
        with button:
            ui.tooltip(title)
        return button

    def _set(self, **props: object) -> None:
        self.pad.props.update(props)
        self.pad.update()

    def _show(self, shown: bool) -> None:
        for element in (self.tools, self.remover):
            element.set_visibility(shown)
        self.pad.classes(add="" if shown else "pad-hidden", remove="pad-hidden" if shown else "")
        self.remover.set_visibility(shown and not self.field.required)

    def _switch_eraser(self) -> None:
        erases = not self.pad.props["eraser"]
        self._set(eraser=erases)
        self.eraser.props(f"aria-pressed={str(erases).lower()}").classes(
            add="pressed" if erases else "", remove="" if erases else "pressed"
        )

    def _pick(self) -> None:
        self.pad.run_method("pick")

    def _invert(self) -> None:
        self._set(ink="white" if self.pad.props["ink"] == "black" else "black")

    # ---- where the picture comes from

    def new_sheet(self) -> None:
        """Put an empty sheet there. Nothing is sent before something is drawn."""
        self.sheet = True
        self.tab.remove(self.field.name)
        self._set(mode="sheet", background=None, width=SHEET, height=SHEET)
        self.pad.run_method("reset")
        self._show(True)
        self._changed()

    def take_example(self, name: str, silent: bool = False) -> None:
        """Take one of the examples by its file's name."""
        self.tab.take_upload(self.field.name, (EXAMPLES / name).read_bytes())
        self.show_upload(sheet=name == DRAWING, silent=silent)

    def paint_mask(self) -> None:
        """Paint a mask over the picture that it belongs to."""
        if not self.show_below():
            return self.refuse("Choose the picture first: the mask is painted over it.")
        self.tab.remove(self.field.name)
        self._set(mode="mask")
        self.pad.run_method("reset")
        self._show(True)
        return self.refuse("")

    def show_below(self) -> bool:
        """Show the picture that is below a mask, as it is now. Returns whether there is one."""
        below = self.tab.form.over(self.field.name, self.tab.pictures)
        if below is None:
            return False
        if self.field.name not in self.tab.uploads:
            picture = self.tab.pictures[below]
            width, height = size_to_draw(picture)
            if (width, height) != (self.pad.props["width"], self.pad.props["height"]):
                self.tab.remove(self.field.name)  # the canvas of another size is empty
            self._set(background=f"/tab/{self.tab.token}/file/{picture.digest}", width=width, height=height)
        return True

    def show_upload(self, sheet: bool = False, silent: bool = False) -> None:
        """Show the file that was taken, to be drawn on."""
        upload = self.tab.uploads[self.field.name]
        width, height = size_to_draw(upload)
        self.sheet = sheet
        background = f"/tab/{self.tab.token}/file/{upload.digest}"
        self._set(mode="sheet" if sheet else "photo", background=background, width=width, height=height, ink="black")
        self.pad.run_method("reset")
        self._show(True)
        self.refuse("")
        if not silent:
            self._changed()

    def remove(self) -> None:
        """Leave the picture out."""
        self.tab.remove(self.field.name)
        self._set(background=None, mode="mask" if self.field.is_mask else "photo")
        self._show(False)
        self.refuse("")
        self._changed()

    # ---- what the browser sends

    async def take_file(self, content: bytes) -> None:
        """Take a file that was chosen, dropped or pasted. Raises NoPicture."""
        await asyncio.to_thread(self.tab.take_upload, self.field.name, content)
        self.show_upload()

    async def take_drawing(self, layer: bytes | None, sheet: bool, final: bool) -> None:
        """Take what was drawn so far. `final`: the pen is up. Raises NoPicture."""
        await asyncio.to_thread(self.tab.take_drawing, self.field.name, layer, sheet)
        self.refuse("")
        self.on_change(self.field.name, final)

    def refuse(self, sentence: str) -> None:
        """Show what is wrong with the picture. "" for nothing."""
        self.said.set_text(sentence)
        self.said.set_visibility(bool(sentence))

    def _changed(self) -> None:
        self.on_change(self.field.name, True)
