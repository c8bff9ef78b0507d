"""What a client is told when something goes wrong that is not its doing."""

import errno
import gc
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class ServerFault(RuntimeError):
    """An error of ours, told without its details: those may name paths and are in the server's log."""


class OutOfMemory(RuntimeError):
    """The request needs more memory than there is; the message says what to lower."""


@contextmanager
def plain_errors() -> Iterator[None]:
    """Let this package's own errors pass, which are written for the client; put ServerFault in the place of others.

    What an exception's message says, the client sees, and those of libraries name files of this machine. A cancellation
    is no Exception and passes untouched.
    """
    try:
        yield
    except Exception as error:
        if type(error).__module__.startswith(f"{__package__}."):
            raise
        traceback.print_exception(error, file=sys.stderr)
        if _is_out_of_memory(error):
            raise _free_memory(error) from None
        raise ServerFault(
            f"The server failed to make this picture ({type(error).__name__}); its log has the details. "
            "Try again, and if it happens again, report it with your inputs."
        ) from None


def _is_out_of_memory(error: Exception) -> bool:
    """On the GPU, or in main memory as Python, PyTorch's CPU allocator or the system tells it."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator: can't allocate memory" in str(error)


def _free_memory(error: Exception) -> OutOfMemory:
    """Let go of everything that the failed request held, so that the next one finds the memory free; what to say."""
    # The frames in the traceback hold the tensors of the moment.
    traceback.clear_frames(error.__traceback__)
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return OutOfMemory(
        "There is not enough memory for this request: lower resolution, or num_outputs if it is above 1."
    )
