"""The colours of a control map, as numbers. A packed colour is 65536 × red + 256 × green + blue."""

import numpy as np


def pack(pixels: np.ndarray) -> np.ndarray:
    """uint8 [height, width, 3], red, green and blue -> packed colours, int32 [height, width]."""
    packed = pixels[..., 0].astype(np.int32)
    for channel in (1, 2):
        packed <<= 8
        packed |= pixels[..., channel]
    return packed


def unpack(packed: np.ndarray) -> np.ndarray:
    """Packed colours of any shape -> red, green and blue, uint8 [..., 3]."""
    return np.stack([packed >> 16, packed >> 8 & 255, packed & 255], axis=-1).astype(np.uint8)


def colours_in(packed: np.ndarray) -> np.ndarray:
    """The different packed colours, in order, int32 [n]."""
    found = np.zeros(1 << 24, bool)  # np.unique would sort all pixels
    found[packed] = True
    return np.flatnonzero(found).astype(np.int32)


def numbered(packed: np.ndarray, colours: np.ndarray) -> np.ndarray:
    """For each packed colour its place among `colours`, which are at most 256: uint8 of the same shape."""
    numbers = np.zeros(1 << 24, np.uint8)
    numbers[colours] = np.arange(len(colours))
    return numbers[packed]
