"""Requests of other models' clients, sent to the real server with the tiny bundle."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support import ROOT
from support.requests_to_tiny import FAST, PHOTO, url
from support.server import Server

SMALL = {"image_resolution": "256", "ddim_steps": 2, "prompt": FAST["prompt"], "seed": 1}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder like the project's. Servers of other tests start in that one, and all read the schema from a file."""
    for name in ("predict.py", "controlnet", "interfaces", "weights"):
        (tmp_path / name).symlink_to(ROOT / name)
    return tmp_path


def opened(files: list[bytes]) -> list[np.ndarray]:
    return [np.asarray(Image.open(io.BytesIO(file)).convert("RGB")) for file in files]


def test_rossjillian(root: Path) -> None:
    with Server({"CONTROLNET_BUNDLE": "tiny"}, root, "rossjillian") as server:
        sent = {"image": PHOTO, "prompt": "", "structure": "hough", "steps": 1, "image_resolution": 512}
        got = server.run(**sent, return_reference_image=True, seed=0)
        assert got.status == "succeeded" and got.endings == [".png", ".png"], got.error
        drawn, picture = opened(got.files)
        assert drawn.shape[0] == picture.shape[0] == 512, "the shorter side"
        assert set(np.unique(drawn)) == {0, 255} and (drawn == 0).mean() > 0.5, "lines on black, as there"
        assert got.metrics["seed"] == 0 and got.metrics["ignored"] == []
        assert "above the short side of 256 that tiny was trained for" in got.logs, "its resolution suits sd15"
        assert server.run(**sent, seed=0).files == got.files[1:], "no map unless it is asked for; the same seed repeats"
        assert server.run(**sent | {"structure": "canny"}, seed=0).files != got.files[1:]

        refused = server.run(**sent | {"steps": 1000})
        assert (
            refused.status == "failed"
            and refused.error.startswith("steps: expected")
            and "inference" not in refused.error
        )
        assert server.run(**sent | {"structure": "lineart"}).http_status == 422
        ignored = server.run(**sent | {"scheduler": "KLMS", "eta": 0.5})
        assert ignored.metrics["ignored"] == ["eta"]


def test_jagilley_canny(root: Path) -> None:
    with Server({"CONTROLNET_BUNDLE": "tiny"}, root, "jagilley-canny") as server:
        got = server.run(**SMALL, image=PHOTO, num_samples="4")
        assert got.status == "succeeded" and got.endings == [".png"] * 5, got.error
        drawn, *pictures = opened(got.files)
        assert set(np.unique(drawn)) == {0, 255} and (drawn == 255).mean() > 0.5, "dark lines on white, as there"
        assert len({picture.tobytes() for picture in pictures}) == 4
        assert server.run(**SMALL, image=PHOTO, num_samples=4).http_status == 422, "text, as there"
        assert server.run(**SMALL, image=PHOTO, a_prompt="a green room").files[1] != got.files[1], "a_prompt acts"


def test_jagilley_hed_takes_input_image(root: Path) -> None:
    with Server({"CONTROLNET_BUNDLE": "tiny"}, root, "jagilley-hed") as server:
        assert len(server.run(**SMALL, input_image=PHOTO).files) == 2
        too_small = server.run(**SMALL, input_image=url(Image.new("RGB", (4, 4))))
        assert too_small.status == "failed" and too_small.error.startswith("The image is too small: expected at least")
