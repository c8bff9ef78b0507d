"""Files that would cost too much time or memory are refused before they are decoded, and others are not."""

import struct
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile
from support.picture_files import chunk, many_scans, picture, png, save, tiff, with_chunks, with_segments, write

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
    return with_chunks(*[chunk(b"prVt")] * count)


def comments(count: int) -> bytes:
    """A JPEG with that many empty comments."""
    return with_segments(*[b"\xfe"] * count)


def tags(count: int) -> bytes:
    """A BigTIFF with that many tags, all the same."""
    tag = struct.pack("<HHQ8s", 256, 4, 1, b"\x10")
    header = struct.pack("<2sHHHQ", b"II", 43, 8, 0, 16)
    others = b"".join(struct.pack("<HHQQ", name, 4, 1, value) for name, value in TAGS.items())
    return header + struct.pack("<Q", count + len(TAGS)) + tag * count + others + bytes(8 + 256)


TAGS = {257: 16, 258: 8, 259: 1, 262: 1, 273: 16, 277: 1, 278: 16, 279: 256}


@pytest.mark.parametrize("make", [chunks, comments, tags])
def test_a_file_of_countless_parts_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make) -> None:
    assert open_image(write(make(1000), tmp_path)).size == (16, 16)
    monkeypatch.setattr(costs, "MOST_READS", 10_000)
    assert "too many parts" in refusal(write(make(20_000), tmp_path), monkeypatch)


EXIF, PHOTOSHOP = b"\xe1Exif\0\0", b"\xedPhotoshop 3.0\0"


@pytest.mark.parametrize("part", [EXIF, PHOTOSHOP], ids=["EXIF", "Photoshop"])
def test_a_jpeg_with_countless_parts_of_metadata_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: bytes
) -> None:
    """Pillow took minutes to join 1900 parts of EXIF data, because it copies them for each part."""
    assert open_image(write(with_segments(*[part] * costs.MOST_JPEG_PARTS), tmp_path)).size == (16, 16)
    data = with_segments(*[part.ljust(60_000, b"\0")] * (costs.MOST_JPEG_PARTS + 1))
    start = time.process_time()
    assert "at most 100 parts of metadata of one kind in a JPEG" in refusal(write(data, tmp_path), monkeypatch)
    assert time.process_time() - start < 1


def test_a_png_of_much_besides_its_pixels_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = [with_chunks(chunk(b"eXIf", bytes(9000)), after=after) for after in (False, True)]
    assert all(open_image(write(each, tmp_path)).size == (16, 16) for each in data)
    monkeypatch.setattr(costs, "MOST_METADATA", 8999)
    for each in data:
        assert "MB of metadata in a PNG" in refusal(write(each, tmp_path), monkeypatch)
    monkeypatch.undo()
    monkeypatch.setattr(costs, "MOST_METADATA", 2000)  # of which the pixels are no part
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    assert open_image(save(Image.fromarray(pixels), tmp_path)).size == (64, 64)


def test_a_tiff_of_much_besides_its_pixels_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(picture(), tmp_path, pillow_format="TIFF", tiffinfo={270: "x" * 5000, 271: "y" * 5000})
    assert open_image(path).size == (48, 32)
    monkeypatch.setattr(costs, "MOST_METADATA", 9000)
    assert "MB of metadata in a TIFF" in refusal(path, monkeypatch)


@pytest.mark.parametrize("after", [False, True], ids=["before the pixels", "after them"])
def test_a_png_whose_texts_unpack_to_too_much_is_refused(tmp_path: Path, after: bool) -> None:
    bomb = zlib.compress(bytes(17 * 2**20), 9)
    for name, head in ((b"zTXt", b"a\0\0"), (b"iTXt", b"a\0\1\0\0\0"), (b"iCCP", b"a\0\0")):
        with pytest.raises(ImageError, match="at most 16 MB in a text or the colour profile of a PNG and 64 MB in all"):
            open_image(write(with_chunks(chunk(name, head + bomb), after=after), tmp_path))
    many = [chunk(b"tEXt", b"%d\0" % i + bytes(15 * 2**20)) for i in range(5)]
    with pytest.raises(ImageError, match="64 MB in all texts, please save it without"):
        open_image(write(with_chunks(*many, after=after), tmp_path))


def test_the_file_is_judged_where_it_was_read_to(tmp_path: Path) -> None:
    with MeteredFile(save(picture(), tmp_path, pillow_format="JPEG")) as file:
        file.read(10)
        assert costs.too_costly_to_open(file) is None and costs.too_costly(file, "JPEG", 1000) is None
        assert file.tell() == 10
