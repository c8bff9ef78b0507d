"""What is sent as a picture and is none is refused in one sentence that names the input."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from controlnet.api.sent import as_file, lora_as_text
from controlnet.request.inputs import InputError
from controlnet.transient import Transient

EXPECTED = "mask: expected a PIL picture, a NumPy array, the content of a file, a path, or an http(s) or data URL; "
BASE64 = "iVBORw0KGgoAAAANSUhEUgAAADAAAAAg" * 10


class Bytes(os.PathLike):
    """A path object of another library."""

    def __fspath__(self) -> bytes:
        return b"no/such.png"


BAD = [
    (3, EXPECTED + "got a int."),
    (None, EXPECTED + "got nothing."),
    ("no/such.png", EXPECTED + "'no/such.png' is not there."),
    (Path("/"), EXPECTED + "'/' is a folder."),
    (Path("/dev/zero"), EXPECTED + "'/dev/zero' is no file."),
    (np.zeros((4, 5)), "mask: expected an array of uint8 or bool and of shape .*; got float64 of shape 4×5"),
    (np.zeros((4, 5, 2), np.uint8), "got uint8 of shape 4×5×2"),
    (np.zeros((0, 5), np.uint8), "got uint8 of shape 0×5"),
    ("data:zzz", "mask: the data URL could not be decoded"),
    ("http://127.0.0.1:1/a.png", "mask: the URL could not be fetched"),
    ("~nobody-has-this-name/a.png", EXPECTED + "'~nobody-has-this-name/a.png' is not there."),
    (Bytes(), EXPECTED + "'no/such.png' is not there."),
    (BASE64, EXPECTED + f"'{BASE64[:40]}'… is no path .*too long.* .if it is base64, put data:;base64, before it.\\.$"),
    ("/9j/" + BASE64 * 1000, EXPECTED + "'/9j/iVBOR.* is no path .*too long.* .if it is base64"),
    *[
        (f"{start}\ud83d.png", EXPECTED + "got text with half a character in it")
        for start in ("a", "http://a/", "data:,")
    ],
]


@pytest.mark.parametrize(("picture", "words"), BAD, ids=[words[-20:] for _, words in BAD])
def test_what_is_no_picture_is_refused(picture: object, words: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=words.replace("(s)", r"\(s\)")):
        as_file("mask", picture, tmp_path)


def test_a_file_that_pillow_cannot_read_is_refused(tmp_path: Path) -> None:
    whole = tmp_path / "whole.png"
    Image.effect_noise((64, 64), 50).save(whole)
    half = tmp_path / "half.png"
    half.write_bytes(whole.read_bytes()[:200])
    with pytest.raises(InputError, match=r"mask: the PIL picture \(mode L\) could not be read"):
        as_file("mask", Image.open(half), tmp_path)


def test_no_more_is_taken_than_the_server_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (tmp_path / "large.png").open("wb") as file:
        file.truncate(512 * 2**20 + 1)
    with pytest.raises(InputError, match=r"mask: expected a file of at most 512 MB; .*large.png' is larger"):
        as_file("mask", tmp_path / "large.png", tmp_path)
    monkeypatch.setattr("controlnet.api.sent.MOST_BYTES", 10 * 2**20)
    with endless() as url, pytest.raises(InputError, match="of at most 10 MB; the URL has a larger one") as caught:
        as_file("mask", url, tmp_path)
    assert not isinstance(caught.value, Transient)


@contextmanager
def endless() -> Iterator[str]:
    """The URL of a picture that does not end."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            with suppress(OSError):  # until nobody reads any more
                while True:
                    self.wfile.write(bytes(2**20))

        def log_message(self, *arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/a.png"
        finally:
            server.shutdown()


@pytest.mark.parametrize("shape", [(20, 30), (20, 30, 3), (20, 30, 4)])
def test_an_array_keeps_its_pixels(shape: tuple[int, ...], tmp_path: Path) -> None:
    array = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    assert np.array_equal(np.asarray(Image.open(as_file("mask", array, tmp_path))), array)
    flipped = array[:, ::-1]
    assert np.array_equal(np.asarray(Image.open(as_file("mask", flipped, tmp_path))), flipped)


def test_true_is_white(tmp_path: Path) -> None:
    array = np.eye(20, dtype=bool)
    assert np.array_equal(np.asarray(Image.open(as_file("mask", array, tmp_path))), array * np.uint8(255))


def test_a_lora_is_a_text_or_a_path_object(tmp_path: Path) -> None:
    assert lora_as_text("lora_weights", "owner/model") == "owner/model"
    (tmp_path / "a.safetensors").write_bytes(b"abc")
    assert lora_as_text("lora_weights", tmp_path / "a.safetensors") == "data:;base64,YWJj"
    with pytest.raises(InputError, match=r"lora_weights: .*is not there"):
        lora_as_text("lora_weights", tmp_path / "b.safetensors")
    with (tmp_path / "a.safetensors").open("wb") as file:
        file.truncate(501 * 2**20)
    with pytest.raises(InputError, match=r"lora_weights: expected a file of at most 500 MB"):
        lora_as_text("lora_weights", tmp_path / "a.safetensors")


def test_a_path_of_a_lora_as_a_text_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert lora_as_text("lora_weights", "examples/a.safetensors") == "examples/a.safetensors"
    (tmp_path / "examples").mkdir()
    (tmp_path / "examples/a.safetensors").write_bytes(b"abc")
    with pytest.raises(InputError) as refused:
        lora_as_text("lora_weights_2", "examples/a.safetensors")
    assert str(refused.value).startswith("lora_weights_2: a text is an address, and 'examples/a.safetensors' is a file")
    assert "pass pathlib.Path('examples/a.safetensors')" in str(refused.value)
    assert lora_as_text("lora_weights", "https://example.com/examples/a.safetensors").startswith("https")
    for text in ("\0.safetensors", "\ud800.safetensors", "a" * 5000 + ".safetensors", 5, None):
        assert lora_as_text("lora_weights", text) == text, "what it is, read_request says"
