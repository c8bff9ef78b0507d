"""Pictures that cannot be used give a one-sentence error that names no path. test_images.py has those that work."""

import io
import struct
import tracemalloc
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile
from PIL.PngImagePlugin import PngInfo
from support import icc_profiles
from support.picture_files import difference, picture, png, save, write

from controlnet.pictures.images import READABLE_FORMATS, ImageError, open_image
from controlnet.pictures.png import chunks


def refusal(source: object) -> str:
    with pytest.raises(ImageError) as caught:
        open_image(source)  # type: ignore[arg-type]
    message = str(caught.value)
    assert message.endswith(".") and "\n" not in message
    assert caught.value.__context__ is None or caught.value.__suppress_context__  # Pillow's own messages name the file
    return message


def test_a_local_path_or_file_url_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(picture(), tmp_path, name="secret")
    monkeypatch.setattr(Image, "open", lambda *args, **options: pytest.fail("it was opened"))
    for source in (str(path), f"file://{path}", "/etc/hostname", None, 7, b"data"):
        message = refusal(source)
        assert "upload" in message and "URL" in message
        assert "secret" not in message and "/" not in message.replace("http(s)", "")


@pytest.mark.parametrize(
    "data", [b"hello", b"%!PS-Adobe-3.0 EPSF-3.0\n", b"8BPS" + bytes(60), b"<svg></svg>", b"\x89PNG"]
)
def test_a_file_that_is_not_a_picture_is_refused(tmp_path: Path, data: bytes) -> None:
    message = refusal(write(data, tmp_path))
    assert "expected one of PNG, JPEG" in message and str(tmp_path) not in message


def test_other_formats_that_pillow_reads_are_refused(tmp_path: Path) -> None:
    for pillow_format in ("PPM", "TGA", "ICO", "PCX"):
        assert "expected one of" in refusal(save(picture(), tmp_path, pillow_format=pillow_format))


def test_what_begins_like_a_picture_is_named(tmp_path: Path) -> None:
    """TIFFs whose header points nowhere. The last two were the server's fault."""
    lost = [
        b"II*\0" + b"\xff" * 12,
        b"MM\0*" + bytes(12),
        b"II+\0\x08\0\0\0" + b"\xff" * 8,
        b"MM\0+\0\x08\0\0" + b"\x7f" * 8,
    ]
    for data in lost:
        assert "it begins like a TIFF but cannot be read" in refusal(write(data, tmp_path))
    for pillow_format in ("PNG", "GIF", "BMP", "JPEG"):
        data = save(picture(), tmp_path, pillow_format=pillow_format).read_bytes()
        assert f"it begins like a {pillow_format} but cannot be read" in refusal(write(data[:20], tmp_path))


def test_a_png_with_a_wrong_checksum_is_refused_with_the_chunks_name(tmp_path: Path) -> None:
    """Pillow shows pixels whose checksum is wrong, and says of the rest that it is no picture."""
    written = PngInfo()
    written.add_text("a", "b")
    path = save(picture(), tmp_path, pnginfo=written, icc_profile=icc_profiles.swapped_srgb())
    whole, opened = path.read_bytes(), open_image(path)
    with path.open("rb") as file:
        ends = {name.decode(): start + length for name, start, length in chunks(file)}
    assert [*ends] == ["IHDR", "iCCP", "tEXt", "IDAT", "IEND"]
    for name, end in ends.items():
        damaged = write(whole[:end] + bytes([whole[end] ^ 1]) + whole[end + 1 :], tmp_path)
        if name == "IEND":  # all pixels are right
            assert open_image(damaged) == opened
        else:
            assert f"the checksum of the chunk {name} in this PNG is wrong" in refusal(damaged)


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    assert "0 bytes" in refusal(write(b"", tmp_path))


def test_a_missing_file_or_a_folder_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "absent", tmp_path):
        message = refusal(path)
        assert "could not be read" in message and str(tmp_path) not in message


@pytest.mark.parametrize("pillow_format", READABLE_FORMATS)
@pytest.mark.parametrize("kept", [0.3, 0.7])
def test_a_truncated_file_is_refused(tmp_path: Path, pillow_format: str, kept: float) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    data = save(noise, tmp_path, pillow_format=pillow_format).read_bytes()
    message = refusal(write(data[: int(len(data) * kept)], tmp_path))
    assert "incomplete" in message or "expected one of" in message
    assert str(tmp_path) not in message


@pytest.mark.parametrize("size", [(1, 1), (15, 40), (40, 15)])
def test_a_picture_that_is_too_small_is_refused(tmp_path: Path, size: tuple[int, int]) -> None:
    assert f"got {size[0]}×{size[1]}" in refusal(save(Image.new("RGB", size), tmp_path))


def test_the_smallest_size_is_accepted(tmp_path: Path) -> None:
    assert open_image(save(Image.new("RGB", (16, 16)), tmp_path)).size == (16, 16)


@pytest.mark.parametrize("size", [(130, 32), (32, 129)])
def test_a_picture_that_is_too_narrow_is_refused(tmp_path: Path, size: tuple[int, int]) -> None:
    assert f"at most 4:1, got {size[0]}×{size[1]}" in refusal(save(Image.new("RGB", size), tmp_path))


def test_an_aspect_ratio_of_4_to_1_is_accepted(tmp_path: Path) -> None:
    assert open_image(save(Image.new("RGB", (128, 32)), tmp_path)).size == (128, 32)


@pytest.mark.parametrize("size", [(20000, 20000), (10000, 9500), (8001, 8000)], ids=["error", "warning", "ours"])
def test_too_many_pixels_are_refused_before_decoding(
    tmp_path: Path, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The three sizes exceed the limit of Pillow's error, that of its warning, and only our own limit."""
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("it was decoded"))
    path = write(png(*size), tmp_path)
    open_first = save(picture(), tmp_path, name="other")  # imports Pillow's plugins before the measurement
    with Image.open(open_first):
        pass
    tracemalloc.start()
    message = refusal(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "megapixels" in message
    assert peak < 2_000_000


def test_a_picture_opens_after_a_damaged_one(tmp_path: Path) -> None:
    good = save(picture(), tmp_path, name="good")
    before = open_image(good)
    refusal(write(good.read_bytes()[:100], tmp_path))
    assert difference(open_image(good), before) == 0


def files(pillow_format: str) -> list[bytes]:
    """Small files of a format, of more than one kind."""
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "words"
    more = {"exif": exif, "icc_profile": icc_profiles.swapped_srgb()}
    kinds: dict[str, list[tuple[str, dict]]] = {
        "PNG": [("RGBA", more), ("P", {"transparency": b"\0\x80"}), ("1", {}), ("I;16", {})],
        "JPEG": [("RGB", more), ("CMYK", {"progressive": True})],
        "WEBP": [("RGBA", more), ("RGB", {"lossless": True})],
        "AVIF": [("RGBA", more)],
        "GIF": [("P", {"transparency": 3}), ("L", {"save_all": True, "append_images": [picture()]})],
        "BMP": [("RGB", {}), ("P", {}), ("RGBA", {})],
        "TIFF": [
            ("RGB", more),
            ("RGB", {"big_tiff": True}),
            ("RGBA", {"compression": "tiff_lzw"}),
            ("1", {"compression": "group4"}),
            ("F", {}),
        ],
    }
    stored = []
    for mode, options in kinds[pillow_format]:
        buffer = io.BytesIO()
        picture().convert("I" if mode == "I;16" else mode).convert(mode).save(buffer, pillow_format, **options)
        stored.append(buffer.getvalue())
    return stored


def damaged(whole: bytes) -> Iterator[bytes]:
    """The file cut off, or with an absurd number in it, at many places: in steps of a byte where its header is."""
    places = [*range(min(len(whole), 96)), *range(96, len(whole), max(1, len(whole) // 24))]
    for place in places:
        yield whole[:place]
        for number in (b"\xff" * 8, b"\0" * 4, b"\x7f\xff\xff\xff"):
            yield whole[:place] + number + whole[place + len(number) :]


def with_right_checksums(data: bytes) -> bytes:
    """A damaged PNG as one whose maker has counted the damage in."""
    mended = bytearray(data)
    for name, start, length in chunks(io.BufferedReader(io.BytesIO(data))):  # type: ignore[arg-type]
        mended[start + length : start + length + 4] = struct.pack(">I", zlib.crc32(name + data[start:][:length]))
    return bytes(mended)


@pytest.mark.parametrize("pillow_format", READABLE_FORMATS)
def test_absurd_structure_gives_a_picture_or_an_error(tmp_path: Path, pillow_format: str) -> None:
    """And no other exception, which would be the server's fault."""
    outcomes = Counter[str]()
    for whole in files(pillow_format):
        assert open_image(write(whole, tmp_path)).mode in ("RGB", "RGBA")
        for data in damaged(whole):
            for version in {data, with_right_checksums(data)}:
                try:
                    outcomes[open_image(write(version, tmp_path)).mode] += 1
                except ImageError as error:
                    assert str(error).startswith("The image ") and str(tmp_path) not in str(error)
                    outcomes["refused"] += 1
    assert outcomes["refused"] > 100, outcomes


def test_random_damage_gives_a_picture_or_an_error(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    for pillow_format in READABLE_FORMATS:
        buffer = io.BytesIO()
        picture().save(buffer, pillow_format)
        for _ in range(25):
            data = bytearray(buffer.getvalue())
            for position in rng.integers(0, len(data), 6):
                data[position] = rng.integers(256)
            try:
                opened = open_image(write(bytes(data), tmp_path))
            except ImageError as error:
                assert str(error).startswith("The image is ") and str(tmp_path) not in str(error)
            else:
                assert opened.mode in ("RGB", "RGBA") and opened.info == {}
