"""Pictures that cannot be used give a one-sentence error that names no path. test_images.py has those that work."""

import io
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile
from support.picture_files import difference, picture, png, save, write

from controlnet.pictures.images import READABLE_FORMATS, ImageError, open_image


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
                assert (opened.mode, opened.info) == ("RGB", {})
