"""Files are found by path or URI, and what is written is complete or not there."""

from pathlib import Path

import pytest

from controlnet.batch import folder
from controlnet.batch.folder import Folder, FolderError, join, parent


@pytest.mark.parametrize(
    ("base", "place", "expected"),
    [
        ("/data/jobs", "a.png", "/data/jobs/a.png"),
        ("/data/jobs", "/b/a.png", "/b/a.png"),
        ("/data/jobs", "s3://bucket/a.png", "s3://bucket/a.png"),
        ("s3://bucket/in?region=eu", "a.png", "s3://bucket/in/a.png?region=eu"),
    ],
)
def test_a_place_is_relative_to_its_folder(base: str, place: str, expected: str) -> None:
    assert join(base, place) == expected


@pytest.mark.parametrize(
    ("place", "expected"),
    [("/a/b.jsonl", "/a"), ("b.jsonl", "."), ("/b.jsonl", "/"), ("s3://x/y/b.csv?region=eu", "s3://x/y?region=eu")],
)
def test_the_folder_of_a_file(place: str, expected: str) -> None:
    assert parent(place) == expected


@pytest.mark.parametrize("as_uri", [False, True])
def test_a_file_is_there_once_it_is_complete(tmp_path: Path, monkeypatch, as_uri: bool) -> None:
    """By a path, and by the URI of a filesystem that pyarrow opens."""
    out = Folder(tmp_path.as_uri() if as_uri else str(tmp_path))
    assert not out.has("done/a.json") and out.read("done/a.json") is None and out.names("done") == set()
    out.write("done/a.json", b"first")
    out.write("done/a.json", b"second")
    assert out.has("done/a.json") and out.read("done/a.json") == b"second"
    assert out.names("done") == {"a.json"}

    class Killed(BaseException):
        pass

    class UntilMove:
        def __init__(self, filesystem) -> None:
            self.filesystem = filesystem

        def __getattr__(self, name: str):
            if name == "move":
                raise Killed
            return getattr(self.filesystem, name)

    filesystem, path = folder.open_filesystem(out.place)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(folder, "open_filesystem", lambda place: (UntilMove(filesystem), path))
        out.write("done/b.json", b"third")
    assert not out.has("done/b.json")
    assert len(out.names("done")) == 2
    out.remove_partial("done")
    assert out.names("done") == {"a.json"}


def test_what_cannot_be_reached_is_said_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(FolderError, match=r"^'ftp://host/x' is not a place that can be used: Unrecognized filesystem"):
        folder.read("ftp://host/x")
    with pytest.raises(FolderError, match=r"none.jsonl' cannot be read: no such file or directory\.$"):
        folder.read(str(tmp_path / "none.jsonl"))
    (tmp_path / "file").write_text("")
    with pytest.raises(FolderError, match="cannot be written"):
        Folder(str(tmp_path / "file")).write("a.json", b"")


def test_two_batches_do_not_share_a_folder(tmp_path: Path) -> None:
    out = Folder(str(tmp_path / "new"))
    with out.claimed(), pytest.raises(FolderError, match="Another batch is writing into"), out.claimed():
        pass
    with out.claimed():
        pass
