"""How long a GPU would need for the arithmetic of a request alone, for script/bench/speed."""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

SIDE = 8192
"""Of the square matrices whose product says how fast a GPU multiplies."""


def floor(run: Callable[[], Any], dtype: torch.dtype) -> float:
    """Seconds: the run's multiplications and additions, at the speed of a product of large matrices."""
    with FlopCounterMode(display=False) as counted:
        run()
    return counted.get_total_flops() / flops(dtype)


@cache
def flops(dtype: torch.dtype) -> float:
    """Operations per second of a product of large matrices on the GPU."""
    a, b = (torch.randn(SIDE, SIDE, device="cuda", dtype=dtype) for _ in range(2))
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    for _ in range(3):
        torch.mm(a, b)
    start.record()
    for _ in range(10):
        torch.mm(a, b)
    end.record()
    end.synchronize()
    return 10 * 2 * SIDE**3 / (start.elapsed_time(end) / 1000)
