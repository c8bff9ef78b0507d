"""What is drawn, painted as a mask, chosen, dropped and pasted on the page."""

import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from support import ROOT
from support.requests_to_tiny import CAT, encoded
from support.tab import SLOW, Tab, pixels


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
    assert pixels(doodle)[200:230, 15].min() < 100, "the horizon is elsewhere"
    tab.click("Eraser")
    with tab.next("Map"):
        tab.stroke("image", (0, 0.56), (0.07, 0.56))
    assert pixels(tab.content("Picture"))[200:230, 15].min() > 200
    tab.click("White on black, or black on white")
    tab.page.wait_for_timeout(500)
    assert pixels(tab.content("Picture"))[2, 2].max() < 50
    tab.click("Clear")
    tab.page.wait_for_timeout(500)
    assert pixels(tab.content("Picture")).max() < 50


def test_frames_are_drawn_while_a_stroke_is_encoded(tab: Tab) -> None:
    """On a page where nothing moves Chromium lets toBlob() wait for a second."""
    tab.page.wait_for_function("document.querySelector('.compare-stage img[alt=Map]')")
    tab.page.evaluate(
        """() => {
            window.waiting = window.frames_asked = 0;
            const encode = HTMLCanvasElement.prototype.toBlob, ask = window.requestAnimationFrame;
            HTMLCanvasElement.prototype.toBlob = function (done, ...rest) {
                window.waiting++;
                encode.call(this, (blob) => (window.waiting--, done(blob)), ...rest);
            };
            window.requestAnimationFrame = (then) => ask((at) => ((window.frames_asked += window.waiting), then(at)));
        }"""
    )
    tab.stroke("image", (0.1, 0.1), (0.9, 0.1))
    tab.page.wait_for_function("window.frames_asked > 0")


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


def test_a_mask_does_not_outlive_its_strokes(tab: Tab) -> None:
    tab.example("house")
    tab.open("mask")
    tab.entry("mask").get_by_role("button", name="Mark a part").click()
    tab.stroke("mask", (0.2, 0.2), (0.4, 0.2))
    tab.fill("num_inference_steps", 1)
    tab.paint()
    assert "mask" in tab.inputs()
    tab.example("room")  # of the same shape
    tab.paint()
    assert "mask" in tab.inputs()
    tab.example("coffee")
    tab.paint()
    assert "mask" not in tab.inputs()


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
