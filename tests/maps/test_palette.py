"""Colours as numbers: the same as NumPy finds by sorting all pixels."""

import numpy as np
import pytest

from controlnet.maps.palette import colours_in, numbered, pack, unpack


@pytest.mark.parametrize("count", [1, 2, 256])
def test_colours_are_numbered_in_order(count: int) -> None:
    random = np.random.default_rng(count)
    chosen = random.integers(0, 256, (count, 3), np.uint8)
    pixels = chosen[random.integers(0, count, (50, 70))]
    packed = pack(pixels)
    found, inverse = np.unique(pixels.reshape(-1, 3), axis=0, return_inverse=True)
    colours = colours_in(packed)
    assert (unpack(colours) == found).all()
    assert (numbered(packed, colours) == inverse.reshape(50, 70)).all()
    assert (unpack(packed) == pixels).all()


def test_the_extreme_colours_are_packed() -> None:
    pixels = np.array([[(0, 0, 0), (255, 255, 255), (1, 2, 3)]], np.uint8)
    assert pack(pixels).tolist() == [[0, 0xFFFFFF, 0x010203]]
    assert colours_in(pack(pixels)).tolist() == [0, 0x010203, 0xFFFFFF]
