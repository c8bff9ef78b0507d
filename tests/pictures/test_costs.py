"""Files that would cost too much time or memory are refused before they are decoded, and others are not."""

import struct
import time
import zlib
from pathlib import Path

import pytest
from PIL import Image, ImageFile
from support.picture_files import many_scans, picture, png, save, tiff, write

from controlnet.pictures import costs
from controlnet.pictures.costs import MeteredFile, jpeg_scans
from controlnet.pictures.images import ImageError, open_image


def refusal(path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("it was decoded"))
    with pytest.raises(ImageError, match=r"^The image would take too much time or memory: [^\n]*\.$") as caught:
        open_image(path)
    assert str(path) not in str(caught.value)
    return str(caught.value)


def test_a_jpeg_with_thousands_of_scans_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start = time.process_time()
    message = refusal(write(many_scans(2000, 2000), tmp_path), monkeypatch)
    assert "at most 250 scans in a JPEG of this size, got 2000" in message
    assert time.process_time() - start < 1


def test_an_ordinary_progressive_jpeg_opens_at_any_size(tmp_path: Path) -> None:
    assert open_image(write(many_scans(64, 1000), tmp_path)).size == (64, 64)
    data = many_scans(48, 10)
    assert jpeg_scans(data) == 10 and costs.MOST_SCANNED >= 10 * 64_000_000


def test_scans_are_counted_in_the_first_picture_only() -> None:
    """Phones append films and further pictures, and put small pictures into EXIF data."""
    data = many_scans(16, 12)
    thumbnail = b"\xff\xe1" + struct.pack(">H", 2 + len(data)) + data
    assert jpeg_scans(data[:2] + thumbnail + data[2:] + b"\xff\xda\0\x08" * 50) == 12
    assert jpeg_scans(data[:-2]) == 12 and jpeg_scans(b"\xff\xd8") == 0


@pytest.mark.parametrize("pillow_format", [name for name in costs.SLOW_FORMATS if name in Image.SAVE or name == "WEBP"])
def test_large_pictures_of_slow_formats_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pillow_format: str
) -> None:
    path = save(picture((80, 60)), tmp_path, pillow_format=pillow_format)
    for limit in ("MOST_SLOW_PIXELS", "MOST_SLOW_BYTES"):
        with monkeypatch.context() as patch:
            patch.setattr(costs, limit, 100)
            assert f"MB ({pillow_format}), please" in refusal(path, patch)
    assert open_image(path).size == (80, 60)


def test_a_jpeg_of_too_many_bytes_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(costs, "MOST_JPEG_BYTES", 100)
    assert "lower quality" in refusal(save(picture(), tmp_path, pillow_format="JPEG"), monkeypatch)


def test_a_large_png_of_16_bits_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "at most 32 megapixels in a PNG of 4 × 16 bits" in refusal(
        write(png(6000, 6000, depth=16, colour=6), tmp_path), monkeypatch
    )


@pytest.mark.parametrize("order", ["<", ">"])
def test_a_tiff_with_huge_tiles_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, order: str) -> None:
    data = tiff(64, 64, tile=40_000)
    if order == ">":
        tags = [
            struct.pack(">HHLL", *struct.unpack_from("<HHLL", data, place)) for place in range(10, len(data) - 4, 12)
        ]
        data = b"MM\0\x2a\0\0\0\x08" + struct.pack(">H", len(tags)) + b"".join(tags) + bytes(4)
    assert "tile, got 40000×40000" in refusal(write(data.ljust(4096, b"\0"), tmp_path), monkeypatch)


def test_a_tiff_with_millions_of_strips_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "got 2000000" in refusal(write(tiff(64, 64, strips=2_000_000), tmp_path), monkeypatch)


def test_an_ordinary_tiff_opens(tmp_path: Path) -> None:
    assert open_image(write(tiff(64, 64) + bytes(64 * 64), tmp_path)).getpixel((0, 0)) == (0, 0, 0)


def chunks(count: int) -> bytes:
    """A PNG with that many empty chunks."""
    whole = png(16, 16, bytes(16 * 49))
    empty = struct.pack(">I", 0) + b"prVt" + struct.pack(">I", zlib.crc32(b"prVt"))
    return whole[:33] + empty * count + whole[33:]


def comments(count: int) -> bytes:
    """A JPEG with that many empty comments."""
    whole = many_scans(16, 10)
    return whole[:2] + b"\xff\xfe\0\x02" * count + whole[2:]


@pytest.mark.parametrize("make", [chunks, comments])
def test_a_file_of_countless_parts_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make) -> None:
    assert open_image(write(make(1000), tmp_path)).size == (16, 16)
    monkeypatch.setattr(costs, "MOST_READS", 10_000)
    assert "too many parts" in refusal(write(make(20_000), tmp_path), monkeypatch)


def test_the_file_is_judged_where_it_was_read_to(tmp_path: Path) -> None:
    with MeteredFile(save(picture(), tmp_path, pillow_format="JPEG")) as file:
        file.read(10)
        assert costs.too_costly_to_open(file) is None and costs.too_costly(file, "JPEG", 1000) is None
        assert file.tell() == 10
