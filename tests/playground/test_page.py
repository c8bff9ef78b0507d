"""The page in a real browser, in front of the real server with the tiny bundle: what a person would notice."""

import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from support import browser, toy_predictor
from support.server import Server
from support.tab import SLOW, Tab

LANGUAGES = {"curl": ["bash"], "Python": [sys.executable], "Node": ["node"]}


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
    while (inputs := tab.inputs())["low_threshold"] != 60:  # what is asked for next
        assert time.monotonic() < deadline, inputs["low_threshold"]
        tab.page.wait_for_timeout(100)
    asked = {name: inputs[name] for name in ("prompt", "image", "low_threshold")}  # canny is the default
    (direct,) = server.run(**asked, map_only=True).files
    while tab.content("Map") != direct:
        assert time.monotonic() < deadline, "the last map is another one"
        tab.page.wait_for_timeout(100)
    address = tab.address("Map")
    tab.fill("prompt", "something else")
    tab.page.wait_for_timeout(1500)
    assert tab.address("Map") == address


# ---- how it looks


def test_a_result_of_another_shape_is_not_distorted_and_the_buttons_are_in_sight(tab: Tab) -> None:
    tab.page.set_viewport_size({"width": 1366, "height": 768})
    tab.fill("num_inference_steps", 1)
    for width, height in ((256, 128), (128, 256)):
        tab.fill("width", width)
        tab.fill("height", height)
        tab.paint()
        tab.page.wait_for_timeout(500)
        box = tab.page.locator(".compare-stage img[alt=Result]").bounding_box()
        assert abs(box["width"] / box["height"] - width / height) < 0.02
        code = tab.page.locator(".result .q-expansion-item").bounding_box()
        assert code["y"] + code["height"] < 768


def test_numbers_that_are_left_out_are_those_of_the_bundle(tab: Tab) -> None:
    for name, usual in (("guidance_scale", "3"), ("resolution", "256")):
        tab.open(name)
        assert tab.entry(name).get_by_placeholder(usual, exact=True).is_visible()
    tab.page.locator(".health").get_by_text("Ready: tiny.").wait_for()


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


def test_where_nothing_can_be_copied_it_is_said(tab: Tab) -> None:
    """Browsers have no clipboard for an address that is neither this machine's nor https."""
    tab.page.evaluate("Object.defineProperty(navigator, 'clipboard', { value: undefined })")
    tab.page.locator(".result .q-expansion-item .q-item").click()
    tab.page.get_by_role("button", name="Copy", exact=True).click()
    tab.page.get_by_text("The browser copies from this machine or over https alone").wait_for()
    assert tab.page.get_by_text("Copied.").count() == 0


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
