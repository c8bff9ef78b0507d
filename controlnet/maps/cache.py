"""Control maps kept between requests: a user who tries several prompts on one picture waits for its map only once."""

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any

from PIL import Image

MOST_MAPS = 64
MOST_BYTES = 256 * 2**20


@dataclass(frozen=True)
class _Kept:
    """An RGB map as immutable bytes, and its info."""

    size: tuple[int, int]
    pixels: bytes
    info: Mapping[Any, Any]


class MapCache:
    """The control maps that were used last, at most `most_maps` of them and at most `most_bytes` in total.

    Only safe with one request at a time. A cancellation at any point leaves the cache consistent: every change is a
    single step, and the totals are counted again each time.
    """

    def __init__(self, most_maps: int = MOST_MAPS, most_bytes: int = MOST_BYTES) -> None:
        self.most_maps = most_maps
        self.most_bytes = most_bytes
        self.hits = 0
        """Maps found in the cache since the start. Take the difference to get those of one request."""
        self.misses = 0
        """Maps that had to be drawn since the start, including those whose annotator failed."""
        self._maps: OrderedDict[Hashable, _Kept] = OrderedDict()

    def fetch(self, key: Hashable, draw: Callable[[], Image.Image]) -> Image.Image:
        """The RGB map of `key`. If it is not in the cache yet, `draw` draws it. The caller may write to the result.

        Exceptions of `draw` pass through, and nothing is kept then.
        """
        kept = self._maps.get(key)
        if kept is not None:
            self.hits += 1
            self._maps.move_to_end(key)
            again = Image.frombytes("RGB", kept.size, kept.pixels)
            again.info.update(kept.info)
            return again
        self.misses += 1
        control_map = draw()
        self._keep(key, _Kept(control_map.size, control_map.convert("RGB").tobytes(), dict(control_map.info)))
        return control_map

    def __len__(self) -> int:
        return len(self._maps)

    @property
    def bytes(self) -> int:
        """Total size of the kept maps."""
        return sum(len(kept.pixels) for kept in self._maps.values())

    def _keep(self, key: Hashable, new: _Kept) -> None:
        if len(new.pixels) > self.most_bytes:
            return
        # Make room first: the bounds hold even if the request is cancelled in between.
        while len(self._maps) >= self.most_maps or self.bytes + len(new.pixels) > self.most_bytes:
            self._maps.popitem(last=False)
        self._maps[key] = new


def digest(picture: Image.Image) -> tuple[str, tuple[int, int], str]:
    """Identifies a picture: its mode, its size and the SHA-256 of its pixels."""
    return picture.mode, picture.size, hashlib.sha256(picture.tobytes()).hexdigest()
