"""Files in answers: names of the written ones, and outputs that a server has uploaded."""

import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from support.data_urls import data_url

from controlnet.serving.api import ServerError
from controlnet.serving.output_files import write_outputs


def test_output_files_are_numbered_and_never_overwritten(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "folder"
    png, webp = data_url(b"1", "image/png"), data_url(b"2", "image/webp")
    assert [path.name for path in write_outputs([png], folder)] == ["0001.png"]
    assert [path.name for path in write_outputs([png, webp], folder)] == ["0002-1.png", "0002-2.webp"]
    (folder / "0041.txt").write_text("mine")
    (folder / "notes.txt").write_text("mine")
    assert [path.name for path in write_outputs([data_url(b"3", "image/jpeg")], folder)] == ["0042.jpg"]
    assert (folder / "0001.png").read_bytes() == b"1"
    assert (folder / "0002-2.webp").read_bytes() == b"2"


def test_poses_are_written_as_poses_json(tmp_path: Path) -> None:
    """Only the pictures are counted, and a second request keeps the first one's poses."""
    png, poses = data_url(b"1", "image/png"), data_url(b"{}", "application/json")
    names = [[path.name for path in write_outputs(urls, tmp_path)] for urls in ([png, poses], [png, poses, png])]
    assert names == [["0001.png", "poses.json"], ["0002-1.png", "poses-0002.json", "0002-2.png"]]
    (tmp_path / "poses-0041.json").write_text("mine")
    assert [path.name for path in write_outputs([png, poses], tmp_path)] == ["0042.png", "poses-0042.json"]
    assert (tmp_path / "poses-0041.json").read_text() == "mine"


@pytest.fixture
def uploads(tmp_path: Path) -> Iterator[str]:
    """The URL of a server of the files in tmp_path/uploads."""
    (tmp_path / "uploads").mkdir()
    handler = partial(SimpleHTTPRequestHandler, directory=tmp_path / "uploads")
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_uploaded_outputs_are_fetched(uploads: str, tmp_path: Path) -> None:
    (tmp_path / "uploads/out.0.webp").write_bytes(b"a picture")
    (path,) = write_outputs([f"{uploads}/out.0.webp?signature=a.b"], tmp_path / "out")
    assert (path.name, path.read_bytes()) == ("0001.webp", b"a picture")


def test_an_upload_that_is_gone_is_an_error_and_nothing_is_written(uploads: str, tmp_path: Path) -> None:
    with pytest.raises(ServerError, match=r"^Cannot fetch http://127.0.0.1:\d+/none.webp: HTTP Error 404"):
        write_outputs([data_url(b"1", "image/png"), f"{uploads}/none.webp"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_server_cannot_make_the_client_copy_local_files(tmp_path: Path) -> None:
    (tmp_path / "secret.txt").write_text("mine")
    with pytest.raises(ServerError, match="neither a file nor an http"):
        write_outputs([f"file://{tmp_path}/secret.txt"], tmp_path / "out")
