"""Requests to the real server with the tiny bundle: what tests of the product over HTTP share."""

import base64
import io
from pathlib import Path

from PIL import Image
from server import Server
from skimage import data

ROOT = Path(__file__).resolve().parents[1]
FAST = {"prompt": "a red ball on grass under a blue sky", "resolution": 64, "num_inference_steps": 2, "seed": 1}


def data_url(content: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def encoded(image: Image.Image, file_format: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def url(image: Image.Image, file_format: str = "PNG", **options) -> str:
    return data_url(encoded(image, file_format, **options), f"image/{file_format.lower()}")


CAT = Image.fromarray(data.chelsea())
"""A real photograph, 451×300."""
PHOTO = url(CAT.resize((226, 150)))


def run(server: Server, **inputs) -> list[Image.Image]:
    """The pictures of one request that must succeed."""
    answer = server.run(**(FAST | {"image": PHOTO} | inputs))
    assert answer.status == "succeeded", answer.error
    return [Image.open(io.BytesIO(file)) for file in answer.files]


def png(server: Server, **inputs) -> list[bytes]:
    answer = server.run(**(FAST | {"image": PHOTO, "output_format": "png"} | inputs))
    assert answer.status == "succeeded", answer.error
    return answer.files
