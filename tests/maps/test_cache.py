"""The cache of control maps: its bounds, its order, and maps that failed or were cancelled."""

import pytest
from PIL import Image

from controlnet.maps.cache import MapCache, digest


def red(side: int = 10) -> Image.Image:
    return Image.new("RGB", (side, side), "red")


def never() -> Image.Image:
    raise AssertionError("drawn again")


def test_a_map_is_drawn_once() -> None:
    cache = MapCache()
    first = cache.fetch("a", red)
    again = cache.fetch("a", never)
    assert again.tobytes() == first.tobytes() and again.size == first.size and again.mode == "RGB"
    assert (cache.hits, cache.misses, len(cache), cache.bytes) == (1, 1, 1, 300)


def test_writing_to_a_map_does_not_change_the_cache() -> None:
    cache = MapCache()
    for _ in range(3):
        control_map = cache.fetch("a", red)
        assert control_map.getpixel((0, 0)) == (255, 0, 0)
        control_map.paste("blue", (0, 0, 10, 10))


def test_the_least_recently_used_map_is_dropped_first() -> None:
    cache = MapCache(most_maps=2)
    cache.fetch("a", red)
    cache.fetch("b", red)
    cache.fetch("a", never)
    cache.fetch("c", red)
    assert len(cache) == 2
    cache.fetch("a", never)
    cache.fetch("c", never)
    with pytest.raises(AssertionError):
        cache.fetch("b", never)


def test_the_cache_is_bounded_in_bytes_and_in_number() -> None:
    cache = MapCache(most_maps=5, most_bytes=1000)
    for number in range(20):
        cache.fetch(number, red)
        assert cache.bytes <= 1000 and len(cache) <= 3
    cache.fetch("small", lambda: red(1))
    assert len(cache) == 4
    for number in range(20, 30):
        cache.fetch(number, lambda: red(1))
    assert len(cache) == 5


def test_a_map_larger_than_the_cache_displaces_nothing() -> None:
    cache = MapCache(most_bytes=400)
    cache.fetch("a", red)
    assert cache.fetch("b", lambda: red(20)).size == (20, 20)
    cache.fetch("a", never)
    assert (len(cache), cache.bytes) == (1, 300)


@pytest.mark.parametrize("fault", [ValueError, KeyboardInterrupt])
def test_a_failed_or_cancelled_map_is_not_kept_and_harms_no_other(fault: type[BaseException]) -> None:
    cache = MapCache(most_maps=2)

    def fails() -> Image.Image:
        raise fault

    cache.fetch("a", red)
    for _ in range(3):
        with pytest.raises(fault):
            cache.fetch("b", fails)
    assert len(cache) == 1
    cache.fetch("a", never)
    assert cache.fetch("b", red).tobytes() == red().tobytes()
    cache.fetch("b", never)


def test_a_digest_differs_for_modes_sizes_and_pixels() -> None:
    pictures = [red(), Image.new("RGB", (5, 20), "red"), Image.new("RGB", (10, 10)), Image.new("L", (30, 10))]
    assert len({digest(picture) for picture in pictures}) == 4
    assert digest(red()) == digest(red())
