"""Files are found by path or URI, and what is written is complete or not there."""

import os
from io import BytesIO
from pathlib import Path

import pytest
from pyarrow.fs import FileInfo, FileType

from controlnet.batch import folder
from controlnet.batch.folder import Folder, FolderError, NotReached, join, parent
from controlnet.transient import Transient


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


class Elsewhere:
    """A filesystem whose files' sizes are not known, as of a server that streams them."""

    def __init__(self, size: int | None, content: bytes) -> None:
        self.size, self.content = size, content

    def get_file_info(self, path: str) -> FileInfo:
        return FileInfo(path, FileType.File, size=self.size)

    def open_input_stream(self, path: str, compression: str | None) -> BytesIO:
        assert compression is None, "a small file may be unpacked to an endless one"
        return BytesIO(self.content)


@pytest.mark.parametrize(
    ("size", "content", "words"),
    [
        (3, b"abc", None),
        (None, b"abc", None),
        (None, b"abcdefghi", "is larger than"),
        (9, b"", "is larger than"),
    ],
)
def test_no_more_is_read_than_may_be(monkeypatch, size: int | None, content: bytes, words: str | None) -> None:
    monkeypatch.setattr(folder, "open_filesystem", lambda place: (Elsewhere(size, content), "key"))
    if words is None:
        assert folder.read_file("s3://bucket/key", 8) == content
    else:
        with pytest.raises(FolderError, match=words) as caught:
            folder.read_file("s3://bucket/key", 8)
        assert not isinstance(caught.value, Transient)


def test_only_files_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for place, words in (("/dev/zero", "is no file"), (tmp_path / "pipe", "is no file"), (tmp_path, "is a folder")):
        with pytest.raises(FolderError, match=words) as caught:
            folder.read_file(Path(place).as_uri(), 8)
        assert not isinstance(caught.value, Transient)
    with pytest.raises(NotReached, match="is not there"):
        folder.read_file((tmp_path / "none").as_uri(), 8)


def test_two_batches_do_not_share_a_folder(tmp_path: Path) -> None:
    out = Folder(str(tmp_path / "new"))
    with out.claimed(), pytest.raises(FolderError, match="Another batch is writing into"), out.claimed():
        pass
    with out.claimed():
        pass
