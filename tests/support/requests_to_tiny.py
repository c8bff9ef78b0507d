"""Requests to the real server with the tiny bundle, shared by the tests over HTTP."""

import base64
import io

import numpy as np
from PIL import Image
from skimage import data

from support import ROOT
from support.server import Answer, Server

FAST = {"prompt": "a red ball on grass under a blue sky", "resolution": 64, "num_inference_steps": 2, "seed": 1}


def data_url(content: bytes, media_type: str = "image/png") -> str:
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"


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
    """The PNG files of one request that must succeed."""
    answer = server.run(**(FAST | {"image": PHOTO, "output_format": "png"} | inputs))
    assert answer.status == "succeeded", answer.error
    return answer.files


# ---- pictures and masks for requests that send several

OTHER = url(CAT.rotate(90, expand=True).resize((96, 96)))
MIRRORED = url(CAT.transpose(Image.Transpose.FLIP_LEFT_RIGHT).resize((226, 150)))
SQUARE = url(CAT.crop((0, 0, 300, 300)).resize((96, 96)))
HALF = url(Image.fromarray(np.repeat(np.uint8([[255, 0]]), 48, axis=1).repeat(64, axis=0)))
"""A mask of the left half, in the size of the picture that FAST makes of PHOTO."""
BASE = {"num_inference_steps": 4}
NIGHT = data_url((ROOT / "examples/night.safetensors").read_bytes(), "application/octet-stream")
"""A LoRA that makes pictures dark."""


def sent(**inputs) -> dict:
    """The inputs without those that are None."""
    return {name: value for name, value in inputs.items() if value is not None}


def answer(server: Server, **inputs) -> Answer:
    """The answer to one request, which may fail. It has 4 steps, unlike those of run() and png()."""
    return server.run(**sent(**(FAST | BASE | {"image": PHOTO, "output_format": "png"} | inputs)))


def made(server: Server, **inputs) -> list[bytes]:
    """The files of an answer() that must succeed."""
    got = answer(server, **inputs)
    assert got.status == "succeeded", got.error
    return got.files


def pixels(file: bytes) -> np.ndarray:
    """Its pixels. Files also hold the inputs they were made with, so they differ with any input."""
    return np.asarray(Image.open(io.BytesIO(file)).convert("RGB")).astype(int)


def differ(some: list[bytes], others: list[bytes]) -> bool:
    """True unless two answers show the same pictures."""
    pairs = zip(map(pixels, some), map(pixels, others), strict=False)
    return len(some) != len(others) or any(not np.array_equal(one, other) for one, other in pairs)
