"""How much memory this process uses, as Linux counts it."""

import os
from pathlib import Path

import pytest

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")

needs_linux = pytest.mark.skipif(
    not (_STATUS.exists() and os.access(_CLEAR, os.W_OK)), reason="needs Linux's accounting of memory"
)


def anonymous() -> int:
    """Bytes in memory that belong to no file."""
    return _bytes("RssAnon")


def resident() -> int:
    """Bytes in memory, with pages of mapped files."""
    return _bytes("VmRSS")


def peak() -> int:
    """The largest resident() since reset_peak()."""
    return _bytes("VmHWM")


def reset_peak() -> None:
    """Set the peak to the present size. Without this it is the peak since the process started, imports included."""
    _CLEAR.write_text("5")


def _bytes(field: str) -> int:
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(f"{field}:"))
    return int(line.split()[1]) * 1024
