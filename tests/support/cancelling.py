"""Cancellation, which Cog's server raises in the main thread at any moment, at a moment of choice."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, ModuleType


class Cancelled(BaseException):
    pass


class TooFew(Exception):
    """The block has ended before the instruction."""


@contextmanager
def cancelled_at(instruction: int, *modules: ModuleType) -> Iterator[None]:
    """Raise Cancelled at the n-th bytecode instruction in the modules, which ends the block.

    Raises TooFew if there are fewer instructions, and AssertionError if the block swallows the cancellation.
    """
    files, left = {module.__file__ for module in modules}, instruction

    def trace(frame: FrameType, event: str, _):
        nonlocal left
        if frame.f_code.co_filename not in files:
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            left -= 1
            if left == 0:
                raise Cancelled
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield
    except Cancelled:
        return
    finally:
        sys.settrace(before)
    assert left > 0, f"{instruction}: the cancellation was swallowed"
    raise TooFew
