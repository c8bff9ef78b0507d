"""Draws the batches of a stage: in this process, or for a GPU ahead in others."""

import os
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch
from torch import multiprocessing

SEED = 20261124
Draw = Callable[[torch.Generator, int], Any]
"""Draws a batch from a generator. It can be pickled, and gives the same for the same generator in any process."""
AHEAD = 3
"""How many batches are drawn ahead for each process."""


def generator_of(stage: str, step: int) -> torch.Generator:
    """The generator from which a step of a stage draws everything."""
    return torch.Generator().manual_seed(zlib.crc32(f"{SEED}/{stage}/{step}".encode()))


def batches(stage: str, draw: Draw, steps: range, batch: int, device: torch.device) -> Iterator[Any]:
    """What each of the steps needs, in main memory. While a GPU computes, all other cores draw the next ones."""
    if device.type == "cpu":
        yield from (draw(generator_of(stage, step), batch) for step in steps)
        return
    multiprocessing.set_sharing_strategy("file_system")  # a file handle for each tensor would soon be too many
    # Forked from a process that has imported everything, once for all stages, and has never seen the GPU.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tinyworld.diffusion", "tinyworld.vision"])
    workers = max(1, (os.cpu_count() or 1) - 2)
    pool = ProcessPoolExecutor(workers, context, _begin, (draw,))
    waiting: deque[Future] = deque()
    try:
        for step in steps:
            waiting.append(pool.submit(_drawn, stage, step, batch))
            if len(waiting) > AHEAD * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


_draw: Draw
"""Of a process that draws."""


def _begin(draw: Draw) -> None:
    global _draw
    torch.set_num_threads(1)
    _draw = draw


def _drawn(stage: str, step: int, batch: int) -> Any:
    return _draw(generator_of(stage, step), batch)


def on_device(drawn: Any, device: torch.device) -> Any:
    """The same with its tensors on a device: in dataclasses, dicts, lists and tuples."""
    if isinstance(drawn, torch.Tensor):
        return drawn.to(device, non_blocking=True)
    if isinstance(drawn, dict):
        return {key: on_device(value, device) for key, value in drawn.items()}
    if isinstance(drawn, list | tuple):
        return type(drawn)(on_device(value, device) for value in drawn)
    if is_dataclass(drawn) and not isinstance(drawn, type):
        return replace(drawn, **{each.name: on_device(getattr(drawn, each.name), device) for each in fields(drawn)})
    return drawn
