"""Results that are computed once from a tensor and kept with it."""

from collections.abc import Callable, Hashable
from typing import Any, TypeVar

import torch

T = TypeVar("T")


def kept(source: torch.Tensor, key: Hashable, make: Callable[[], T]) -> T:
    """make(), computed at the first call for `source` and `key`.

    The result is an attribute of `source`, so it is freed with it, and a tensor that is equal but not the same never
    gets it. `source` must not be changed in place afterwards. If gradients are computed, nothing is kept: a result
    would then refer to `source` and neither would ever be freed. Nor in a function that torch.compile makes, which
    cannot set attributes of its inputs.
    """
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        return make()
    attributes: Any = source.__dict__
    results = attributes.setdefault("kept", {})
    if key not in results:
        results[key] = make()
    return results[key]
