"""The strokes that Canny, XDoG and the doodle shortcut draw, and their places."""

from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image
from skimage import data

from controlnet.maps.annotators import ANNOTATORS
from controlnet.maps.annotators.canny import draw_canny
from controlnet.maps.annotators.doodle import find_strokes
from controlnet.maps.annotators.network import quiet_controlnet_aux
from controlnet.maps.annotators.xdog import draw_xdog

with quiet_controlnet_aux():
    from controlnet_aux import CannyDetector


def pen(size: int, thickness: int, ink: Any, paper: Any, line: int = cv2.LINE_AA) -> np.ndarray:
    """A face of a few pen strokes, as uint8 [size, size, 3]."""
    canvas = np.full((size, size, 3), paper, np.uint8)
    at = lambda x, y: (int(x * size), int(y * size))  # noqa: E731
    cv2.circle(canvas, at(0.5, 0.5), int(0.35 * size), ink, thickness, line)
    cv2.line(canvas, at(0.35, 0.4), at(0.35, 0.45), ink, thickness, line)
    cv2.line(canvas, at(0.65, 0.4), at(0.65, 0.45), ink, thickness, line)
    cv2.ellipse(canvas, at(0.5, 0.6), at(0.15, 0.1), 0, 0, 180, ink, thickness, line)
    return canvas


def drawn(pixels: np.ndarray) -> np.ndarray:
    """XDoG's map as uint8 [height, width]."""
    return np.array(draw_xdog(Image.fromarray(pixels)))[..., 0]


@pytest.mark.parametrize("name", ["astronaut", "chelsea", "coffee", "rocket"])
@pytest.mark.parametrize("thresholds", [(100, 200), (50, 100), (30, 250)])
def test_canny_equals_controlnet_aux(name: str, thresholds: tuple[int, int]) -> None:
    """ControlNet was trained on the edges of the colours. controlnet_aux resizes to multiples of 64, so 512 by 384."""
    photo = Image.fromarray(getattr(data, name)()).resize((512, 384), Image.Resampling.LANCZOS)
    low, high = thresholds
    expected = CannyDetector()(photo, low, high, detect_resolution=384, image_resolution=384)
    assert expected.getextrema() == ((0, 255),) * 3
    assert draw_canny(photo, low, high).tobytes() == expected.tobytes()


def test_canny_finds_edges_between_colours_of_equal_brightness() -> None:
    red, green = (200, 40, 60), (40, 122, 60)
    halves = Image.new("RGB", (64, 64), red)
    halves.paste(green, (32, 0, 64, 64))
    assert len(set(np.array(halves.convert("L")).ravel())) == 1
    assert np.array(draw_canny(halves)).any()


@pytest.mark.parametrize(("low", "high"), [(0, 30), (50, 100), (100, 255), (199.5, 200)])
def test_canny_thresholds_equal_opencv(low: float, high: float) -> None:
    photo = data.astronaut()
    drawn = np.array(draw_canny(Image.fromarray(photo), low_threshold=low, high_threshold=high))
    assert np.array_equal(drawn[..., 0], cv2.Canny(photo, low, high))
    assert not np.array_equal(drawn, np.array(draw_canny(Image.fromarray(photo))))


@pytest.mark.parametrize("thresholds", [(200, 100), (100, 100), (-1, 100), (10, 256), (250, 200)])
def test_canny_thresholds_that_make_no_sense_are_a_fault(thresholds: tuple[float, float]) -> None:
    sentence = ANNOTATORS["canny"].fault(dict(zip(("low_threshold", "high_threshold"), thresholds, strict=True)))
    assert sentence and "from 0 to 255, the low one below the high one (left out, they are 100" in sentence


def test_canny_thresholds_left_out_are_no_fault() -> None:
    fault = ANNOTATORS["canny"].fault
    assert fault({}) is None and fault({"low_threshold": 199}) is None and fault({"high_threshold": 101}) is None
    assert fault({"low_threshold": 200}) and fault({"high_threshold": 100})


def test_xdog_draws_only_the_outline_of_a_dark_disk() -> None:
    rng = np.random.default_rng(0)
    photo = np.full((512, 512, 3), (240, 236, 230), np.uint8)
    cv2.circle(photo, (256, 256), 120, (60, 50, 40), -1, cv2.LINE_AA)
    photo = np.clip(photo + rng.normal(0, 4, photo.shape), 0, 255).astype(np.uint8)
    strokes = drawn(photo)
    assert set(np.unique(strokes)) == {0, 255}
    rows, columns = np.mgrid[:512, :512]
    from_outline = np.abs(np.hypot(rows - 256, columns - 256) - 120)
    assert not strokes[from_outline > 10].any()
    angles = np.linspace(0, 2 * np.pi, 360)
    just_inside = strokes[(256 + 118 * np.sin(angles)).astype(int), (256 + 118 * np.cos(angles)).astype(int)]
    assert just_inside.all(), "the outline has gaps"


@pytest.mark.parametrize("name", ["astronaut", "coffee", "chelsea", "rocket"])
@pytest.mark.parametrize("short", [128, 512])
def test_xdog_strokes_of_a_photo_are_as_wide_as_in_training(name: str, short: int) -> None:
    photo = getattr(data, name)()
    scale = short / min(photo.shape[:2])
    strokes = drawn(cv2.resize(photo, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA))
    assert set(np.unique(strokes)) == {0, 255}
    assert 0.005 < (strokes > 0).mean() < 0.3
    radii = cv2.distanceTransform(strokes, cv2.DIST_L2, 5)
    assert radii.max() <= max(12 * short / 512, 6)


def test_xdog_draws_no_strokes_for_a_flat_picture() -> None:
    for tone in (0, 128, 255):
        assert not drawn(np.full((96, 64, 3), tone, np.uint8)).any()


@pytest.mark.parametrize("thickness", [1, 3, 8, 24])
def test_a_dark_doodle_on_white_is_inverted_exactly(thickness: int) -> None:
    doodle = pen(512, thickness, (0, 0, 0), (255, 255, 255), cv2.LINE_8)
    assert np.array_equal(drawn(doodle), 255 - doodle[..., 0])


def test_a_white_doodle_on_black_is_kept() -> None:
    doodle = pen(512, 5, (255, 255, 255), (0, 0, 0), cv2.LINE_8)
    assert np.array_equal(drawn(doodle), doodle[..., 0])


def pencil_on_cream_paper() -> np.ndarray:
    return pen(512, 3, (110, 110, 110), (235, 230, 220))


def blue_pen() -> np.ndarray:
    return pen(512, 4, (30, 40, 200), (250, 250, 250))


def jpeg_of_low_quality() -> np.ndarray:
    _, encoded = cv2.imencode(".jpg", pen(512, 3, (0,) * 3, (255,) * 3), [cv2.IMWRITE_JPEG_QUALITY, 40])
    return np.asarray(cv2.imdecode(encoded, cv2.IMREAD_COLOR))


def shrunk() -> np.ndarray:
    return cv2.resize(pen(512, 3, (0,) * 3, (255,) * 3), (128, 128), None, 0, 0, cv2.INTER_AREA)


@pytest.mark.parametrize("make", [pencil_on_cream_paper, blue_pen, jpeg_of_low_quality, shrunk])
def test_a_doodle_keeps_its_strokes_instead_of_their_outlines(make: Callable[[], np.ndarray]) -> None:
    doodle = make()
    strokes = drawn(doodle)
    size = len(doodle)
    ink = pen(512, 3, (255,) * 3, (0,) * 3)[..., 0] if size == 512 else 255 - doodle[..., 0]
    assert (strokes[ink > 200] > 128).all(), "a hole in the pen's line"
    near_ink = cv2.dilate(ink, np.ones((9, 9), np.uint8)) > 64
    assert not (strokes[~near_ink] > 40).any(), "a stroke outside the pen's line"


def test_photos_disks_and_coloured_paper_are_not_doodles() -> None:
    disk = np.full((512, 512, 3), 255, np.uint8)
    cv2.circle(disk, (256, 256), 120, (0, 0, 0), -1)
    red_paper = pen(512, 4, (0, 0, 0), (230, 60, 50))
    for pixels in (disk, red_paper, np.full((64, 64, 3), 255, np.uint8), data.astronaut(), data.rocket()):
        assert find_strokes(Image.fromarray(pixels)) is None
    for grey in (data.camera(), data.moon(), data.coins(), data.clock(), data.horse().astype(np.uint8) * 255):
        assert find_strokes(Image.fromarray(grey).convert("RGB")) is None


def test_hed_scribble_keeps_a_doodle_without_running_its_network() -> None:
    from controlnet.maps.annotators.hed_scribble import draw_hed_scribble

    doodle = pen(200, 3, (0, 0, 0), (255, 255, 255), cv2.LINE_8)
    no_network: Any = None
    control_map = np.array(draw_hed_scribble(no_network, Image.fromarray(doodle)))
    assert np.array_equal(control_map, 255 - doodle)
