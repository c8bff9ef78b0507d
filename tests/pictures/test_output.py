"""Output files: their order, their format, the same bytes for the same pixels, and no file left behind."""

import errno
import json
import os
import pathlib
import tempfile
from collections.abc import Callable
from pathlib import Path

import cog
import numpy as np
import pytest
from PIL import Image, ImageCms

from controlnet.pictures import output
from controlnet.pictures.output import PARAMETERS, OutputError, write_pictures
from controlnet.pictures.temporary import sweep

FORMATS = tuple(output.OUTPUT_FORMATS)


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder for temporary files, in which this process has not written anything yet."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr("controlnet.pictures.temporary._homes", {})
    monkeypatch.setattr("controlnet.pictures.temporary.COGLET", tmp_path / "coglet")
    return tmp_path


def noise(seed: int, size: tuple[int, int] = (64, 48)) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def pixels_of(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def files_below(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and path.name != ".claim"]


@pytest.mark.parametrize("output_format", FORMATS)
def test_maps_come_first_and_files_have_the_right_format(output_format: str) -> None:
    files = write_pictures([noise(0)], [noise(1), noise(2)], output_format, 80)
    assert [file.name for file in files] == [
        f"{name}.{output_format}" for name in ("control_map", "picture_0", "picture_1")
    ]
    assert all(isinstance(file, cog.Path) for file in files)
    for seed, file in enumerate(files):
        with Image.open(file) as image:
            assert image.format == {"webp": "WEBP", "jpg": "JPEG", "png": "PNG"}[output_format]
            assert image.size == (64, 48) and image.mode == "RGB"
        distances = [np.abs(pixels_of(file) - np.asarray(noise(other)).astype(int)).mean() for other in range(3)]
        assert int(np.argmin(distances)) == seed


def test_several_maps_are_numbered() -> None:
    files = write_pictures([noise(0), noise(1)], [noise(2)], "png", 80)
    assert [file.name for file in files] == ["control_map_0.png", "control_map_1.png", "picture_0.png"]


@pytest.mark.parametrize(("output_format", "which"), [("png", 0), ("png", 1), ("webp", 0)])
def test_maps_and_png_pictures_are_lossless(output_format: str, which: int) -> None:
    files = write_pictures([noise(0)], [noise(1)], output_format, 0)
    assert np.array_equal(pixels_of(files[which]), np.asarray(noise(which)))


@pytest.mark.parametrize("output_format", ["webp", "jpg"])
def test_output_quality_is_used_from_0_to_100(output_format: str) -> None:
    sizes = [
        write_pictures([], [noise(0)], output_format, quality)[0].stat().st_size for quality in (0, 10, 30, 60, 90, 100)
    ]
    assert sizes == sorted(set(sizes))


@pytest.mark.parametrize("output_format", FORMATS)
def test_same_pixels_give_the_same_bytes_despite_other_info(output_format: str) -> None:
    laden = noise(0)
    laden.info = {
        "icc_profile": ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(),
        "exif": b"Exif\0\0secret",
        "transparency": (1, 2, 3),
        "comment": b"secret",
        "dpi": (300, 300),
    }
    (plain,) = write_pictures([], [noise(0)], output_format, 80)
    (other,) = write_pictures([], [laden], output_format, 80)
    assert plain.read_bytes() == other.read_bytes()
    assert laden.info["dpi"] == (300, 300)


def test_requests_do_not_share_output_paths() -> None:
    """Some ControlNet containers on Replicate use fixed paths, so one request overwrites the pictures of another."""
    (first,) = write_pictures([], [noise(0)], "png", 80)
    (second,) = write_pictures([], [noise(1)], "png", 80)
    assert first.parent != second.parent
    assert np.array_equal(pixels_of(first), np.asarray(noise(0)))


def test_output_folders_are_private_and_recognisable(temporary: Path) -> None:
    (file,) = write_pictures([], [noise(0)], "png", 80)
    assert temporary in file.parents
    assert [folder.name.startswith("controlnet-") for folder in temporary.iterdir()] == [True]
    assert file.parent.stat().st_mode & 0o77 == 0


def fail_at_second_file(error: BaseException) -> Callable[[Path, bytes], int]:
    real = pathlib.Path.write_bytes
    count = 0

    def write_bytes(self: Path, data: bytes) -> int:
        nonlocal count
        count += 1
        if count < 2:
            return real(self, data)
        real(self, data[: len(data) // 2])
        raise error

    return write_bytes


@pytest.mark.parametrize(("number", "words"), [(errno.ENOSPC, "disk is full"), (errno.EIO, "Input/output error")])
def test_a_write_error_is_one_sentence_and_leaves_no_file(
    temporary: Path, monkeypatch: pytest.MonkeyPatch, number: int, words: str
) -> None:
    error = OSError(number, os.strerror(number), str(temporary / "somewhere"))
    monkeypatch.setattr(pathlib.Path, "write_bytes", fail_at_second_file(error))
    with pytest.raises(OutputError) as caught:
        write_pictures([noise(0)], [noise(1)], "png", 80)
    assert words in str(caught.value) and str(temporary) not in str(caught.value)
    assert files_below(temporary) == []
    monkeypatch.undo()


def test_a_disk_too_full_for_a_folder_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    def mkdtemp(*args: object, **options: object) -> str:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(tempfile, "mkdtemp", mkdtemp)
    with pytest.raises(OutputError, match="disk is full"):
        write_pictures([], [noise(0)], "png", 80)


@pytest.mark.parametrize("cancellation", [cog.CancelationException, KeyboardInterrupt])
def test_a_cancellation_while_writing_leaves_no_file(
    temporary: Path, monkeypatch: pytest.MonkeyPatch, cancellation: type[BaseException]
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(pathlib.Path, "write_bytes", fail_at_second_file(cancellation()))
        with pytest.raises(cancellation):
            write_pictures([noise(0)], [noise(1)], "png", 80)
    assert files_below(temporary) == []


def test_files_of_a_cancelled_cleanup_are_swept(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def cancelled(*args: object, **options: object) -> None:
        raise cog.CancelationException

    with monkeypatch.context() as patch:
        patch.setattr(pathlib.Path, "write_bytes", fail_at_second_file(OSError(errno.ENOSPC, "full")))
        patch.setattr(output.shutil, "rmtree", cancelled)
        with pytest.raises(cog.CancelationException):
            write_pictures([noise(0)], [noise(1)], "png", 80)
    assert len(files_below(temporary)) == 2
    sweep()
    assert files_below(temporary) == []


@pytest.mark.parametrize("output_format", ["png", "jpg", "webp"])
def test_parameters_of_a_picture_are_in_its_file(output_format: str) -> None:
    parameters = {"prompt": "ein schöner Hut \u2603", "seed": 7, "controls": [{"conditioner": "canny", "scale": 0.5}]}
    picture, other = noise(0), noise(0)
    picture.info = {PARAMETERS: parameters, "comment": "a secret"}
    marked, plain = write_pictures([], [picture, other], output_format, 80)
    with Image.open(marked) as opened:
        text = opened.text["parameters"] if output_format == "png" else opened.getexif()[0x010E]
        assert json.loads(text) == parameters
        with Image.open(plain) as bare:
            assert np.array_equal(np.asarray(opened), np.asarray(bare)), "the pixels are the same"
    assert b"secret" not in marked.read_bytes() and b"Hut" not in plain.read_bytes()


@pytest.mark.parametrize("output_format", ["png", "jpg", "webp"])
def test_very_long_prompts_are_cut_off_only_in_a_jpeg(output_format: str) -> None:
    """EXIF data have at most 64 KB in a JPEG."""
    prompts = {"prompt": "a \U0001f3a9 " * 20_000, "negative_prompt": "grey " * 20_000}
    parameters = prompts | {"scheduler": "DDIM", "seed": 7}
    picture = noise(0)
    picture.info = {PARAMETERS: parameters}
    (file,) = write_pictures([], [picture], output_format, 80)
    with Image.open(file) as opened:
        written = json.loads(opened.text["parameters"] if output_format == "png" else opened.getexif()[0x010E])
    if output_format != "jpg":
        assert written == parameters
        return
    assert written.pop("shortened") == ["negative_prompt", "prompt"]
    for name in ("prompt", "negative_prompt"):
        assert len(written[name]) > 1000 and prompts[name].startswith(written.pop(name))
    assert written == {"scheduler": "DDIM", "seed": 7}


def test_a_prompt_that_fits_into_a_jpeg_is_not_cut_off() -> None:
    picture = noise(0)
    picture.info = {PARAMETERS: {"prompt": "x" * 63_000}}
    (file,) = write_pictures([], [picture], "jpg", 80)
    with Image.open(file) as opened:
        assert json.loads(opened.getexif()[0x010E]) == picture.info[PARAMETERS]


def test_webp_is_encoded_with_method_2(tmp_path: Path) -> None:
    """4 takes twice as long, and below 2 files are a fifth larger."""
    picture = Image.effect_noise((64, 64), 90).convert("RGB")
    picture.save(tmp_path / "expected.webp", quality=80, method=2)
    (file,) = write_pictures([], [picture], "webp", 80)
    assert Path(file).read_bytes() == (tmp_path / "expected.webp").read_bytes()
