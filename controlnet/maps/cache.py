"""Control maps kept from one request to the next: who tries prompts on one picture waits for its map once."""

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass

from PIL import Image

MOST_MAPS = 64
MOST_BYTES = 256 * 2**20


@dataclass(frozen=True)
class _Kept:
    """An RGB map as bytes, which nobody can write to."""

    size: tuple[int, int]
    pixels: bytes


class MapCache:
    """The control maps that were asked for last, at most `most_maps` of them and `most_bytes` together.

    For one request at a time. A request that is cancelled anywhere in it leaves it whole: every change is a single
    step, and what the bounds are checked against is counted anew.
    """

    def __init__(self, most_maps: int = MOST_MAPS, most_bytes: int = MOST_BYTES) -> None:
        self.most_maps = most_maps
        self.most_bytes = most_bytes
        self.hits = 0
        """How many maps were found here, ever; a request's own are the difference."""
        self.misses = 0
        """How many had to be drawn, those included whose annotator failed."""
        self._maps: OrderedDict[Hashable, _Kept] = OrderedDict()

    def fetch(self, key: Hashable, draw: Callable[[], Image.Image]) -> Image.Image:
        """The RGB map under `key`, drawn by `draw` where it is not here yet; the caller's own to write to.

        What `draw` raises passes through, and nothing is kept then.
        """
        kept = self._maps.get(key)
        if kept is not None:
            self.hits += 1
            self._maps.move_to_end(key)
            return Image.frombytes("RGB", kept.size, kept.pixels)
        self.misses += 1
        control_map = draw()
        self._keep(key, _Kept(control_map.size, control_map.convert("RGB").tobytes()))
        return control_map

    def __len__(self) -> int:
        return len(self._maps)

    @property
    def bytes(self) -> int:
        """What the kept maps take together."""
        return sum(len(kept.pixels) for kept in self._maps.values())

    def _keep(self, key: Hashable, new: _Kept) -> None:
        if len(new.pixels) > self.most_bytes:
            return
        # Room first, so that the bounds hold even if this is where a request is cancelled.
        while len(self._maps) >= self.most_maps or self.bytes + len(new.pixels) > self.most_bytes:
            self._maps.popitem(last=False)
        self._maps[key] = new


def digest(picture: Image.Image) -> tuple[str, tuple[int, int], str]:
    """What tells a picture from all others: its mode, its size and the SHA-256 of its pixels."""
    return picture.mode, picture.size, hashlib.sha256(picture.tobytes()).hexdigest()
