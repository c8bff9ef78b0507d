"""Temporary files: what is swept at each request, what is left alone, and what the end of the process removes."""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from support import ROOT

from controlnet import temporary
from controlnet.temporary import home, sweep


@pytest.fixture(name="shared", autouse=True)
def shared_fixture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder for temporary files, in which this process has not written anything yet."""
    shared = tmp_path / "shared"
    shared.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(shared))
    monkeypatch.setattr(temporary, "_homes", {})
    return shared


def write() -> Path:
    """A file in a folder of its own, as a request leaves it."""
    file = Path(tempfile.mkdtemp(dir=home())) / "picture.png"
    file.write_bytes(b"a picture")
    return file


def files_below(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and path.name != ".claim"]


def age(path: Path, seconds: float = 3600) -> None:
    then = time.time() - seconds
    os.utime(path, (then, then))


def ended(code: str, shared: Path) -> subprocess.CompletedProcess:
    """A process that runs `code` with `shared` as its folder for temporary files."""
    first = "from controlnet.temporary import home\nimport os, signal\n(home() / 'left').write_bytes(b'x')\n"
    environ = os.environ | {"TMPDIR": str(shared)}
    return subprocess.run([sys.executable, "-c", first + code], cwd=ROOT, env=environ, timeout=60)


def test_sweep_removes_what_earlier_requests_left(shared: Path) -> None:
    write()
    write()
    stranger = shared / "controlnet-of-another-process"
    stranger.mkdir()
    (stranger / "file").write_bytes(b"kept")
    sweep()
    assert files_below(shared) == [stranger / "file"]
    assert write().exists()


def test_sweep_before_the_first_output_does_nothing(shared: Path) -> None:
    sweep()
    assert list(shared.iterdir()) == []


def test_the_output_folder_may_vanish_between_requests() -> None:
    file = write()
    shutil.rmtree(file.parent.parent)
    sweep()
    assert write().exists()


def test_a_forked_process_has_its_own_output_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    file = write()
    monkeypatch.setattr(os, "getpid", lambda: -1)
    other = write()
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
