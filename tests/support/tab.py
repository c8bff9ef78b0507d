"""A tab of the playground in a browser, and what a person does there."""

import io
import json
import re
import time
from typing import Any

import numpy as np
from PIL import Image
from playwright.sync_api import TimeoutError as NotInTime

SLOW = 60_000
"""Milliseconds for anything that a busy machine may take long for: a guard against hanging."""


class Tab:
    """A tab with the page, and what a person does there."""

    def __init__(self, page: Any, url: str) -> None:
        self.page, self.url = page, url
        page.set_default_timeout(SLOW)
        self.asked: list[str] = []
        self.wrong: list[str] = []
        page.on("request", lambda request: self.asked.append(request.url))
        page.on("pageerror", lambda error: self.wrong.append(str(error)))
        page.goto(url)
        page.wait_for_selector(".columns")

    def entry(self, name: str) -> Any:
        return self.page.locator(f"[data-input={name}]")

    def fill(self, name: str, value: object) -> None:
        self.open(name)
        self.entry(name).locator("input[type=text], textarea").fill(str(value))

    def choose(self, name: str, value: str) -> None:
        self.open(name)
        self.pick(self.entry(name).locator(".q-select"), self.page.get_by_role("option", name=value, exact=True))

    def pick(self, opener: Any, choice: Any) -> None:
        """Open a menu and click on one of its choices. A menu that closed because the page moved is opened again."""
        opener.click()
        try:
            choice.click(timeout=SLOW / 4)
        except NotInTime:
            opener.click()
            choice.click()

    def open(self, name: str) -> None:
        """Unfold the group of an input."""
        if not self.entry(name).is_visible():
            group = self.page.locator(".more .q-expansion-item", has=self.page.locator(f"[data-input={name}]"))
            group.locator(".q-item").first.click()
            self.entry(name).wait_for()

    def example(self, name: str) -> None:
        with self.next("Picture"):
            example = self.entry("image").get_by_role("button", name="Example")
            self.pick(example, self.page.get_by_role("menuitem", name=name))

    def click(self, name: str) -> None:
        self.page.get_by_role("button", name=name, exact=True).click()

    def address(self, layer: str) -> str:
        """The address of the picture, map or result that is shown. "" if there is none."""
        image = self.page.locator(f".compare-stage img[alt={layer}]")
        return image.get_attribute("src") or "" if image.count() else ""

    def content(self, layer: str) -> bytes:
        return self.page.request.get(self.url + self.address(layer)).body()

    def next(self, layer: str) -> "Next":
        return Next(self, layer)

    def paint(self) -> bytes:
        """Press Paint, wait for the result and return it."""
        with self.next("Result"):
            self.click("Paint")
        return self.content("Result")

    def stroke(self, name: str, *points: tuple[float, float]) -> None:
        """Draw with the mouse, through points in shares of the canvas."""
        canvas = self.entry(name).locator("canvas")
        canvas.hover()  # it may still move, because pictures above it load; this waits until it stands
        box = canvas.bounding_box()
        way = [(box["x"] + share * box["width"], box["y"] + down * box["height"]) for share, down in points]
        with self.page.expect_response(lambda response: f"/{name}/layer" in response.url and "final=1" in response.url):
            self.page.mouse.move(*way[0])
            self.page.mouse.down()
            for at in way:
                self.page.mouse.move(*at, steps=5)
            self.page.mouse.up()

    def program(self, language: str) -> str:
        token = re.search(r"/tab/([^/]+)/", self.address("Picture"))
        assert token
        return self.page.request.get(f"{self.url}/tab/{token[1]}/program/{language}").text()

    def inputs(self) -> dict[str, Any]:
        """The request that made what is shown."""
        found = re.search(r"const input = (.*?);\nlet response", self.program("Node"), re.DOTALL)
        assert found
        return json.loads(found[1])


class Next:
    """Waits, at the end of its block, until a layer shows something else than at its beginning."""

    def __init__(self, tab: Tab, layer: str) -> None:
        self.tab, self.layer = tab, layer

    def __enter__(self) -> None:
        self.before = self.tab.address(self.layer)

    def __exit__(self, kind: object, *rest: object) -> None:
        deadline = time.monotonic() + SLOW / 1000
        while not kind and self.tab.address(self.layer) in ("", self.before):
            assert time.monotonic() < deadline, (
                f"no new {self.layer}: {self.tab.page.locator('.said').all_inner_texts()}"
            )
            self.tab.page.wait_for_timeout(20)


def pixels(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB")).astype(int)
