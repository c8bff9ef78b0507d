"""The files of a request: the same names and bytes as encoded, no file left behind, what is swept."""

import errno
import os
import pathlib
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cog
import numpy as np
import pytest
from PIL import Image

from controlnet.pictures.output import encode_pictures
from controlnet.serving import files
from controlnet.serving.files import OutputError, sweep, write_pictures


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder for temporary files, in which this process has not written anything yet."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr("controlnet.temporary._homes", {})
    monkeypatch.setattr("controlnet.serving.files.COGLET", tmp_path / "coglet")
    return tmp_path


def noise(seed: int, size: tuple[int, int] = (64, 48)) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def files_below(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and path.name != ".claim"]


def test_the_files_are_written_as_encoded() -> None:
    maps, pictures = [noise(0)], [noise(1), noise(2)]
    written = write_pictures(maps, pictures, "png", 80, "{}")
    assert all(isinstance(file, cog.Path) for file in written)
    encoded = encode_pictures(maps, pictures, "png", 80, "{}")
    assert [(file.name, file.read_bytes()) for file in written] == list(encoded.items())


def test_requests_do_not_share_output_paths() -> None:
    """Some ControlNet containers on Replicate use fixed paths, so one request overwrites the pictures of another."""
    (first,) = write_pictures([], [noise(0)], "png", 80)
    (second,) = write_pictures([], [noise(1)], "png", 80)
    assert first.parent != second.parent
    assert first.read_bytes() == encode_pictures([], [noise(0)], "png", 80)["picture_0.png"]


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
        patch.setattr(files.shutil, "rmtree", cancelled)
        with pytest.raises(cog.CancelationException):
            write_pictures([noise(0)], [noise(1)], "png", 80)
    assert len(files_below(temporary)) == 2
    sweep()
    assert files_below(temporary) == []


def age(path: Path, seconds: float = 3600) -> None:
    then = time.time() - seconds
    os.utime(path, (then, then))


def coglets(name: str, file: bool = False) -> Path:
    """A folder as Cog's server leaves it, an hour ago."""
    folder = files.COGLET / name
    for inner in ("inputs", "outputs"):
        (folder / inner).mkdir(parents=True)
    if file:
        (folder / "outputs" / "picture.png").write_bytes(b"x")
    age(folder)
    return folder


def test_sweep_removes_empty_folders_of_cogs_server() -> None:
    empty, young, full = coglets("empty"), coglets("young"), coglets("full", file=True)
    age(young, 60)
    (files.COGLET / "file").write_bytes(b"x")
    (files.COGLET / "link").symlink_to(full)
    sweep()
    assert not empty.exists() and young.exists() and (full / "outputs" / "picture.png").exists()
    assert (files.COGLET / "file").exists() and (files.COGLET / "link").exists()


def test_one_sweep_removes_at_most_500_folders() -> None:
    for number in range(1500):
        coglets(str(number))
    sweep()
    assert len(list(files.COGLET.iterdir())) == 1000
