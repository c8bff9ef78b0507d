"""Picture files for tests, written as needed."""

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


def png(width: int, height: int, data: bytes = b"", depth: int = 8, colour: int = 2, extra: bytes = b"") -> bytes:
    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    transparency = chunk(b"tRNS", extra) if extra else b""
    pixels = chunk(b"IDAT", zlib.compress(data))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + transparency + pixels + chunk(b"IEND", b"")


def difference(one: Image.Image, other: Image.Image) -> int:
    assert one.size == other.size
    return int(np.abs(np.asarray(one, dtype=int) - np.asarray(other, dtype=int)).max())


def pixel(image: Image.Image, x: int = 0, y: int = 0) -> tuple[int, ...]:
    return tuple(int(value) for value in np.asarray(image)[y, x])
