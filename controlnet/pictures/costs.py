"""What a picture file would cost to open, read from its structure before a pixel is decoded.

Limits are counts and sizes, not seconds, so a file that is refused is refused on every machine. Times are those of one
core of a server.
"""

import io
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from controlnet.pictures import png

MOST_READS = 400_000
"""Reads of one file. Pillow takes one for each chunk or segment, and a file can consist of millions of empty ones."""
MOST_SCANNED = 1_000_000_000
"""Pixels times scans of a JPEG, so 15 scans at 64 megapixels. Pillow and jpegtran write 10 for a picture in colour."""
MOST_JPEG_BYTES = 128 * 2**20
"""A photograph of 64 megapixels has 20 to 80 MB."""
MOST_JPEG_PARTS = 100
"""Parts of a JPEG's EXIF data, or of Photoshop's. Each has up to 64 KB, and Pillow copies what it has for each more."""
MOST_METADATA = 128 * 2**20
"""Bytes of a PNG without its pixels, or of a TIFF's tags. Pillow holds up to three copies of them."""
MOST_PNG_BYTES = 256_000_000
"""Bytes of a PNG's pixels: 64 megapixels with 4 channels of 8 bits. With 16 bits it takes twice as long."""
SLOW_FORMATS = ("WEBP", "AVIF")
"""Formats that are only decoded whole, at full size and with several copies."""
MOST_SLOW_PIXELS = 32_000_000
MOST_SLOW_BYTES = 32 * 2**20
MOST_TILE = 4096 * 4096
"""Pixels of a TIFF's tile, for which memory is taken even if the picture is smaller. Usual tiles have 256×256."""
MOST_VALUES = 1_000_000
"""Numbers in a TIFF's tag, which all become Python objects. 64 megapixels in tiles of 16×16 need 250,000."""

_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd8\xff]", re.DOTALL)
"""A JPEG's marker that has a length or ends the picture. The others stand alone, and data writes FF as FF 00."""
_SCAN, _END = 0xDA, 0xD9
_JPEG_PARTS = [re.compile(head, re.DOTALL) for head in (rb"\xff\xe1..Exif\0\0", rb"\xff\xed..Photoshop 3\.0\0")]
"""How the parts of a JPEG's EXIF data begin, and those of Photoshop's."""
_PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
"""By a PNG's colour type."""
_NUMBERS = (3, 4, 5, 6, 8, 9, 10, 11, 12, 13, 16, 17, 18)
"""Types of a TIFF's values that Pillow unpacks one by one."""
_BYTE_ORDERS = {b"II": "<", b"MM": ">"}
"""By the first two bytes of a TIFF."""
_BIG = 43
"""The version of a BigTIFF."""
_SHORT = 3
_VALUE_BYTES = {3: 2, 4: 4, 5: 8, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
"""By the type of a TIFF's values. Those of other types have 1."""
_TILE_SIDES = (322, 323)


class TooManyReads(Exception):
    """The file has more parts than MOST_READS."""


class MeteredFile(io.BufferedReader):
    """A file that is opened for reading and counts how often it is read. Raises TooManyReads."""

    def __init__(self, path: Path) -> None:
        super().__init__(io.FileIO(path))
        self.reads = 0

    def read(self, size: int | None = -1, /) -> bytes:
        self.reads += 1
        if self.reads > MOST_READS:
            raise TooManyReads
        return super().read(size)


def too_costly_to_open(file: io.BufferedReader) -> str | None:
    """Why a file is not even opened, and what to do; None if it may be. Keeps the file's place."""
    place = file.tell()
    try:
        size = file.seek(0, io.SEEK_END)
        file.seek(0)
        head = file.read(16)
        if head[:2] in _BYTE_ORDERS:
            return _tiff_fault(file, _BYTE_ORDERS[head[:2]], head, size)
        if head[:2] == b"\xff\xd8":
            return _jpeg_parts_fault(file, size)
        if head[:8] == png.SIGNATURE:
            return _png_metadata_fault(file, size)
        # Pillow reads these two as a whole when it opens them.
        name = "WEBP" if head[8:12] == b"WEBP" else "AVIF" if head[4:8] == b"ftyp" else None
        return _slow_fault(name, size, 0) if name else None
    finally:
        file.seek(place)


def too_costly(file: io.BufferedReader, picture_format: str | None, pixels: int) -> str | None:
    """Why a file of that format and size is not decoded, and what to do; None if it may be. Keeps the file's place."""
    place = file.tell()
    try:
        size = file.seek(0, io.SEEK_END)
        file.seek(0)
        if picture_format in SLOW_FORMATS:
            return _slow_fault(picture_format, size, pixels)
        if picture_format in ("JPEG", "MPO"):
            return _jpeg_scans_fault(file, pixels)
        return _png_fault(file.read(26), pixels) if picture_format == "PNG" else None
    finally:
        file.seek(place)


def _slow_fault(picture_format: str, size: int, pixels: int) -> str | None:
    if pixels <= MOST_SLOW_PIXELS and size <= MOST_SLOW_BYTES:
        return None
    return (
        f"expected at most {MOST_SLOW_PIXELS // 1_000_000} megapixels and {MOST_SLOW_BYTES // 2**20} MB"
        f" ({picture_format}), please make it smaller or send a JPEG"
    )


def _metadata_fault(picture_format: str, size: int) -> str | None:
    if size <= MOST_METADATA:
        return None
    return f"expected at most {MOST_METADATA // 2**20} MB of metadata in a {picture_format}, please save it without"


def _png_metadata_fault(file: io.BufferedReader, size: int) -> str | None:
    sizes = (min(length, size - start) for name, start, length in png.chunks(file) if name != png.PIXELS)
    return _metadata_fault("PNG", sum(sizes))


def _jpeg_parts_fault(file: io.BufferedReader, size: int) -> str | None:
    if size > MOST_JPEG_BYTES:
        return f"expected at most {MOST_JPEG_BYTES // 2**20} MB in a JPEG, please save it with a lower quality"
    file.seek(0)
    data = file.read()
    if max(len(part.findall(data)) for part in _JPEG_PARTS) <= MOST_JPEG_PARTS:
        return None
    return f"expected at most {MOST_JPEG_PARTS} parts of metadata of one kind in a JPEG, please save it without"


def _jpeg_scans_fault(file: io.BufferedReader, pixels: int) -> str | None:
    scans = jpeg_scans(file.read())
    if scans * pixels <= MOST_SCANNED:
        return None
    most = max(1, MOST_SCANNED // pixels)
    return f"expected at most {most} scans in a JPEG of this size, got {scans}, please save it again"


def _png_fault(header: bytes, pixels: int) -> str | None:
    depth, channels = header[24], _PNG_CHANNELS.get(header[25], 1)
    if pixels * channels * depth // 8 <= MOST_PNG_BYTES:
        return None
    most = 8 * MOST_PNG_BYTES // (channels * depth) // 1_000_000
    return f"expected at most {most} megapixels in a PNG of {channels} × {depth} bits, please save it with 8 bits"


def jpeg_scans(data: bytes) -> int:
    """The number of scans of the first picture in a JPEG file."""
    place, scans = 2, 0
    while found := _MARKER.search(data, place):
        marker = found.group()[-1]
        if marker == _END:
            break
        scans += marker == _SCAN
        place = found.end() + int.from_bytes(data[found.end() : found.end() + 2], "big")
    return scans


@dataclass(frozen=True)
class _Entry:
    """One tag of a TIFF."""

    tag: int
    type: int
    count: int
    value: bytes
    """Four bytes, or eight in a BigTIFF: the value if it is that short, otherwise where it is."""


def _tiff_fault(file: io.BufferedReader, order: str, head: bytes, size: int) -> str | None:
    sides, metadata = [0, 0], 0
    try:
        for entry in _entries(file, order, head):
            if entry.type in _NUMBERS and entry.count > MOST_VALUES:
                return (
                    f"expected at most {MOST_VALUES} numbers in a TIFF's tag, got {entry.count}, please save it again"
                )
            own = entry.count * _VALUE_BYTES.get(entry.type, 1)
            metadata += own if own <= size else 0  # Pillow skips a tag that is larger than the file
            if entry.tag in _TILE_SIDES:
                which, length = _TILE_SIDES.index(entry.tag), 2 if entry.type == _SHORT else 4
                part = entry.value[:length]
                sides[which] = max(sides[which], int.from_bytes(part, "little" if order == "<" else "big"))
    except (struct.error, ValueError, OSError):
        return None  # it is cut off or points nowhere, which is found when it is opened
    if fault := _metadata_fault("TIFF", metadata):
        return fault
    if sides[0] * sides[1] <= MOST_TILE:
        return None
    return f"expected at most {MOST_TILE} pixels in a TIFF's tile, got {sides[0]}×{sides[1]}, please save it again"


def _entries(file: io.BufferedReader, order: str, head: bytes) -> Iterator[_Entry]:
    """The entries of a TIFF's first directory. Raises struct.error if it is cut off, and what seek() raises."""
    big = struct.unpack_from(f"{order}H", head, 2)[0] == _BIG
    (start,) = struct.unpack_from(f"{order}Q", head, 8) if big else struct.unpack_from(f"{order}L", head, 4)
    file.seek(start)
    (count,) = struct.unpack(f"{order}Q", file.read(8)) if big else struct.unpack(f"{order}H", file.read(2))
    layout = struct.Struct(f"{order}HHQ8s" if big else f"{order}HHL4s")
    for _ in range(count):
        yield _Entry(*layout.unpack(file.read(layout.size)))
