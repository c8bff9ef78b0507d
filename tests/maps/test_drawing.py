"""A control map from one picture: drawn by the annotator, ready-made, or from the cache."""

import numpy as np
import pytest
from PIL import Image
from skimage import data

from controlnet.conditioners import CONDITIONERS
from controlnet.maps.annotators import ANNOTATORS, AnnotatorKind, LoadedAnnotator
from controlnet.maps.annotators.canny import draw_canny
from controlnet.maps.cache import MapCache
from controlnet.maps.drawing import draw_control_map

PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8))


def never(picture: Image.Image) -> Image.Image:
    raise AssertionError("the annotator was run on a ready-made map")


def test_the_annotator_sees_the_picture_at_the_maps_size() -> None:
    seen = []
    annotators = {"canny": lambda picture: seen.append(picture.size) or picture}
    assert draw_control_map("canny", PICTURE, (96, 64), True, annotators).size == (96, 64)
    assert seen == [(96, 64)]


@pytest.mark.parametrize("conditioner", CONDITIONERS, ids=lambda conditioner: conditioner.name)
def test_a_ready_made_map_is_not_annotated(conditioner) -> None:
    """An edge detector on a map that a user sent would find edges of edges."""
    white_lines = Image.new("RGB", (60, 40))
    white_lines.paste("white", (20, 0, 23, 40))
    same = draw_control_map(conditioner.name, white_lines, (60, 40), False, {conditioner.name: never})
    assert same.tobytes() == white_lines.tobytes()


@pytest.mark.parametrize("conditioner", CONDITIONERS, ids=lambda conditioner: conditioner.name)
def test_only_dark_on_white_line_maps_are_inverted(conditioner) -> None:
    paper = Image.new("RGB", (60, 40), "white")
    paper.paste("black", (20, 0, 23, 40))
    drawn = draw_control_map(conditioner.name, paper, (60, 40), False, {conditioner.name: never})
    corner = (0, 0, 0) if conditioner.lines else (255, 255, 255)
    assert drawn.getpixel((0, 0)) == corner


def test_label_colours_are_never_mixed() -> None:
    halves = Image.new("RGB", (60, 40), (120, 120, 120))
    halves.paste((180, 120, 120), (31, 0, 60, 40))
    drawn = draw_control_map("seg", halves, (96, 64), False, {"seg": never})
    assert {colour for _, colour in drawn.getcolors()} == {(120, 120, 120), (180, 120, 120)}


def test_a_dark_picture_on_white_is_no_line_map() -> None:
    """A dark house against a white sky is not a line map: tile, shuffle and ip2p see it unchanged."""
    for name in ("tile", "shuffle", "ip2p"):
        paper = Image.new("RGB", (64, 64), "white")
        paper.paste("black", (20, 0, 30, 64))
        assert draw_control_map(name, paper, (64, 64), False, {name: never}).tobytes() == paper.tobytes()


COLOURS = Image.fromarray(data.astronaut()).resize((60, 40), Image.Resampling.LANCZOS)
CANNY = {"canny": LoadedAnnotator(ANNOTATORS["canny"], draw_canny), "hed": never}


class Recorder:
    """An annotator with a private resolution that records the pictures and knobs it gets."""

    def __init__(self) -> None:
        self.calls: list[tuple[tuple[int, int], dict]] = []

    def __call__(self, picture: Image.Image, **knobs) -> Image.Image:
        self.calls.append((picture.size, knobs))
        return picture.convert("RGB")


def loaded(recorder: Recorder, *knobs: str, own_side: int | None = None) -> LoadedAnnotator:
    kind = AnnotatorKind("recorder", "", (), lambda folder_of, device: recorder, knobs, own_side=own_side)
    return LoadedAnnotator(kind, recorder)


def test_knobs_reach_the_annotator_or_keep_their_default() -> None:
    def drawn(**knobs) -> bytes:
        return draw_control_map("canny", COLOURS, (60, 40), True, CANNY, knobs).tobytes()

    assert drawn() == draw_canny(COLOURS).tobytes()
    assert drawn(low_threshold=190) == draw_canny(COLOURS, 190).tobytes() != drawn()
    assert drawn(high_threshold=240) == draw_canny(COLOURS, high_threshold=240).tobytes() != drawn()


def test_detect_resolution_sets_picture_and_short_side() -> None:
    recorder = Recorder()
    for annotator, settings in ((loaded(recorder, "short_side"), {"short_side": 128}), (recorder, {})):
        drawn = draw_control_map("depth", PICTURE, (96, 64), True, {"depth": annotator}, {}, 128)
        assert drawn.size == (96, 64)
        assert recorder.calls.pop() == ((192, 128), settings)
    draw_control_map("depth", PICTURE, (96, 64), True, {"depth": loaded(recorder, "short_side")})
    assert recorder.calls == [((96, 64), {})], "the network must choose if no resolution is sent"


@pytest.mark.parametrize(
    ("picture_size", "map_size", "seen"),
    [
        ((1600, 1200), (256, 192), (683, 512)),  # the network's size, which the picture has
        ((400, 300), (256, 192), (400, 300)),  # the picture has less
        ((128, 96), (256, 192), (256, 192)),  # enlarging it further would show nothing more
        ((1600, 1200), (1024, 768), (1024, 768)),
    ],
)
def test_a_small_map_is_drawn_from_a_picture_of_the_networks_size(picture_size, map_size, seen) -> None:
    recorder = Recorder()
    annotator, picture = loaded(recorder, "short_side", own_side=512), Image.new("RGB", picture_size)
    assert draw_control_map("depth", picture, map_size, True, {"depth": annotator}).size == map_size
    assert recorder.calls == [(seen, {})]


def test_annotators_with_a_network_know_its_size() -> None:
    sides = {name: kind.own_side for name, kind in ANNOTATORS.items()}
    assert {name for name, side in sides.items() if side} == {kind.name for kind in ANNOTATORS.values() if kind.parts}
    assert all(sides[name] == (128 if name.startswith("tiny_") else 512) for name in sides if sides[name])


def test_canny_lines_stay_lines_at_any_detect_resolution() -> None:
    paper = Image.new("RGB", (256, 256), "white")
    paper.paste("black", (60, 60, 200, 200))
    for resolution in (64, 512, 2048):
        drawn = draw_control_map("canny", paper, (256, 256), True, CANNY, {}, resolution)
        assert {colour for _, colour in drawn.getcolors()} == {(0, 0, 0), (255, 255, 255)}
        assert 500 < np.count_nonzero(np.array(drawn)[..., 0]) < 620


def test_a_ready_made_map_is_inverted_before_it_is_resized() -> None:
    paper = Image.new("RGB", (256, 256), "white")
    paper.paste("black", (100, 20, 101, 230))
    drawn = np.array(draw_control_map("canny", paper, (64, 64), False, {"canny": never}))
    assert np.count_nonzero(drawn[..., 0]) in (53, 54) and drawn[30, 25].tolist() == [255, 255, 255]


KEY = {
    "name": "depth", "picture": PICTURE, "size": (96, 64), "preprocess": True, "knobs": {"strength": 1},
    "detect_resolution": 64,
}  # fmt: skip
CHANGES = {
    "name": "normal", "picture": PICTURE.point(lambda value: value ^ 64), "size": (192, 128), "preprocess": False,
    "knobs": {"strength": 2}, "detect_resolution": 80,
}  # fmt: skip


@pytest.mark.parametrize("part", KEY)
def test_every_part_of_the_cache_key_separates_maps(part: str) -> None:
    recorder, cache = Recorder(), MapCache()
    annotator = loaded(recorder, "strength", "short_side")
    request = dict(KEY, annotators={"depth": annotator, "normal": annotator}, cache=cache)
    if part == "preprocess":  # without it there are no settings, so nothing else may differ
        request |= {"size": PICTURE.size, "knobs": {}, "detect_resolution": None}
    first = draw_control_map(**request)
    assert draw_control_map(**request).tobytes() == first.tobytes()
    assert (cache.misses, cache.hits, len(recorder.calls)) == (1, 1, 1)
    draw_control_map(**dict(request, **{part: CHANGES[part]}))
    assert (cache.misses, cache.hits) == (2, 1)


def test_a_cached_map_is_equal_and_safe_to_write_to() -> None:
    for preprocess in (True, False):
        cache = MapCache()
        request = ("canny", PICTURE, (96, 64), preprocess, CANNY)
        plain = draw_control_map(*request).tobytes()
        for _ in range(3):
            control_map = draw_control_map(*request, cache=cache)
            assert control_map.tobytes() == plain
            control_map.paste("red", (0, 0, 96, 64))
        assert (cache.misses, cache.hits) == (1, 2)


def test_one_pixel_or_another_shape_is_another_cache_key() -> None:
    cache = MapCache()
    changed = PICTURE.copy()
    changed.putpixel((59, 39), (1, 2, 3))
    for picture in (PICTURE, changed):
        draw_control_map("canny", picture, (60, 40), True, CANNY, cache=cache)
    for picture in (PICTURE, Image.frombytes("RGB", (40, 60), PICTURE.tobytes())):
        draw_control_map("tile", picture, (64, 64), False, {"tile": never}, cache=cache)
    assert (cache.misses, cache.hits) == (4, 0)
