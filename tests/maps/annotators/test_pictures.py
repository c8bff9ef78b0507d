"""Maps that are pictures themselves: shuffle, tile, and ip2p's raw map."""

import zlib
from functools import cache

import cv2
import numpy as np
import pytest
from PIL import Image
from skimage import data

from controlnet.maps.annotators import network, raw, shuffle, tile

with network.quiet_controlnet_aux():
    from controlnet_aux import ContentShuffleDetector


@cache
def photo(name: str = "astronaut", size: tuple[int, int] = (256, 192)) -> Image.Image:
    return Image.fromarray(getattr(data, name)()).resize(size)


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(np.float32)


@pytest.mark.parametrize("draw", [shuffle.draw_shuffle, tile.draw_tile, raw.draw_raw])
@pytest.mark.parametrize("size", [(64, 64), (131, 97), (64, 2048), (2048, 64), (2048, 1365)])
def test_a_map_keeps_any_size_and_leaves_the_picture_alone(draw, size: tuple[int, int]) -> None:
    image = photo(size=size).copy()
    control_map = draw(image)
    assert (control_map.size, control_map.mode) == (size, "RGB")
    assert image.tobytes() == photo(size=size).tobytes()
    control_map.paste("red", (0, 0, 64, 64))
    assert image.tobytes() == photo(size=size).tobytes(), "the map shares its pixels with the picture"


def test_shuffle_does_not_use_the_global_generator_of_numpy() -> None:
    """controlnet_aux's detector does, so its map depends on everything that ran before."""
    np.random.seed(1)
    first = shuffle.draw_shuffle(photo())
    np.random.seed(2)
    state = np.random.get_state()
    assert shuffle.draw_shuffle(photo()).tobytes() == first.tobytes()
    assert all(np.array_equal(before, after) for before, after in zip(state, np.random.get_state(), strict=True))
    np.random.random(7)
    assert shuffle.draw_shuffle(photo()).tobytes() == first.tobytes()


def test_a_shuffle_seed_chooses_the_flow() -> None:
    maps = [shuffle.draw_shuffle(photo(), seed).tobytes() for seed in (None, 0, 1, 2**32 - 1)]
    assert len(set(maps)) == 4 and shuffle.draw_shuffle(photo(), 1).tobytes() == maps[2]


def test_different_pictures_are_shuffled_differently() -> None:
    flows = []
    for mark in (0, 255):
        # The colours are the numbers of the columns, so the map shows where each pixel came from.
        columns = np.tile(np.arange(256, dtype=np.uint8)[None, :, None], (192, 1, 3))
        columns[0, 0] = mark
        flows.append(pixels(shuffle.draw_shuffle(Image.fromarray(columns))))
    assert np.abs(flows[0] - flows[1]).mean() > 10


def test_shuffle_equals_controlnet_aux_with_the_same_numbers() -> None:
    image = photo(size=(192, 128))
    np.random.seed(zlib.crc32(image.tobytes()))
    theirs = ContentShuffleDetector()(image, f=64, detect_resolution=128, image_resolution=128)
    assert shuffle.draw_shuffle(image).tobytes() == theirs.tobytes()


def test_shuffle_flow_reaches_all_sides_and_scales_with_the_picture() -> None:
    small = shuffle.shuffle_flow((128, 96), np.random.RandomState(0))
    large = shuffle.shuffle_flow((1024, 768), np.random.RandomState(0))
    for flow, (width, height) in ((small, (128, 96)), (large, (1024, 768))):
        assert flow.min(axis=(1, 2)).tolist() == [0, 0]
        assert flow.max(axis=(1, 2)) == pytest.approx([width - 1, height - 1])
    shrunk = [cv2.resize(one, (128, 96), interpolation=cv2.INTER_AREA) / 8 for one in large]
    assert np.abs(shrunk - small).mean() < 4, "a large picture is cut into other pieces than a small one"


def histogram(image: Image.Image) -> np.ndarray:
    """Shares of 64 colours in the picture."""
    counts, _ = np.histogramdd(pixels(image).reshape(-1, 3), bins=(4, 4, 4), range=[(0, 256)] * 3)
    return counts / counts.sum()


def likeness(one: Image.Image, other: Image.Image) -> float:
    """Correlation of the grey pictures: 1 for the same layout, about 0 for unrelated ones."""
    greys = [np.asarray(image.convert("L")).ravel().astype(float) for image in (one, other)]
    return float(np.corrcoef(*greys)[0, 1])


@pytest.mark.parametrize("name", ["astronaut", "coffee", "chelsea"])
def test_shuffle_keeps_the_colours_and_not_the_layout(name: str) -> None:
    image = photo(name)
    shuffled = shuffle.draw_shuffle(image)
    kept = np.minimum(histogram(shuffled), histogram(image)).sum()
    other = photo("rocket" if name == "chelsea" else "chelsea")
    assert kept > 0.65
    assert kept > np.minimum(histogram(other), histogram(image)).sum() + 0.1
    assert abs(likeness(shuffled, image)) < 0.5


def fine(image: Image.Image) -> float:
    """Mean strength of the finest details, in grey levels."""
    return float(np.abs(cv2.Laplacian(pixels(image.convert("L")), cv2.CV_32F)).mean())


@pytest.mark.parametrize("name", ["astronaut", "coffee", "chelsea"])
def test_tile_with_a_factor_keeps_coarse_shapes_and_drops_details(name: str) -> None:
    image = photo(name)
    tiled = tile.draw_tile(image, 8)
    coarse = [cv2.resize(pixels(one), (16, 12), interpolation=cv2.INTER_AREA) for one in (image, tiled)]
    assert np.abs(coarse[0] - coarse[1]).mean() < 3
    assert likeness(tiled, image) > 0.85
    assert fine(tiled) < 0.2 * fine(image)


def test_tile_has_no_blocks() -> None:
    """Nearest-neighbour enlargement would leave edges every eight pixels, which the net would keep."""
    ramp = Image.fromarray(np.tile(np.linspace(0, 255, 256).astype(np.uint8), (64, 1))).convert("RGB")
    steps = np.abs(np.diff(pixels(tile.draw_tile(ramp, 8))[32, :, 0]))
    assert steps.max() <= 3


def test_tile_is_the_picture_itself_by_default() -> None:
    assert tile.draw_tile(photo()).tobytes() == photo().tobytes()


def test_a_higher_tile_factor_drops_more_details() -> None:
    details = [fine(tile.draw_tile(photo(), factor)) for factor in (1, 1.5, 2, 4, 8, 16)]
    assert details == sorted(details, reverse=True) and details[0] > 1.5 * details[2]


def test_tile_with_a_factor_hardly_changes_an_enlarged_picture() -> None:
    enlarged = photo(size=(64, 48)).resize((512, 384), Image.Resampling.LANCZOS)
    assert np.abs(pixels(tile.draw_tile(enlarged, 8)) - pixels(enlarged)).mean() < 4


def test_the_raw_map_is_the_picture() -> None:
    assert raw.draw_raw(photo()).tobytes() == photo().tobytes()
