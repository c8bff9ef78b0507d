"""Picture files for tests, written as needed."""

import io
import struct
import zlib
from pathlib import Path

import cog
import numpy as np
from PIL import Image


def picture(size: tuple[int, int] = (48, 32)) -> Image.Image:
    """A picture that is smooth enough for lossy formats and has four different corners."""
    y, x = np.mgrid[0 : size[1], 0 : size[0]]
    return Image.fromarray(np.stack([x * 4, y * 6, 255 - x * 4], axis=-1).clip(0, 255).astype(np.uint8))


def save(image: Image.Image, folder: Path, name: str = "upload", pillow_format: str = "PNG", **options) -> cog.Path:
    path = folder / name
    image.save(path, pillow_format, **options)
    return cog.Path(path)


def write(data: bytes, folder: Path) -> Path:
    path = folder / "upload"
    path.write_bytes(data)
    return path


def chunk(name: bytes, body: bytes = b"") -> bytes:
    """A part of a PNG."""
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(width: int, height: int, data: bytes = b"", depth: int = 8, colour: int = 2, extra: bytes = b"") -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    transparency = chunk(b"tRNS", extra) if extra else b""
    pixels = chunk(b"IDAT", zlib.compress(data))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + transparency + pixels + chunk(b"IEND", b"")


def difference(one: Image.Image, other: Image.Image) -> int:
    assert one.size == other.size
    return int(np.abs(np.asarray(one, dtype=int) - np.asarray(other, dtype=int)).max())


def pixel(image: Image.Image, x: int = 0, y: int = 0) -> tuple[int, ...]:
    return tuple(int(value) for value in np.asarray(image)[y, x])


def tiff(
    width: int,
    height: int,
    bits: int = 8,
    sample_format: int = 1,
    white_is_zero: bool = False,
    tile: int = 0,
    strips: int = 1,
) -> bytes:
    """The header of an uncompressed greyscale TIFF, with its pixels after it. `strips` is how many it says it has.

    With `tile` it declares square tiles of that side, and has no pixels.
    """
    tags = {256: width, 257: height, 258: bits, 259: 1, 262: 0 if white_is_zero else 1, 277: 1, 339: sample_format}
    tags |= {322: tile, 323: tile, 324: 0, 325: 0} if tile else {273: 0, 278: height, 279: width * height * bits // 8}
    end = 8 + 2 + 12 * len(tags) + 4
    tags |= {324: end, 325: 3000} if tile else {273: end}
    entries = [struct.pack("<HHLL", tag, 4, strips if tag in (273, 279) else 1, tags[tag]) for tag in sorted(tags)]
    return b"II\x2a\0\x08\0\0\0" + struct.pack("<H", len(tags)) + b"".join(entries) + bytes(4)


def with_chunks(*added: bytes, after: bool = False) -> bytes:
    """A small black PNG with these chunks before its pixels, or after them."""
    whole = png(16, 16, bytes(16 * 49))
    place = len(whole) - 12 if after else 33
    return whole[:place] + b"".join(added) + whole[place:]


def with_segments(*added: bytes) -> bytes:
    """A small JPEG with these segments at its beginning: each a marker's byte and its data."""
    whole = many_scans(16, 10)
    segments = (bytes([0xFF, part[0]]) + struct.pack(">H", len(part) + 1) + part[1:] for part in added)
    return whole[:2] + b"".join(segments) + whole[2:]


def many_scans(size: int, scans: int) -> bytes:
    """A progressive JPEG of one colour whose last scan is repeated until there are that many."""
    buffer = io.BytesIO()
    Image.new("RGB", (size, size), "teal").save(buffer, "JPEG", progressive=True)
    data, end = buffer.getvalue()[:-2], buffer.getvalue()[-2:]
    return data + data[data.rindex(b"\xff\xda") :] * (scans - data.count(b"\xff\xda")) + end
