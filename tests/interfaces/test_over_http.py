"""Requests of other models' clients, sent to the real server with the tiny bundle."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support import ROOT
from support.requests_to_tiny import FAST, HALF, OTHER, PHOTO, url
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
        sent["image_resolution"] = 256
        first, second = (server.run(**sent | {"structure": name}, seed=0).files for name in ("hough", "canny"))
        assert first != second

        refused = server.run(**sent | {"steps": 1000})
        assert (
            refused.status == "failed"
            and refused.error.startswith("steps: expected")
            and "inference" not in refused.error
        )
        assert server.run(**sent | {"structure": "lineart"}).http_status == 422
        ignored = server.run(**sent | {"scheduler": "KLMS", "low_threshold": 50}, eta=0.5)
        assert ignored.metrics["ignored"] == ["eta", "low_threshold"]


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


def test_jagilley_normal_says_what_has_no_effect(root: Path) -> None:
    with Server({"CONTROLNET_BUNDLE": "tiny"}, root, "jagilley-normal") as server:
        assert server.run(**SMALL, image=PHOTO, bg_threshold=0.4).metrics["ignored"] == ["bg_threshold"]


def test_fofr(root: Path) -> None:
    with Server({"CONTROLNET_BUNDLE": "tiny"}, root, "fofr-sdxl") as server:
        sent: dict[str, Any] = {
            "prompt": FAST["prompt"],
            "width": 96,
            "height": 64,
            "num_inference_steps": 2,
            "seed": 0,
        }
        free = server.run(**sent)
        assert free.status == "succeeded" and free.endings == [".png"], free.error
        assert free.metrics["ignored"] == [] and opened(free.files)[0].shape == (64, 96, 3)
        first = {"controlnet_1": "depth_leres", "controlnet_1_image": PHOTO}
        both = first | {"controlnet_3": "edge_canny", "controlnet_3_image": OTHER}
        got = server.run(**sent, **both, num_outputs=2)
        assert got.endings == [".png"] * 4, got.error
        depth, canny, *pictures = opened(got.files)
        assert set(np.unique(canny)) == {0, 255} and len(np.unique(depth)) > 2, "the maps come first, in their order"
        assert len({picture.tobytes() for picture in pictures}) == 2
        assert "controlnet_1: depth_leres is drawn by the bundle's annotator of depth" in got.logs
        weak = server.run(**sent, **first, controlnet_1_conditioning_scale=0)
        assert np.array_equal(opened(weak.files)[1], opened(free.files)[0]), "no control is one that does nothing"
        assert not np.array_equal(opened(free.files)[0], pictures[0])

        begun = server.run(**sent, image=PHOTO, mask=HALF, refine="base_image_refiner", controlnet_2_end=0.5)
        assert len(begun.files) == 1, begun.error
        assert begun.metrics["ignored"] == ["refine", "controlnet_2_end"]
        left = opened(begun.files)[0][:, 60:].astype(int)  # beyond the feathered edge of HALF, which repaints the left
        whole = opened(server.run(**sent, image=PHOTO, mask=HALF, prompt_strength=0.5).files)[0][:, 60:].astype(int)
        assert np.array_equal(left, whole), "outside of the mask it is the picture that was sent"
        assert server.run(**sent, prompt_strength=0.5).metrics["ignored"] == ["prompt_strength"]

        small = url(Image.new("RGB", (4, 4)))
        refused: dict[str, dict[str, Any]] = {
            "controlnet_1_image: The image is too small": first | {"controlnet_1_image": small},
            "image: The image is too small": first | {"image": small},
            "controlnet_1_start must be below controlnet_1_end": first | {"controlnet_1_start": 1.0},
            "controlnet_1_conditioning_scale: expected a number": first | {"controlnet_1_conditioning_scale": 3},
            "The bundle in use has no lineart_anime": first | {"controlnet_1": "lineart_anime"},
            "controlnet_1 illusion needs": first | {"controlnet_1": "illusion"},
            "lora_weights: expected a URL": {"lora_weights": "https://replicate.delivery/pbxt/a/trained_model.tar"},
        }
        for sentence, wrong in refused.items():
            assert server.run(**sent | wrong).error.startswith(sentence), sentence
        assert server.run(**sent).files == free.files, "the same request gives the same bytes, whatever came before"


def test_lucataco(root: Path) -> None:
    with Server({"CONTROLNET_BUNDLE": "tiny"}, root, "lucataco") as server:
        sent: dict[str, Any] = {"image": PHOTO, "prompt": FAST["prompt"], "num_inference_steps": 2}
        got = server.run(**sent, seed=1)
        assert got.status == "succeeded" and got.endings == [".png"], got.error
        assert isinstance(got.body["output"], str), "one file, no list, as there"
        height, width, _ = opened(got.files)[0].shape
        assert (width, height) == (312, 208), "as many pixels as the bundle's size has, in the shape of the picture"
        assert server.run(**sent, seed=1).files == got.files
        drawn = {server.run(**sent, seed=0).metrics["seed"] for _ in range(2)}
        assert len(drawn) == 2, "0 draws a seed"
        sent["num_inference_steps"] = 500
        assert server.run(**sent).error.startswith("num_inference_steps: expected")
