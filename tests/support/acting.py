"""ControlNets as a composite takes them, each for a control of its own."""

from collections.abc import Sequence
from typing import Any

import torch

from controlnet.generation.composite import Acting


def acting(nets: Sequence[Any], regions: Sequence[torch.Tensor | None] | None = None) -> list[Acting]:
    """`nets` are in the order of the controls, and `regions` say where each acts."""
    where = [None] * len(nets) if regions is None else regions
    return [Acting(net, (number,), region=region) for number, (net, region) in enumerate(zip(nets, where, strict=True))]
