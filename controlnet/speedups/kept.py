"""Results that are computed once from a tensor and kept with it."""

from collections.abc import Callable, Hashable, Sequence
from typing import Any, TypeVar

import torch

T = TypeVar("T", torch.Tensor, tuple[torch.Tensor, ...])


def kept(source: torch.Tensor, key: Hashable, make: Callable[[torch.Tensor], T]) -> T:
    """make(source), computed at the first call for `source` and `key`.

    The result is an attribute of `source`, so it is freed with it, and a tensor that is equal but not the same never
    gets it. `source` must not be changed in place afterwards, unless renew() follows. If gradients are computed,
    nothing is kept: a result would then refer to `source` and neither would ever be freed.
    """
    if torch.is_grad_enabled():
        return make(source)
    attributes: Any = source.__dict__
    results = attributes.setdefault("kept", {})
    if key not in results:
        results[key] = make(source), make
    return results[key][0]


def renew(source: torch.Tensor) -> None:
    """Compute everything that is kept with a changed tensor again, into the same memory."""
    for result, make in getattr(source, "kept", {}).values():
        for old, new in zip(_tensors(result), _tensors(make(source)), strict=True):
            old.copy_(new)


def kept_with(source: torch.Tensor) -> list[torch.Tensor]:
    """Everything that is kept with a tensor."""
    return [tensor for result, _ in getattr(source, "kept", {}).values() for tensor in _tensors(result)]


def _tensors(result: Any) -> Sequence[torch.Tensor]:
    return (result,) if isinstance(result, torch.Tensor) else result
