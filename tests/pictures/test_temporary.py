"""Temporary files: what is swept at each request, what is left alone, and what the end of the process removes."""

import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support import ROOT

from controlnet.pictures import temporary
from controlnet.pictures.output import write_pictures
from controlnet.pictures.temporary import home, sweep


@pytest.fixture(name="shared", autouse=True)
def shared_fixture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder for temporary files, in which this process has not written anything yet."""
    shared = tmp_path / "shared"
    shared.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(shared))
    monkeypatch.setattr(temporary, "_homes", {})
    monkeypatch.setattr(temporary, "COGLET", tmp_path / "coglet")
    return shared


def noise(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (48, 64, 3), dtype=np.uint8))


def files_below(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and path.name != ".claim"]


def age(path: Path, seconds: float = 3600) -> None:
    then = time.time() - seconds
    os.utime(path, (then, then))


def ended(code: str, shared: Path) -> subprocess.CompletedProcess:
    """A process that runs `code` with `shared` as its folder for temporary files."""
    first = "from controlnet.pictures.temporary import home\nimport os, signal\n(home() / 'left').write_bytes(b'x')\n"
    environ = os.environ | {"TMPDIR": str(shared)}
    return subprocess.run([sys.executable, "-c", first + code], cwd=ROOT, env=environ, timeout=60)


def test_sweep_removes_what_earlier_requests_left(shared: Path) -> None:
    write_pictures([noise(0)], [noise(1)], "png", 80)
    write_pictures([], [noise(1)], "webp", 80)
    stranger = shared / "controlnet-of-another-process"
    stranger.mkdir()
    (stranger / "file").write_bytes(b"kept")
    sweep()
    assert files_below(shared) == [stranger / "file"]
    (file,) = write_pictures([], [noise(2)], "png", 80)
    assert file.exists()


def test_sweep_before_the_first_output_does_nothing(shared: Path) -> None:
    sweep()
    assert list(shared.iterdir()) == []


def test_the_output_folder_may_vanish_between_requests() -> None:
    (file,) = write_pictures([], [noise(0)], "png", 80)
    shutil.rmtree(file.parent.parent)
    sweep()
    (again,) = write_pictures([], [noise(0)], "png", 80)
    assert again.exists()


def test_a_forked_process_has_its_own_output_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    (file,) = write_pictures([], [noise(0)], "png", 80)
    monkeypatch.setattr(os, "getpid", lambda: -1)
    (other,) = write_pictures([], [noise(0)], "png", 80)
    sweep()
    assert file.exists() and not other.exists()


def test_sweep_removes_cut_downloads_and_keeps_the_requests_inputs() -> None:
    cut, sent = home() / "tmpcut.png", home() / "tmpsent.png"
    cut.write_bytes(b"half a pic")
    sent.write_bytes(b"a picture")
    sweep(keep=[sent])
    assert sent.exists() and not cut.exists()


def test_sweep_removes_folders_of_killed_processes_only(shared: Path) -> None:
    ended("os.kill(os.getpid(), signal.SIGKILL)", shared)
    (killed,) = shared.iterdir()
    sweep()
    assert (killed / "left").exists(), "it may have just started"
    age(killed)
    own = home()
    age(own)
    sweep()
    assert not killed.exists() and own.exists()


def test_sweep_leaves_folders_of_living_processes(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = home()
    (other / "file").write_bytes(b"kept")
    age(other)
    monkeypatch.setattr(temporary, "_homes", {})  # as if it were another process's
    sweep()
    assert (other / "file").exists()


def test_the_end_of_the_process_removes_its_folder(shared: Path) -> None:
    assert ended("", shared).returncode == 0
    assert list(shared.iterdir()) == []


def coglets(name: str, file: bool = False) -> Path:
    """A folder as Cog's server leaves it, an hour ago."""
    folder = temporary.COGLET / name
    for inner in ("inputs", "outputs"):
        (folder / inner).mkdir(parents=True)
    if file:
        (folder / "outputs" / "picture.png").write_bytes(b"x")
    age(folder)
    return folder


def test_sweep_removes_empty_folders_of_cogs_server() -> None:
    empty, young, full = coglets("empty"), coglets("young"), coglets("full", file=True)
    age(young, 60)
    (temporary.COGLET / "file").write_bytes(b"x")
    (temporary.COGLET / "link").symlink_to(full)
    sweep()
    assert not empty.exists() and young.exists() and (full / "outputs" / "picture.png").exists()
    assert (temporary.COGLET / "file").exists() and (temporary.COGLET / "link").exists()


def test_one_sweep_removes_at_most_500_folders() -> None:
    for number in range(1500):
        coglets(str(number))
    sweep()
    assert len(list(temporary.COGLET.iterdir())) == 1000


def test_use_home_does_nothing_outside_the_server(shared: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    temporary.use_home()
    assert tempfile.tempdir == str(shared) and resource.getrlimit(resource.RLIMIT_FSIZE) == before


def test_use_home_bounds_downloads_and_puts_them_into_the_home(shared: Path) -> None:
    code = (
        "from controlnet.pictures import temporary\nimport tempfile\n"
        "temporary.server = type('server', (), {'active': True})\ntemporary.MOST_DOWNLOADED = 1000\n"
        "temporary.use_home()\nfile = tempfile.NamedTemporaryFile(delete=False)\n"
        "assert os.path.dirname(file.name) == str(home()) and temporary._shared() == home().parent\n"
        "try:\n    file.write(bytes(2000)); file.flush()\nexcept OSError as error:\n    os._exit(error.errno)\n"
    )
    assert ended(code, shared).returncode == 27  # EFBIG
