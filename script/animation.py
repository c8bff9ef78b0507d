"""script/make-animation: the real page, recorded while a sketch is drawn and its picture follows.

It writes examples/playground.webp, the animation, and examples/playground.jpg, the page with a mask.
"""

import argparse
import io
import itertools
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import sync_playwright

from controlnet.serving.api import Api
from controlnet.serving.server import ROOT, Server, free_port
from controlnet.weights.manifest import BUNDLE

EXAMPLES = ROOT / "examples"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
# As root Chromium needs the first, and without the others it looks up its maker's hosts.
QUIET = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update")
PROMPT = "a white house with a red roof next to a green tree on grass under a blue sky"
SEED = 5
Line = Sequence[tuple[float, float]]
SKETCH: tuple[Line, ...] = (
    ((0.08, 0.78), (0.08, 0.38), (0.59, 0.38), (0.59, 0.78), (0.08, 0.78)),  # walls
    ((0.03, 0.38), (0.33, 0.15), (0.63, 0.38), (0.03, 0.38)),  # roof
    ((0.28, 0.78), (0.28, 0.54), (0.39, 0.54), (0.39, 0.78)),  # door
    ((0.12, 0.49), (0.22, 0.49), (0.22, 0.61), (0.12, 0.61), (0.12, 0.49)),  # windows
    ((0.45, 0.49), (0.55, 0.49), (0.55, 0.61), (0.45, 0.61), (0.45, 0.49)),
    ((0.82, 0.77), (0.82, 0.56), (0.74, 0.48), (0.74, 0.37), (0.84, 0.29), (0.94, 0.37), (0.94, 0.48), (0.82, 0.56)),
    ((0.87, 0.56), (0.87, 0.77), (0.82, 0.77)),  # a tree
    ((0.0, 0.56), (0.08, 0.56)),  # the ground
    ((0.59, 0.56), (0.82, 0.56)),
    ((0.87, 0.56), (0.99, 0.56)),
)
"""In shares of the sheet."""
STEP = 0.16
"""Length of a piece that is drawn between two frames."""
FOLLOW_SECONDS = 2.0
"""How long a frame waits for the picture to follow."""
FRAME_MS, LAST_FRAME_MS = 120, 2500
PAINT_SECONDS = 120.0
"""A guard against hanging."""
WIDTH = 640
MOST_BYTES = 1_500_000


@contextmanager
def page_of(server: Api) -> Iterator[Any]:
    """The playground in a browser."""
    port = free_port()
    command = [sys.executable, "-m", "playground", "--url", server.url, "--port", str(port)]
    playground = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE)
    try:
        assert playground.stdout
        playground.stdout.readline()  # its address
        with sync_playwright() as playwright:
            executable = next(filter(None, map(shutil.which, BROWSERS)), None)
            browser = playwright.chromium.launch(executable_path=executable, args=list(QUIET))
            page = browser.new_page(viewport={"width": 1020, "height": 660})
            page.set_default_timeout(120_000)
            for _ in range(100):
                try:
                    page.goto(f"http://127.0.0.1:{port}/")
                    break
                except Exception:  # it does not listen yet
                    time.sleep(0.2)
            page.wait_for_selector(".columns")
            yield page
            browser.close()
    finally:
        playground.terminate()
        playground.wait()


def pieces(line: Line) -> Iterator[tuple[float, float]]:
    """Points along a line, STEP apart."""
    yield line[0]
    for (x, y), (to_x, to_y) in itertools.pairwise(line):
        count = max(1, round(((to_x - x) ** 2 + (to_y - y) ** 2) ** 0.5 / STEP))
        for step in range(1, count + 1):
            yield x + (to_x - x) * step / count, y + (to_y - y) * step / count


def shown(page: Any) -> str | None:
    result = page.locator(".compare-stage img[alt=Result]")
    return result.get_attribute("src") if result.count() else None


def record(page: Any) -> list[Image.Image]:
    """Draw the sketch and return the frames."""
    page.locator("[data-input=prompt] textarea").fill(PROMPT)
    page.locator(".more .q-expansion-item", has=page.locator("[data-input=seed]")).locator(".q-item").first.click()
    page.locator("[data-input=seed] input").fill(str(SEED))
    page.get_by_role("button", name="Sheet").first.click()
    page.locator(".q-toggle", has_text="Live").click()
    page.wait_for_timeout(500)
    canvas = page.locator("[data-input=image] canvas")
    canvas.scroll_into_view_if_needed()
    page.evaluate("window.scrollTo(0, 0)")
    box = canvas.bounding_box()
    frames = [frame(page)]
    for line in SKETCH:
        for index, (x, y) in enumerate(pieces(line)):
            before = shown(page)
            page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"], steps=4)
            if index == 0:
                page.mouse.down()
            deadline = time.monotonic() + FOLLOW_SECONDS
            while shown(page) == before and time.monotonic() < deadline:
                page.wait_for_timeout(30)
            frames.append(frame(page))
        page.mouse.up()
    page.wait_for_timeout(FOLLOW_SECONDS * 1000)
    return [*frames, frame(page)]


def frame(page: Any) -> Image.Image:
    image = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    return image.resize((WIDTH, round(image.height * WIDTH / image.width)), Image.Resampling.LANCZOS)


def still(page: Any) -> Image.Image:
    """The page with a photo, a mask on it and what came of it."""
    page.locator(".q-toggle", has_text="Live").click()
    page.set_viewport_size({"width": 1240, "height": 1000})
    page.locator("[data-input=image]").get_by_role("button", name="Example").click()
    page.get_by_role("menuitem", name="house").click()
    page.locator(".more .q-expansion-item", has=page.locator("[data-input=mask]")).locator(".q-item").first.click()
    mask = page.locator("[data-input=mask]")
    mask.get_by_role("button", name="Mark a part").click()
    page.wait_for_timeout(1000)
    canvas = mask.locator("canvas")
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    page.mouse.move(box["x"] + 0.1 * box["width"], box["y"] + 0.12 * box["height"])
    page.mouse.down()
    for step in range(60):
        down = 0.1 + 0.015 * (step // 2)
        page.mouse.move(box["x"] + (0.1 if step % 4 < 2 else 0.4) * box["width"], box["y"] + down * box["height"])
    page.mouse.up()
    page.wait_for_timeout(1500)
    before = shown(page)
    page.keyboard.press("Control+Enter")
    deadline = time.monotonic() + PAINT_SECONDS
    while shown(page) == before:
        if time.monotonic() > deadline:
            raise TimeoutError(f"No picture: {page.locator('.said').all_inner_texts()}")
        page.wait_for_timeout(200)
    page.wait_for_timeout(1000)
    return Image.open(io.BytesIO(page.screenshot())).convert("RGB")


def main() -> None:
    """The command line. Exits with a message if the animation is too large."""
    parser = argparse.ArgumentParser(prog="script/make-animation", description=__doc__)
    parser.add_argument("-o", "--output", metavar="DIR", type=Path, default=EXAMPLES)
    parser.add_argument("--url", help="a server with tiny that runs already (default: start one)")
    options = parser.parse_args()
    tiny = Server(dict(os.environ) | {BUNDLE: "tiny"})
    with nullcontext(Api(options.url)) if options.url else tiny as server:
        if isinstance(server, Server):
            server.wait_ready()
        with page_of(server) as page:
            frames = record(page)
            path = options.output / "playground.webp"
            durations = [FRAME_MS] * (len(frames) - 1) + [LAST_FRAME_MS]
            frames[0].save(path, save_all=True, append_images=frames[1:], duration=durations, loop=0, quality=70)
            print(f"{path}: {len(frames)} frames, {path.stat().st_size / 1e6:.2f} MB", flush=True)
            still(page).save(options.output / "playground.jpg", quality=88, optimize=True)
    if path.stat().st_size > MOST_BYTES:
        sys.exit(f"Expected at most {MOST_BYTES / 1e6} MB.")


if __name__ == "__main__":
    main()
