"""Output files: their order, their format, the same bytes for the same pixels, and what they say about themselves."""

import json
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from controlnet.pictures import output
from controlnet.pictures.output import PARAMETERS, encode_pictures

FORMATS = tuple(output.OUTPUT_FORMATS)


def noise(seed: int, size: tuple[int, int] = (64, 48)) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def opened(content: bytes) -> Image.Image:
    return Image.open(BytesIO(content))


def pixels_of(content: bytes) -> np.ndarray:
    return np.asarray(opened(content).convert("RGB"))


def written(content: bytes) -> dict:
    """The parameters in a file."""
    image = opened(content)
    return json.loads(image.info["parameters"] if image.format == "PNG" else image.getexif()[0x010E])


@pytest.mark.parametrize("output_format", FORMATS)
def test_maps_come_first_and_files_have_the_right_format(output_format: str) -> None:
    files = encode_pictures([noise(0)], [noise(1), noise(2)], output_format, 80)
    assert [*files] == [f"{name}.{output_format}" for name in ("control_map", "picture_0", "picture_1")]
    for seed, file in enumerate(files.values()):
        image = opened(file)
        assert image.format == {"webp": "WEBP", "jpg": "JPEG", "png": "PNG"}[output_format]
        assert image.size == (64, 48) and image.mode == "RGB"
        distances = [np.abs(pixels_of(file) - np.asarray(noise(other)).astype(int)).mean() for other in range(3)]
        assert int(np.argmin(distances)) == seed


def test_several_maps_are_numbered() -> None:
    files = encode_pictures([noise(0), noise(1)], [noise(2)], "png", 80)
    assert [*files] == ["control_map_0.png", "control_map_1.png", "picture_0.png"]


@pytest.mark.parametrize(("output_format", "which"), [("png", 0), ("png", 1), ("webp", 0)])
def test_maps_and_png_pictures_are_lossless(output_format: str, which: int) -> None:
    files = [*encode_pictures([noise(0)], [noise(1)], output_format, 0).values()]
    assert np.array_equal(pixels_of(files[which]), np.asarray(noise(which)))


@pytest.mark.parametrize("output_format", ["webp", "jpg"])
def test_output_quality_is_used_from_0_to_100(output_format: str) -> None:
    sizes = [
        len(content)
        for quality in (0, 10, 30, 60, 90, 100)
        for content in encode_pictures([], [noise(0)], output_format, quality).values()
    ]
    assert sizes == sorted(set(sizes))


@pytest.mark.parametrize("output_format", FORMATS)
def test_same_pixels_give_the_same_bytes_despite_other_info(output_format: str) -> None:
    laden = noise(0)
    laden.info = {
        "icc_profile": ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(),
        "exif": b"Exif\0\0secret",
        "transparency": (1, 2, 3),
        "comment": b"secret",
        "dpi": (300, 300),
    }
    (plain,) = encode_pictures([], [noise(0)], output_format, 80).values()
    (other,) = encode_pictures([], [laden], output_format, 80).values()
    assert plain == other
    assert laden.info["dpi"] == (300, 300)


@pytest.mark.parametrize("output_format", ["png", "jpg", "webp"])
def test_parameters_of_a_picture_are_in_its_file(output_format: str) -> None:
    parameters = {"prompt": "ein schöner Hut \u2603", "seed": 7, "controls": [{"conditioner": "canny", "scale": 0.5}]}
    picture, other = noise(0), noise(0)
    picture.info = {PARAMETERS: parameters, "comment": "a secret"}
    marked, plain = encode_pictures([], [picture, other], output_format, 80).values()
    assert written(marked) == parameters
    assert np.array_equal(pixels_of(marked), pixels_of(plain)), "the pixels are the same"
    assert b"secret" not in marked and b"Hut" not in plain


@pytest.mark.parametrize("output_format", ["png", "jpg", "webp"])
def test_very_long_prompts_are_cut_off_only_in_a_jpeg(output_format: str) -> None:
    """EXIF data have at most 64 KB in a JPEG."""
    prompts = {"prompt": "a \U0001f3a9 " * 20_000, "negative_prompt": "grey " * 20_000}
    parameters = prompts | {"scheduler": "DDIM", "seed": 7}
    picture = noise(0)
    picture.info = {PARAMETERS: parameters}
    (file,) = encode_pictures([], [picture], output_format, 80).values()
    read = written(file)
    if output_format != "jpg":
        assert read == parameters
        return
    assert read.pop("shortened") == ["negative_prompt", "prompt"]
    for name in ("prompt", "negative_prompt"):
        assert len(read[name]) > 1000 and prompts[name].startswith(read.pop(name))
    assert read == {"scheduler": "DDIM", "seed": 7}


def test_a_prompt_that_fits_into_a_jpeg_is_not_cut_off() -> None:
    picture = noise(0)
    picture.info = {PARAMETERS: {"prompt": "x" * 63_000}}
    (file,) = encode_pictures([], [picture], "jpg", 80).values()
    assert written(file) == picture.info[PARAMETERS]


def test_webp_is_encoded_with_method_2(tmp_path: Path) -> None:
    """4 takes twice as long, and below 2 files are a fifth larger."""
    picture = Image.effect_noise((64, 64), 90).convert("RGB")
    picture.save(tmp_path / "expected.webp", quality=80, method=2)
    (file,) = encode_pictures([], [picture], "webp", 80).values()
    assert file == (tmp_path / "expected.webp").read_bytes()
