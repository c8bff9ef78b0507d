"""What is sent as a picture and is none is refused in one sentence that names the input."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from controlnet.python.sent import as_file, lora_as_text
from controlnet.request.inputs import InputError

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
        assert lora_as_text("lora_weights", text) == text, "what it is, Ask.read says"
