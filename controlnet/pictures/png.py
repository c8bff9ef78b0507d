"""The chunks of a PNG (W3C, "Portable Network Graphics Specification", section 5)."""

import io
import re
import zlib
from collections.abc import Iterator

SIGNATURE = b"\x89PNG\r\n\x1a\n"
PIXELS = b"IDAT"
_NAME = re.compile(rb"[A-Za-z]{4}")
_BLOCK = 2**20
"""Bytes that are read at once."""


def chunks(file: io.BufferedReader) -> Iterator[tuple[bytes, int, int]]:
    """The name, the first byte and the length of each chunk of a PNG, in their order. Nothing for another file.

    It ends where the structure does: at the end of the file, or at what is no name. The caller may move in the file.
    """
    file.seek(0)
    if file.read(len(SIGNATURE)) != SIGNATURE:
        return
    start = len(SIGNATURE)
    while len(head := file.read(8)) == 8 and _NAME.fullmatch(head[4:]):
        length = int.from_bytes(head[:4], "big")
        yield head[4:], start + 8, length
        start += 12 + length
        file.seek(start)


def broken_chunk(file: io.BufferedReader) -> str | None:
    """The name of the first chunk whose checksum is wrong, up to the last with pixels. None if all are right.

    Pillow does not check those with pixels, and would show what is damaged. A chunk that is cut off is not judged.
    """
    has_pixels = False
    for name, start, length in chunks(file):
        if has_pixels and name != PIXELS:
            break
        has_pixels = name == PIXELS
        file.seek(start)
        checksum, left = zlib.crc32(name), length
        while left and (block := file.read(min(left, _BLOCK))):
            checksum, left = zlib.crc32(block, checksum), left - len(block)
        wanted = file.read(4)
        if not left and len(wanted) == 4 and int.from_bytes(wanted, "big") != checksum:
            return name.decode()
    return None
