"""What people send, over HTTP: bad input gets one clear error and leaves no trace; unusual pictures work."""

import io
import json
import re
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.requests_to_tiny import CAT, FAST, PHOTO, data_url, encoded, png, run, url
from support.server import Server

# ---- bad input


def _png_header(width: int, height: int) -> bytes:
    """A PNG that claims to be of that size and has almost no data."""
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)), (b"IDAT", zlib.compress(b"\0" * 64))]
    body = b"".join(struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks)
    return b"\x89PNG\r\n\x1a\n" + body


WRONG = [
    ({"conditioner": "edges"}, "canny"),
    ({"conditioner": "shuffle"}, "has no shuffle conditioner. It has canny, hed"),
    ({"scheduler": "euler"}, "DDIM"),
    ({"output_format": "gif"}, "webp"),
    *[
        ({name: value}, name)
        for name, values in {
            "conditioning_scale": (-0.1, 2.1),
            "control_start": (-0.1, 1.1),
            "control_end": (-0.1, 1.1),
            "num_outputs": (0, 5, 1.5),
            "resolution": (63, 2049),
            "num_inference_steps": (0, 101),
            "guidance_scale": (-1, 31),
            "seed": (-1, 2**32),
            "output_quality": (-1, 101),
        }.items()
        for value in values
    ],
    ({"control_start": 0.6, "control_end": 0.6}, "control_start must be below control_end"),
    ({"control_start": 1, "control_end": 0}, "control_start must be below control_end"),
    ({"control_end": 0.1}, "covers none of the 2 steps"),
    ({"prompt": "red " * 2000}, "shorten it"),
    ({"image": data_url(b"hello")}, "not a picture"),
    ({"image": data_url(encoded(CAT)[:5000])}, "damaged or incomplete"),
    ({"image": data_url(b"")}, "empty"),
    ({"image": url(Image.new("RGB", (1, 1)))}, "too small"),
    ({"image": data_url(_png_header(20000, 20000))}, "too large"),
    ({"image": url(Image.new("RGB", (500, 100)))}, "too long and narrow"),
    ({"resolution": 1024, "num_outputs": 4}, "lower resolution to"),
    ({"prompt": None}, "prompt"),
    ({"image": data_url(b"II+\0\x08\0\0\0" + b"\xff" * 8)}, "begins like a TIFF but cannot be read"),
    ({"image": data_url(encoded(CAT)[:20] + b"?" + encoded(CAT)[21:])}, "checksum of the chunk IHDR"),
]


@pytest.fixture(scope="module")
def before(server: Server) -> list[bytes]:
    return png(server)


@pytest.mark.parametrize(
    ("inputs", "words"), WRONG, ids=lambda value: None if isinstance(value, str) else str(value)[:40]
)
def test_bad_input_gets_one_clear_error_and_leaves_no_trace(
    server: Server, before: list[bytes], inputs: dict, words: str
) -> None:
    answer = server.run(**(FAST | {"image": PHOTO} | inputs))
    assert answer.status == "failed" or answer.http_status == 422
    assert words in answer.error
    body = json.dumps(answer.body | {"input": None})
    assert "Traceback" not in body and not re.search(r"/(tmp|root|home|usr|var|work)\b|\.py\b", body), body
    assert png(server) == before


def test_a_local_file_is_never_read(server: Server, tmp_path: Path) -> None:
    """A bare path or file:// URL in place of an upload reaches predict() unchanged. Opening it would show any file."""
    file = tmp_path / "cat.png"
    file.write_bytes(encoded(CAT))
    for place in (str(file), file.as_uri(), "predict.py"):
        answer = server.run(**(FAST | {"image": place, "map_only": True}))
        assert answer.status == "failed", place
        assert "expected an uploaded file" in answer.error and place not in answer.error


def test_a_missing_image_or_prompt_is_named(server: Server) -> None:
    assert "image: Field required" in server.run(prompt="x").error
    assert "prompt: Field required" in server.run(image=PHOTO).error


# ---- unusual input that works


def test_every_picture_format_gives_the_same_control_map(server: Server) -> None:
    """The same photograph in every format gives the same control map, bit for bit if the format is lossless."""
    small = CAT.resize((96, 64))
    grey = small.convert("L")
    (plain,) = png(server, image=url(small), map_only=True)
    (plain_grey,) = png(server, image=url(grey), map_only=True)
    deep = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    transparent = small.convert("RGBA")
    transparent.putalpha(255)
    palette = small.quantize(256)
    same = {
        "WebP": (url(small, "WEBP", lossless=True), plain),
        "animated GIF": (url(palette, "GIF", save_all=True, append_images=[palette.rotate(90)]), None),
        "palette PNG": (url(palette), None),
        "RGBA": (url(transparent), plain),
        "16-bit PNG": (url(deep), plain_grey),
        "greyscale": (url(grey), plain_grey),
        "1-bit": (url(grey.convert("1")), None),
        "CMYK JPEG": (url(small.convert("CMYK"), "JPEG", quality=100), None),
    }
    for file_format, (sent, expected) in same.items():
        (got,) = png(server, image=sent, map_only=True)
        assert Image.open(io.BytesIO(got)).size == (96, 64), file_format
        assert expected is None or got == expected, file_format


def test_a_rotated_photo_is_turned_upright(server: Server) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    sideways = CAT.resize((96, 64)).transpose(Image.Transpose.ROTATE_90)
    (picture,) = run(server, image=url(sideways, "JPEG", exif=exif))
    assert picture.size == (96, 64)


def test_a_dark_doodle_on_white_paper_becomes_white_strokes(server: Server) -> None:
    doodle = Image.new("RGB", (128, 128), "white")
    doodle.paste("black", (40, 30, 44, 100))
    for preprocess in (True, False):
        inputs = {"conditioner": "scribble", "image": url(doodle), "resolution": 128, "preprocess": preprocess}
        (drawn,) = png(server, map_only=True, **inputs)
        strokes = np.asarray(Image.open(io.BytesIO(drawn)).convert("L")) > 127
        assert np.array_equal(strokes, np.asarray(doodle.convert("L")) < 127)


def test_what_is_transparent_is_nothing(server: Server) -> None:
    """White strokes on nothing become the strokes that they are on black, and a mask's nothing is kept."""
    doodle, mask = Image.new("RGBA", (128, 128)), Image.new("RGBA", (226, 150))
    doodle.paste((255, 255, 255, 255), (40, 30, 44, 100))
    for preprocess in (True, False):
        inputs = {"conditioner": "scribble", "image": url(doodle), "resolution": 128, "preprocess": preprocess}
        (drawn,) = png(server, map_only=True, **inputs)
        strokes = np.asarray(Image.open(io.BytesIO(drawn)).convert("L")) > 127
        assert np.array_equal(strokes, np.asarray(doodle)[..., 3] > 127)
    mask.paste((255, 255, 255, 255), (0, 0, 113, 150))
    solid = mask.getchannel("A")
    assert png(server, mask=url(mask)) == png(server, mask=url(solid))


def test_a_picture_of_16_bits_that_is_nearly_black_is_named_in_the_log(server: Server) -> None:
    deep = Image.fromarray(np.asarray(CAT.resize((96, 64)).convert("L")).astype(np.uint16) * 15)
    sent = {"conditioner": "depth", "preprocess": False, "image": PHOTO, "init_image": url(deep), "prompt_strength": 1}
    answer = server.run(**(FAST | sent))
    assert answer.status == "succeeded", answer.error
    assert "init_image: its 16-bit values lie between" in answer.logs
    assert "16-bit" not in server.run(**(FAST | {"image": PHOTO})).logs


def test_a_prompt_is_used_to_its_last_word(server: Server) -> None:
    long = "a red ball and a green box and a yellow cone and a blue house and a white tree, " * 6
    assert png(server, prompt=long + "on sand") != png(server, prompt=long + "on snow")


def test_resolution_sets_the_size_of_the_picture(server: Server) -> None:
    assert run(server, resolution=100)[0].size == (160, 104)
    assert run(server, resolution=64, image=url(CAT.crop((0, 0, 300, 75))))[0].size == (256, 64)
