"""Files come into place together or not at all, whatever interrupts or fails."""

import os
import signal
import time
from pathlib import Path

import pytest
from staging import staging

NAMES = ["bundle", "bundle.lock", "bundle.toml"]


def fill(folder: Path, text: str) -> None:
    (folder / "bundle").mkdir()
    for name in ("bundle/file", *NAMES[1:]):
        (folder / name).write_text(text)


def state(root: Path) -> dict[str, str]:
    return {str(path.relative_to(root)): path.read_text() for path in root.rglob("*") if path.is_file()}


@pytest.mark.parametrize("there", [False, True])
def test_all_are_put_in_place(tmp_path: Path, there: bool) -> None:
    if there:
        fill(tmp_path, "old")
    with staging(tmp_path, ".new-") as made:
        fill(made.folder, "new")
        made.put_in_place(NAMES)
    assert state(tmp_path) == dict.fromkeys(["bundle/file", *NAMES[1:]], "new")
    assert sorted(os.listdir(tmp_path)) == NAMES


@pytest.mark.parametrize("there", [False, True])
@pytest.mark.parametrize("fails_at", range(6))
def test_if_one_cannot_be_moved_all_is_as_it_was(tmp_path: Path, monkeypatch, there: bool, fails_at: int) -> None:
    if there:
        fill(tmp_path, "old")
    before, rename, moves = state(tmp_path), Path.rename, []

    def fails(path: Path, target: Path) -> Path:
        moves.append(path)
        if len(moves) == fails_at + 1:
            raise OSError("no space")
        return rename(path, target)

    if fails_at >= 3 and not there:
        return
    with pytest.raises(OSError, match="no space"), staging(tmp_path, ".new-") as made:
        fill(made.folder, "new")
        monkeypatch.setattr(Path, "rename", fails)
        made.put_in_place(NAMES)
    assert state(tmp_path) == before and sorted(os.listdir(tmp_path)) == (NAMES if there else [])


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_block_and_what_was_written(tmp_path: Path, signum: signal.Signals) -> None:
    before = signal.getsignal(signum)
    with pytest.raises(KeyboardInterrupt), staging(tmp_path, ".new-") as made:
        fill(made.folder, "new")
        os.kill(os.getpid(), signum)
        pytest.fail("the block went on")
    assert list(tmp_path.iterdir()) == [] and signal.getsignal(signum) is before


def test_a_signal_comes_too_late_once_files_are_moved(tmp_path: Path, monkeypatch) -> None:
    rename = Path.rename

    def interrupted(path: Path, target: Path) -> Path:
        os.kill(os.getpid(), signal.SIGINT)
        return rename(path, target)

    with staging(tmp_path, ".new-") as made:
        fill(made.folder, "new")
        monkeypatch.setattr(Path, "rename", interrupted)
        made.put_in_place(NAMES)
    assert sorted(os.listdir(tmp_path)) == NAMES


def test_a_second_signal_does_not_stop_the_clearing_away(tmp_path: Path, monkeypatch) -> None:
    import shutil

    rmtree = shutil.rmtree

    def interrupted(*arguments, **options) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        rmtree(*arguments, **options)

    monkeypatch.setattr(shutil, "rmtree", interrupted)
    with pytest.raises(KeyboardInterrupt), staging(tmp_path, ".new-") as made:
        fill(made.folder, "new")
        os.kill(os.getpid(), signal.SIGINT)
    assert list(tmp_path.iterdir()) == []


def test_a_signal_that_the_process_does_not_hear_stays_unheard(tmp_path: Path) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with staging(tmp_path, ".new-"):
            os.kill(os.getpid(), signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_what_a_killed_process_left_is_removed_and_what_a_living_one_writes_is_not(tmp_path: Path) -> None:
    left = tmp_path / ".new-left"
    left.mkdir()
    (left / "file").write_text("half")
    with staging(tmp_path, ".new-") as living:
        assert left.exists(), "it is young"
        for folder in (left, living.folder):
            os.utime(folder, (time.time() - 3600,) * 2)
        with staging(tmp_path, ".new-"):
            assert not left.exists() and living.folder.exists()
