"""Errors that are not the client's fault, in words that a client may see."""

import errno
import gc
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import cv2
import torch


class ServerFault(RuntimeError):
    """A failure of the server. Its details may name paths, so they are only in the server's log."""


class OutOfMemory(RuntimeError):
    """The request needs more memory than there is; the message says what to lower."""


@contextmanager
def plain_errors() -> Iterator[None]:
    """Let the errors of this package pass, and replace every other one by ServerFault or OutOfMemory.

    The client sees an exception's message. Ours are written for it, and those of libraries name files of this machine.
    An error is ours if its class is defined in this package or in a folder of it. A cancellation is not an
    Exception, so it passes.
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
    """On the GPU, or in main memory as reported by Python, OpenCV, PyTorch's CPU allocator or the system."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    if isinstance(error, cv2.error):
        # Not by its code, which OpenCV keeps on the class: it is that of the last error anywhere.
        return f"({cv2.Error.StsNoMem}:" in str(error)
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator: can't allocate memory" in str(error)


def _free_memory(error: Exception) -> OutOfMemory:
    """Free everything that the failed request held, for the next one. Returns the error for the client."""
    # The frames in the traceback hold the request's tensors.
    traceback.clear_frames(error.__traceback__)
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return OutOfMemory(
        "There is not enough memory for this request: lower resolution, or num_outputs if it is above 1."
    )
