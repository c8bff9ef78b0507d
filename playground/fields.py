"""The form on the page: an entry for each input, in groups, with its explanation and what is wrong with it."""

from collections.abc import Callable, Mapping
from typing import Any

from nicegui import ui
from nicegui.elements.mixins.value_element import ValueElement

from playground.form import FIRST, Field, Group, typed
from playground.pad import DRAWING, PictureInput
from playground.tab import Tab

SLIDER_STEPS = 2000
"""A range of more steps gets no slider: it could not be set to each value by hand."""
LONG = ("prompt", "negative_prompt", "n_prompt", "a_prompt", "pose_json")
"""Texts that may take several lines."""
LEFT_OUT = "left out"


def focus_on(field: Field, selector: str) -> None:
    """Move the keyboard's focus to an entry, and the entry into the middle of the window."""
    ui.run_javascript(
        f"const entry = document.querySelector('[data-input={field.name}]');"
        "entry?.scrollIntoView({block: 'center'});"
        f"entry?.querySelector('{selector}')?.focus({{preventScroll: true}})"
    )


class Slider(ui.slider):
    """One whose value the server does not send back. It would undo what has been moved meanwhile."""

    LOOPBACK = False


class Entry:
    """One input on the page."""

    def __init__(self, tab: Tab, field: Field, on_change: Callable[[str], None]) -> None:
        self.tab, self.field, self.on_change = tab, field, on_change
        self.box = ui.element("div").classes("entry").props(f'data-input="{field.name}"')
        self.slider: ui.slider | None = None
        self._following = False
        """Whether the slider is being moved to what was entered, which must not enter anything itself."""
        with self.box:
            self.element = self._build()
            if field.description:
                ui.label(field.description).classes("explained").props(f"id=about-{field.name}")
            self.said = ui.label().classes("said").props(f'role="alert" id=said-{field.name}')
        if not isinstance(self.element, ui.switch):
            self.element.props("hide-bottom-space")  # else one with an error moves its explanation away
        self.element.props(f'aria-describedby="about-{field.name} said-{field.name}"')
        self.said.set_visibility(False)

    def _build(self) -> ValueElement[Any]:
        field = self.field
        value = self.tab.values.get(field.name, field.default)
        if field.kind == "boolean":
            if field.default is None:  # on, off, or what the server takes
                options = {None: LEFT_OUT, True: "on", False: "off"}
                return self._wired(ui.select(options, value=value, label=field.title).props("outlined dense"))
            return self._wired(ui.switch(field.title, value=bool(value)).props("dense"))
        if field.kind == "choice":
            options = {choice: str(choice) for choice in field.choices}
            if field.default is None and not field.required:
                options = {None: LEFT_OUT} | options
            if field.required and value is None:
                self.tab.values[field.name] = value = field.choices[0]
            return self._wired(ui.select(options, value=value, label=field.title).props("outlined dense options-dense"))
        if field.kind in ("integer", "number"):
            return self._number(value)
        if field.name in LONG:
            text = ui.textarea(field.title, value=value or "").props("outlined dense autogrow")
            return self._wired(text.props("input-style='min-height: 2.6em'"))
        return self._wired(ui.input(field.title, value="" if value is None else str(value)).props("outlined dense"))

    def _number(self, value: Any) -> ValueElement[Any]:
        """A box, with a slider beside it if there is a range. Neither bounds what may be entered: the server does."""
        field = self.field
        with ui.row().classes("number"):
            low, high = field.minimum, field.maximum
            step = 1 if field.kind == "integer" else 0.05 if (high or 0) - (low or 0) > 1 else 0.01
            usual = field.usual(self.tab.bundle)
            if low is not None and high is not None and (high - low) / step <= SLIDER_STEPS:
                at = value if value is not None else usual if usual is not None else low
                self.slider = Slider(min=low, max=high, step=step, value=at, on_change=self._slid)
                self.slider.props(f'aria-label="{field.title}, slider"').classes("slider")
            box = ui.input(field.title, value="" if value is None else f"{value:g}")
            hint = f"{usual:g}" if usual is not None else LEFT_OUT
            box.props(f'outlined dense inputmode=decimal placeholder="{hint}" stack-label clearable')
            box.classes("number-box")
            if field.bounds:
                box.tooltip(field.bounds)
        return self._wired(box)

    def _wired(self, element: ValueElement[Any]) -> ValueElement[Any]:
        element.on_value_change(lambda event: self._entered(event.value))
        return element.classes("full-width")

    def _slid(self, event: Any) -> None:
        if not self._following:
            self.element.set_value(f"{event.value:g}")

    def _entered(self, value: Any) -> None:
        kept = typed(self.field, value)
        if self.slider and isinstance(kept, (int, float)):
            self._following = True
            self.slider.set_value(min(max(kept, self.slider.props["min"]), self.slider.props["max"]))
            self._following = False
        if kept is None:
            self.tab.values.pop(self.field.name, None)
        else:
            self.tab.values[self.field.name] = kept
        self.blame("")
        self.on_change(self.field.name)

    def set(self, value: Any) -> None:
        """Enter a value."""
        self.element.set_value(
            value if self.field.kind in ("boolean", "choice") else "" if value is None else str(value)
        )

    def blame(self, sentence: str, focus: bool = False) -> None:
        """Show what is wrong with it. "" for nothing."""
        self.said.set_text(sentence)
        self.said.set_visibility(bool(sentence))
        self.element.props(f"aria-invalid={str(bool(sentence)).lower()}")
        if not isinstance(self.element, ui.switch):
            self.element.props(add="error" if sentence else "", remove="" if sentence else "error")
        if focus:
            focus_on(self.field, ":is(input, textarea)")

    def ignore(self, ignored: bool) -> None:
        """Mark it as an input that had no effect."""
        self.box.classes(add="ignored" if ignored else "", remove="" if ignored else "ignored")


class PictureEntry:
    """One input on the page that is a picture."""

    def __init__(self, tab: Tab, field: Field, on_change: Callable[[str, bool], None]) -> None:
        self.field = field
        self.box = ui.element("div").classes("entry").props(f'data-input="{field.name}"')
        with self.box:
            ui.label(field.title).classes("picture-title")
            self.picture = PictureInput(tab, field, on_change, DRAWING if field.name == tab.form.picture else None)
            ui.label(field.description).classes("explained")

    def blame(self, sentence: str, focus: bool = False) -> None:
        """Show what is wrong with it. "" for nothing."""
        self.picture.refuse(sentence)
        if focus:
            focus_on(self.field, "button")

    def ignore(self, ignored: bool) -> None:
        """Mark it as an input that had no effect."""
        self.box.classes(add="ignored" if ignored else "", remove="" if ignored else "ignored")


class Fields:
    """All entries of the form."""

    def __init__(self, tab: Tab, on_change: Callable[[str, bool], None]) -> None:
        """`on_change` is called with the name of an input that changed, and whether that was all for now."""
        self.tab, self.on_change = tab, on_change
        self.entries: dict[str, Entry | PictureEntry] = {}
        self._expansions: dict[Group, ui.expansion] = {}

    def build_first(self) -> None:
        """Build the first group: what every request has."""
        for group, members in self.tab.form.groups().items():
            if group.title == FIRST:
                for field in sorted(members, key=lambda field: field.kind != "picture"):
                    self._build(field)
        self.show_useful()

    def build_others(self) -> None:
        """Build the other groups, folded but for the map's knobs."""
        for group, members in self.tab.form.groups().items():
            if group.title != FIRST:
                expansion = ui.expansion(group.title, value=group.title == "Map").classes("group").props("dense")
                self._expansions[group] = expansion
                with expansion:
                    for field in members:
                        self._build(field)
        self.show_useful()

    def _build(self, field: Field) -> None:
        if field.kind == "picture":
            self.entries[field.name] = PictureEntry(self.tab, field, self._changed)
        else:
            self.entries[field.name] = Entry(self.tab, field, lambda name: self._changed(name, True))

    def _changed(self, name: str, final: bool) -> None:
        if name in self.entries:
            self.show_useful()
        for entry in self.entries.values():
            is_mask = isinstance(entry, PictureEntry) and entry.field.is_mask and entry.field.name != name
            if isinstance(entry, PictureEntry) and is_mask and final and self.tab.form.fields[name].kind == "picture":
                entry.picture.show_below()
        self.on_change(name, final)

    def show_useful(self) -> None:
        """Show the knobs of the chosen conditioners, and no others; and groups that have something to show."""
        form, values = self.tab.form, self.tab.values
        useful = {name: form.shown(entry.field, values) for name, entry in self.entries.items()}
        for name, entry in self.entries.items():
            entry.box.set_visibility(useful[name])
        for group, expansion in self._expansions.items():
            expansion.set_visibility(any(useful.get(field.name) for field in form.groups()[group]))

    def blame(self, sentences: Mapping[str, str], focus: bool = False) -> list[str]:
        """Show each sentence beside the input that it names. Returns those of no input on the page.

        `focus` moves the keyboard's focus to the first of them.
        """
        rest = []
        for entry in self.entries.values():
            entry.blame("")
        for index, (name, sentence) in enumerate(sentences.items()):
            entry = self.entries.get(name)
            if entry is None:
                rest.append(sentence if name in ("", None) else f"{name}: {sentence}")
                continue
            if expansion := self._expansions.get(entry.field.group):
                expansion.set_value(True)
            entry.blame(sentence, focus=focus and index == 0)
        return rest

    def ignore(self, names: list[str]) -> None:
        """Mark the inputs that had no effect."""
        for name, entry in self.entries.items():
            entry.ignore(name in names)
