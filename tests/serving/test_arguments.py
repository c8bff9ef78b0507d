"""The -i options of script/predict: how they are read, and the list of inputs in -h."""

from pathlib import Path
from typing import Any

import pytest
from support import toy_predictor
from support.data_urls import data_url

from controlnet.serving.arguments import ArgumentError, describe_inputs, parse_inputs
from controlnet.serving.schema import openapi_schema
from controlnet.serving.server import ROOT

SCHEMAS = openapi_schema(toy_predictor.SOURCE)["components"]["schemas"]
PREDICT = openapi_schema((ROOT / "predict.py").read_text("utf-8"))["components"]["schemas"]


@pytest.mark.parametrize(
    ("pair", "value"),
    [
        ("prompt=a=b, 1", "a=b, 1"),
        ("prompt=7", "7"),
        ("prompt=", ""),
        ("count=3", 3),
        ("count=three", "three"),
        ("count=4.0", 4),
        ("count=2.5", "2.5"),
        ("count=nan", "nan"),
        ("seconds=nan", "nan"),
        ("seconds=-inf", "-inf"),
        ("seconds=1e999", "1e999"),
        ("seconds=1e-1", 0.1),
        ("loud=True", True),
        ("loud=false", False),
        ("loud=yes", "yes"),
        ("mode=fail", "fail"),
        ("mode=@fail", "@fail"),
        ("prompt=@@home", "@home"),
        ("prompt=@@@", "@@"),
        ("prompt=a@b", "a@b"),
        ("image=https://example.com/a.png", "https://example.com/a.png"),
        ("image=HTTPS://example.com/a.png", "HTTPS://example.com/a.png"),
        ("image=data:image/png;base64,aGVsbG8=", "data:image/png;base64,aGVsbG8="),
    ],
)
def test_input_values_get_their_type_from_the_schema(pair: str, value: Any) -> None:
    name = pair.partition("=")[0]
    got = parse_inputs([pair] if name == "prompt" else ["prompt=x", pair], SCHEMAS)[name]
    assert (got, type(got)) == (value, type(value))


@pytest.mark.parametrize("name", ["a.png", "a.JPG", "a.webp", "a.gif", "a.tiff", "a.bmp", "noending"])
def test_an_input_file_becomes_a_data_url_with_its_mime_type(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    types = {"png": "png", "jpg": "jpeg", "webp": "webp", "gif": "gif", "tiff": "tiff", "bmp": "bmp"}
    image_type = types.get(name.lower().rpartition(".")[2])
    (tmp_path / name).write_bytes(b"\x00\xff")
    monkeypatch.chdir(tmp_path)
    url = parse_inputs(["prompt=x", f"image=@{name}"], SCHEMAS)["image"]
    assert url == data_url(b"\x00\xff", f"image/{image_type}" if image_type else "application/octet-stream")


def test_a_text_input_is_read_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "prompt.txt").write_text("ein Häuschen\n", encoding="utf-8")
    assert parse_inputs([f"prompt=@{tmp_path}/prompt.txt"], SCHEMAS) == {"prompt": "ein Häuschen\n"}
    (tmp_path / "prompt.txt").write_text("ein Häuschen\n", encoding="utf-8-sig")
    assert parse_inputs([f"prompt=@{tmp_path}/prompt.txt"], SCHEMAS) == {"prompt": "ein Häuschen\n"}


def test_a_lora_is_sent_as_a_file(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(b"\xff\x00")
    sent = parse_inputs([f"prompt=@{tmp_path}/a.safetensors"], SCHEMAS)
    assert sent == {"prompt": "data:application/octet-stream;base64,/wA="}


@pytest.mark.parametrize("name", ["a.safetensors", "B.SafeTensors", "poses.json", "prompt.txt"])
def test_a_file_without_its_at_sign_is_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert parse_inputs([f"prompt={name}"], SCHEMAS) == {"prompt": name}, "no such file: it is a text"
    Path(name).touch()
    for text in (name, f"./{name}", f"{tmp_path}/{name}"):
        with pytest.raises(ArgumentError) as refused:
            parse_inputs([f"prompt={text}"], SCHEMAS)
        assert str(refused.value).endswith(f"is a file: @ is missing in -i prompt=@{text}.")
    assert parse_inputs(["prompt=a.txt " + "x" * 5000 + ".txt"], SCHEMAS)["prompt"].startswith("a.txt")


def test_a_text_file_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    (tmp_path / "prompt.txt").write_bytes(b"\xff")
    with pytest.raises(ArgumentError, match=r"'prompt': expected text in UTF-8\.$"):
        parse_inputs([f"prompt=@{tmp_path}/prompt.txt"], SCHEMAS)


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        (["prompt=x", "mod=echo"], "There is no input 'mod'; did you mean mode?"),
        (["prompt=x", "zzz=1"], "There is no input 'zzz'; script/predict -h lists the inputs."),
        (["prompt=x", "prompt=y"], "The input 'prompt' is given twice."),
        (["prompt"], "-i takes name=value, got 'prompt'."),
        (["prompt=caf\udce9"], "The input 'prompt' is not text in UTF-8."),
        (["prompt=@none.txt"], "Cannot read 'none.txt' for the input 'prompt': No such file or directory."),
        (["count=2"], "Missing: -i prompt=..."),
        (["prompt=x", "image=a.png"], "The input 'image' is a file: write -i image=@a.png or give a URL."),
        (["prompt=x", "image=@none.png"], "Cannot read 'none.png' for the input 'image': No such file or directory."),
    ],
)
def test_a_wrong_argument_is_a_one_line_message(pairs: list[str], message: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        parse_inputs(pairs, SCHEMAS)
    assert str(caught.value) == message


def test_no_more_is_read_of_a_file_than_the_server_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("controlnet.serving.arguments.MOST_BYTES", 2**20)
    with pytest.raises(ArgumentError, match=r"^'/dev/zero' for the input 'image' is larger than 1 MB"):
        parse_inputs(["prompt=x", "image=@/dev/zero"], SCHEMAS)


def test_help_lists_every_input_with_values_and_description() -> None:
    assert describe_inputs(SCHEMAS).splitlines() == [
        "  prompt: text or @file, required",
        "      What to say.",
        "  image: @file or URL",
        "      A file.",
        "  mode: echo, fail, bar or type, default echo",
        "      What to do.",
        "  count: integer 1 to 4, default 1",
        "      How many.",
        "  seconds: number 0 to 60, default 0",
        "      How long.",
        "  loud: true or false, default false",
        "      In capitals.",
    ]


@pytest.mark.parametrize("width", [80, 100])
def test_help_keeps_to_the_width_and_loses_no_word(width: int) -> None:
    text = describe_inputs(PREDICT, width)
    assert max(map(len, text.splitlines())) <= width
    words = " ".join(text.split())
    for name, prop in PREDICT["Input"]["properties"].items():
        assert f"{name}: " in words
        assert " ".join(prop["description"].split()) in words
