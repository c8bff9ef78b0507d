"""Results that are kept for the next requests."""

from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

RECENT = 8
"""How many results are kept."""
T = TypeVar("T")


class Recent(Generic[T]):
    """The results for the RECENT keys that were asked for last.

    Only complete ones are kept, so a cancelled request cannot leave a part. They must not be changed in place.
    """

    def __init__(self) -> None:
        self._kept: dict[Hashable, T] = {}

    def of(self, key: Hashable, make: Callable[[], T]) -> T:
        """The result that is kept for `key`, or else make()."""
        result = self._kept[key] if key in self._kept else make()
        self._kept.pop(key, None)
        self._kept[key] = result  # the newest is the last
        for oldest in list(self._kept)[:-RECENT]:
            del self._kept[oldest]
        return result

    def __len__(self) -> int:
        return len(self._kept)
