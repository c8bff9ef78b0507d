"""What a client is told when something goes wrong that is not its doing."""

import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager


class ServerFault(RuntimeError):
    """An error of ours, told without its details: those may name paths and are in the server's log."""


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
        raise ServerFault(
            f"The server failed to make this picture ({type(error).__name__}); its log has the details. "
            "Try again, and if it happens again, report it with your inputs."
        ) from None
