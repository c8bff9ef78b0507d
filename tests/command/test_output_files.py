"""The names of written files."""

from pathlib import Path

from controlnet.command.output_files import write_files


def names(files: list[tuple[bytes, str]], folder: Path) -> list[str]:
    return [path.name for path in write_files(files, folder)]


def test_output_files_are_numbered_and_never_overwritten(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "folder"
    png, webp = (b"1", ".png"), (b"2", ".webp")
    assert names([png], folder) == ["0001.png"]
    assert names([png, webp], folder) == ["0002-1.png", "0002-2.webp"]
    (folder / "0041.txt").write_text("mine")
    (folder / "notes.txt").write_text("mine")
    assert names([(b"3", ".jpg")], folder) == ["0042.jpg"]
    assert (folder / "0001.png").read_bytes() == b"1"
    assert (folder / "0002-2.webp").read_bytes() == b"2"


def test_poses_have_the_number_of_their_pictures(tmp_path: Path) -> None:
    png, poses = (b"1", ".png"), (b"{}", ".json")
    assert names([png, poses], tmp_path) == ["0001.png", "0001-poses.json"]
    assert names([png, poses, png], tmp_path) == ["0002-1.png", "0002-poses.json", "0002-2.png"]
    assert names([poses], tmp_path) == ["0003-poses.json"]
    assert names([png], tmp_path) == ["0004.png"]
