"""Reference pictures through the real server, with tiny: what is painted takes their colours, on the same map."""

import io
from typing import Any

import numpy as np
from PIL import Image
from support import ROOT
from support.requests_to_tiny import differ, png, url
from support.server import Server

from tinyworld.likeness import palette_distance

DOODLE = url(Image.open(ROOT / "examples/doodle.png").convert("RGB"))
REFERENCES = [Image.open(ROOT / f"examples/{name}.png").convert("RGB") for name in ("house", "room", "person")]


def painted(server: Server, **inputs: Any) -> Image.Image:
    sent = {
        "image": DOODLE,
        "conditioner": "scribble",
        "prompt": "a house",
        "resolution": 128,
        "num_inference_steps": 8,
    }
    return Image.open(io.BytesIO(png(server, **sent | inputs)[-1]))


def test_pictures_take_the_colours_of_their_references_the_more_the_stronger(server: Server) -> None:
    """docs/quality.md has the figures of 64 pairs."""
    means = []
    for scale in (0.0, 0.5, 1.0):
        made = [painted(server, reference_image=url(each), reference_scale=scale) for each in REFERENCES]
        distances = np.array([[palette_distance(picture, each) for each in REFERENCES] for picture in made])
        means.append(distances.diagonal().mean())
    assert means[0] > means[1] > means[2], means
    assert distances.argmin(1).tolist() == [0, 1, 2], distances


def test_a_reference_picture_acts_where_its_mask_is_white(server: Server) -> None:
    """Its colours spread a little: tiny's skies are of one colour."""
    mask = Image.new("L", (128, 128))
    mask.paste(255, (0, 0, 64, 128))
    reference = {"reference_image": url(REFERENCES[1])}
    plain = np.asarray(painted(server), float)
    everywhere, masked = (
        np.abs(np.asarray(painted(server, **sent), float) - plain).mean((0, 2))
        for sent in (reference, reference | {"reference_mask": url(mask)})
    )
    assert masked[:48].mean() > 0.8 * everywhere[:48].mean()
    assert masked[80:].mean() < 0.8 * everywhere[80:].mean()


def test_a_reference_picture_of_scale_zero_is_none(server: Server) -> None:
    sent: dict[str, Any] = {"reference_image": url(REFERENCES[0]), "reference_scale": 0}
    assert not differ(png(server, **sent), png(server))
