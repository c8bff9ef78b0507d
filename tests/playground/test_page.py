"""The page in a real browser, in front of the real server with the tiny bundle: what a person would notice."""

import io
import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import TimeoutError as NotInTime
from support import ROOT, browser, toy_predictor
from support.requests_to_tiny import CAT, encoded
from support.server import Server

SLOW = 60_000
"""Milliseconds for anything that a busy machine may take long for: a guard against hanging."""
LANGUAGES = {"curl": ["bash"], "Python": [sys.executable], "Node": ["node"]}


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
        canvas.scroll_into_view_if_needed()
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


@pytest.fixture
def tab(chromium: Any, playground: str) -> Iterator[Tab]:
    """A new tab. At its end, nothing went wrong in it and no request has left the machine."""
    context = chromium.new_context(viewport={"width": 1280, "height": 1000})
    opened = Tab(context.new_page(), playground)
    yield opened
    assert opened.wrong == []
    assert {url for url in opened.asked if not url.startswith((playground, "data:", "blob:"))} == set()
    context.close()


def pixels(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB")).astype(int)


# ---- painting


def test_the_first_click_paints(tab: Tab, server: Server) -> None:
    made = tab.paint()
    assert tab.inputs()["conditioner"] == "scribble" and "house" in tab.inputs()["prompt"]
    assert server.run(**tab.inputs()).files == [made], "the same request, sent directly"
    assert tab.page.get_by_role("button", name="Keep seed").inner_text().endswith(str(tab.inputs()["seed"]))


def test_the_seed_can_be_kept_and_drawn_anew(tab: Tab) -> None:
    tab.fill("num_inference_steps", 2)
    first, seed = tab.paint(), tab.inputs()["seed"]
    with tab.next("Result"):
        tab.click("Again with another seed")
    assert tab.inputs()["seed"] != seed and tab.content("Result") != first
    tab.fill("seed", seed)
    assert tab.paint() == first
    tab.page.get_by_role("button", name="Keep seed").click()
    assert tab.entry("seed").locator("input[type=text]").input_value() == str(seed)


def test_several_pictures_can_be_looked_at(tab: Tab) -> None:
    tab.fill("num_inference_steps", 1)
    tab.fill("num_outputs", 2)
    first = tab.paint()
    with tab.next("Result"):
        tab.click("Picture 2")
    assert tab.content("Result") != first
    names = tab.page.locator(".downloads a").evaluate_all("links => links.map((each) => each.download)")
    assert names == ["map.webp", "picture-1.webp", "picture-2.webp"]


def test_painting_shows_progress_and_is_cancelled_by_the_button_and_by_closing(
    tab: Tab, server: Server, chromium: Any, playground: str
) -> None:
    other = Tab(chromium.new_context().new_page(), playground)
    for closes in (False, True):
        painting = other if closes else tab
        painting.fill("num_inference_steps", 100)
        painting.fill("resolution", 256)
        painting.page.wait_for_timeout(1000)
        painting.entry("image").get_by_role("button", name="File").focus()  # which would take Enter for itself
        painting.page.keyboard.press("Control+Enter")
        painting.page.get_by_text(re.compile(r"Painting: [1-9]\d*%")).wait_for()
        if closes:
            other.page.context.close()
        else:
            tab.page.keyboard.press("Escape")
            tab.page.get_by_text("Cancelled.").wait_for()
        deadline = time.monotonic() + 20
        while server.health()["status"] != "READY":
            assert time.monotonic() < deadline, "it goes on"
    assert tab.address("Result") == ""
    assert tab.page.get_by_role("button", name="Paint", exact=True).is_enabled()


def test_what_had_no_effect_is_said(tab: Tab) -> None:
    tab.fill("num_inference_steps", 1)
    tab.fill("upscale_strength", 0.5)
    tab.paint()
    assert tab.page.locator(".had-no-effect").inner_text() == "Had no effect: upscale_strength."
    assert "ignored" in (tab.entry("upscale_strength").get_attribute("class") or "")


# ---- the map


def test_after_forty_quick_moves_the_map_is_that_of_the_last(tab: Tab, server: Server) -> None:
    tab.choose("conditioner", "canny")
    tab.example("coffee")
    tab.entry("low_threshold").wait_for()
    assert not tab.entry("tile_factor").is_visible(), "a knob of another conditioner"
    tab.page.wait_for_timeout(1500)
    with tab.next("Map"):
        knob = tab.entry("low_threshold").locator(".q-slider [tabindex='0']")
        knob.focus()
        for _ in range(40):
            knob.press("ArrowLeft")
    deadline = time.monotonic() + SLOW / 1000
    while (inputs := tab.inputs())["low_threshold"] != 60:  # that of the map which is shown
        assert time.monotonic() < deadline, inputs["low_threshold"]
        tab.page.wait_for_timeout(100)
    asked = {name: inputs[name] for name in ("prompt", "image", "low_threshold")}  # canny is the default
    assert server.run(**asked, map_only=True).files == [tab.content("Map")]
    address = tab.address("Map")
    tab.fill("prompt", "something else")
    tab.page.wait_for_timeout(1500)
    assert tab.address("Map") == address


# ---- drawing


def test_a_stroke_changes_map_and_picture_and_undo_takes_it_back(tab: Tab) -> None:
    tab.page.wait_for_function("document.querySelector('.compare-stage img[alt=Map]')")
    doodle, drawn = tab.content("Picture"), tab.content("Map")
    assert doodle == (ROOT / "examples/doodle.png").read_bytes()
    with tab.next("Map"):
        tab.stroke("image", (0.1, 0.1), (0.9, 0.1))
    with_line = pixels(tab.content("Picture"))
    assert with_line[38, 192].max() < 50 and pixels(doodle)[38, 192].min() > 200
    with tab.next("Map"):
        tab.click("Undo the last stroke")
    assert tab.content("Picture") == doodle and tab.content("Map") == drawn
    tab.click("Eraser")
    tab.stroke("image", (0.02, 0.85), (0.98, 0.85))
    tab.page.wait_for_timeout(300)
    assert (pixels(tab.content("Picture"))[300:, 20] < 100).any(), "the ground's line is elsewhere"
    tab.click("White on black, or black on white")
    tab.page.wait_for_timeout(500)
    assert pixels(tab.content("Picture"))[2, 2].max() < 50
    tab.click("Clear")
    tab.page.wait_for_timeout(500)
    assert pixels(tab.content("Picture")).max() < 50


def test_a_finger_draws_and_does_not_scroll(chromium: Any, playground: str) -> None:
    context = chromium.new_context(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    tab = Tab(context.new_page(), playground)
    assert tab.page.evaluate("document.documentElement.scrollWidth") <= 390
    tab.entry("image").get_by_role("button", name="Sheet").click()
    box = tab.entry("image").locator("canvas").bounding_box()
    cdp = context.new_cdp_session(tab.page)
    x, y = box["x"] + box["width"] / 2, box["y"] + 40
    with tab.page.expect_response(lambda response: "final=1" in response.url):
        cdp.send("Input.dispatchTouchEvent", {"type": "touchStart", "touchPoints": [{"x": x, "y": y}]})
        for step in range(1, 20):
            cdp.send("Input.dispatchTouchEvent", {"type": "touchMove", "touchPoints": [{"x": x, "y": y + 8 * step}]})
        cdp.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    tab.page.wait_for_timeout(300)
    assert tab.page.evaluate("window.scrollY") == 0
    column = pixels(tab.content("Picture"))[:, 256].max(axis=1)
    assert (column < 50).sum() > 100, "a long line"
    context.close()


def test_a_mask_painted_by_mouse_repaints_only_there(tab: Tab) -> None:
    tab.example("house")
    tab.fill("num_inference_steps", 4)
    tab.fill("mask_feather", 0)
    tab.choose("output_format", "png")
    tab.open("mask")
    tab.entry("mask").get_by_role("button", name="Mark a part").click()
    tab.stroke("mask", (0.2, 0.2), (0.4, 0.2), (0.4, 0.3), (0.2, 0.3))
    made = pixels(tab.paint())
    size = made.shape[1], made.shape[0]
    before = pixels(
        encoded(Image.open(ROOT / "examples/house.png").convert("RGB").resize(size, Image.Resampling.LANCZOS))
    )
    changed = np.abs(made - before).max(axis=2) > 8
    height, width = changed.shape
    assert changed[: height // 2, : width // 2].any()
    assert not changed[height // 2 :].any() and not changed[:, width // 2 + 8 :].any()


def test_files_are_chosen_dropped_and_pasted(tab: Tab, tmp_path: Path) -> None:
    cat, other = encoded(CAT), encoded(CAT.rotate(180))
    (tmp_path / "cat.png").write_bytes(cat)
    with tab.next("Picture"), tab.page.expect_file_chooser() as chooser:
        tab.entry("image").get_by_role("button", name="File").click()
        chooser.value.set_files(tmp_path / "cat.png")
    assert tab.content("Picture") == cat
    for target, event, carrier in ((".ask .pad", "drop", "dataTransfer"), ("body", "paste", "clipboardData")):
        content = other if event == "drop" else cat
        with tab.next("Picture"):
            tab.page.evaluate(
                """([target, event, carrier, bytes]) => {
                    const carried = new DataTransfer();
                    carried.items.add(new File([new Uint8Array(bytes)], "x.png", { type: "image/png" }));
                    const kind = event === "drop" ? DragEvent : ClipboardEvent;
                    const sent = new kind(event, { [carrier]: carried, bubbles: true, cancelable: true });
                    document.querySelector(target).dispatchEvent(sent);
                }""",
                [target, event, carrier, list(content)],
            )
        assert tab.content("Picture") == content
    (tmp_path / "no.png").write_bytes(b"no picture")
    with tab.page.expect_file_chooser() as chooser:
        tab.entry("image").get_by_role("button", name="File").click()
        chooser.value.set_files(tmp_path / "no.png")
    tab.entry("image").get_by_text("This file is not a picture").wait_for()


def test_live_the_picture_follows_the_pen(tab: Tab) -> None:
    with tab.next("Result"):
        tab.page.locator(".q-toggle", has_text="Live").click()
    seen = {tab.address("Result")}
    box = tab.entry("image").locator("canvas").bounding_box()
    tab.page.mouse.move(box["x"] + 20, box["y"] + 20)
    tab.page.mouse.down()
    deadline = time.monotonic() + SLOW / 1000
    for step in range(10_000):
        tab.page.mouse.move(box["x"] + 20 + step % 300, box["y"] + 20 + step // 10)
        seen.add(tab.address("Result"))
        if len(seen) >= 4 or time.monotonic() > deadline:
            break
    assert len(seen) >= 4, "while the pen is down"
    with tab.next("Result"):
        tab.page.mouse.up()
    tab.page.wait_for_timeout(3000)
    inputs = tab.inputs()
    assert inputs["go_fast"] and inputs["image"] != "" and "map.webp" in tab.page.locator(".downloads").inner_text()


# ---- errors


def test_errors_stand_beside_their_fields(tab: Tab) -> None:
    tab.fill("eta", 9)
    tab.click("Paint")
    said = tab.entry("eta").get_by_role("alert")
    said.wait_for()
    assert "9" in said.inner_text() and "maximum" in said.inner_text()
    field = tab.entry("eta").locator("input[type=text]")
    assert field.get_attribute("aria-invalid") == "true" and field.input_value() == "9"
    assert tab.page.evaluate("document.activeElement.closest('[data-input]').dataset.input") == "eta"
    tab.fill("eta", "")
    tab.fill("num_inference_steps", 50)
    tab.entry("go_fast").locator(".q-toggle").click()
    tab.click("Paint")
    said = tab.entry("go_fast").get_by_role("alert")
    said.wait_for()
    assert said.inner_text().startswith("go_fast takes 2 to 8 steps: got 50.")
    tab.fill("num_inference_steps", "")
    tab.paint()
    assert not said.is_visible()


# ---- code


def test_copied_programs_give_the_bytes_on_the_page(tab: Tab, tmp_path: Path, chromium: Any) -> None:
    tab.fill("num_inference_steps", 2)
    tab.fill("prompt", "a 'house' \"$HOME\" `id` \\ \n</script> JSON\nJSON\n{x} 100% é 家 \u2028 ${1}")
    made = tab.paint()
    tab.page.locator(".result .q-expansion-item .q-item").click()
    tab.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    for language, command in LANGUAGES.items():
        tab.page.get_by_role("tab", name=language).click()
        tab.page.get_by_role("button", name="Copy", exact=True).click()
        tab.page.wait_for_timeout(500)
        copied = tab.page.evaluate("navigator.clipboard.readText()")
        assert copied == tab.program(language)
        folder = tmp_path / language
        folder.mkdir()
        suffix = {"Node": "mjs"}.get(language, "txt")
        (folder / f"program.{suffix}").write_text(copied, encoding="utf-8")
        done = subprocess.run([*command, f"program.{suffix}"], cwd=folder, capture_output=True, text=True, timeout=120)
        assert (done.returncode, done.stderr) == (0, ""), done.stderr
        assert [path.read_bytes() for path in sorted(folder.glob("output-*"))] == [made]


# ---- the page itself


def test_two_tabs_know_nothing_of_each_other(tab: Tab, playground: str) -> None:
    other = Tab(tab.page.context.new_page(), playground)
    tab.fill("prompt", "mine")
    other.fill("num_inference_steps", 1)
    with other.next("Result"):
        other.click("Paint")
    assert "mine" not in other.inputs()["prompt"] and tab.address("Result") == ""
    there = other.page.request.get(other.url + other.address("Result").replace(*tokens(other, tab)))
    assert there.status == 404, "its files are its own"


def tokens(*tabs: Tab) -> list[str]:
    return [tab.address("Picture").split("/")[2] for tab in tabs]


@pytest.fixture(scope="module")
def axe(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The source of axe-core, from npm."""
    folder = tmp_path_factory.mktemp("axe")
    try:
        subprocess.run(["npm", "install", "--silent", "axe-core"], cwd=folder, check=True, timeout=120)
    except (OSError, subprocess.SubprocessError):
        pytest.skip("needs axe-core from npm")
    return (folder / "node_modules/axe-core/axe.min.js").read_text(encoding="utf-8")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_axe_finds_nothing(chromium: Any, playground: str, axe: str, scheme: str, width: int) -> None:
    context = chromium.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    tab = Tab(context.new_page(), playground)
    tab.fill("eta", 9)
    tab.click("Paint")
    tab.entry("eta").get_by_role("alert").wait_for()
    tab.page.locator(".result .q-expansion-item .q-item").click()
    tab.open("mask")
    tab.page.wait_for_timeout(1000)
    tab.page.evaluate(axe)
    found = tab.page.evaluate("async () => (await axe.run()).violations.map((each) => [each.id, each.nodes[0].html])")
    assert found == []
    context.close()


def test_an_unknown_interface_a_lost_server_and_its_return(chromium: Any, tmp_path: Path) -> None:
    root = toy_predictor.write(tmp_path)
    with Server(toy_predictor.ENVIRON, root) as server, browser.playground(server.url) as url:
        context = chromium.new_context()
        tab = Tab(context.new_page(), url)
        groups = tab.page.locator(".more .q-expansion-item .q-item__label").all_inner_texts()
        assert groups == ["More"], "what no group names"
        tab.page.locator(".said").first.wait_for(state="attached")
        tab.choose("mode", "fail")
        tab.click("Paint")
        tab.page.get_by_text("a 1x1 picture is too small; send one of at least 16 pixels.").wait_for()
        server.stop()
        tab.page.locator(".health").get_by_text(f"{server.url} does not answer").wait_for()
        tab.click("Paint")
        tab.page.locator(".ask .said").get_by_text("does not answer").wait_for()
        context.close()
