"""The contact sheets show what was asked for, with every seed."""

import numpy as np
from PIL import Image

from tinyworld.dataset import PICTURE
from tinyworld.seeds import ROW, Subject, drawn, replaced, sheet_of
from tinyworld.sheets import TILE


def test_a_doodle_is_black_on_white_and_of_the_thing_alone() -> None:
    boat = drawn("boat")
    paper = np.asarray(boat.inputs["image"])
    assert paper.shape == (PICTURE, PICTURE, 3) and 0.6 < (paper > 200).mean() < 0.99
    assert " boat " in boat.inputs["prompt"] and boat.inputs["conditioner"] == "scribble"


def test_a_thing_is_behind_a_mask_and_the_rest_is_not() -> None:
    asked = replaced()
    mask, picture, shown = (np.asarray(each) for each in (asked.inputs["mask"], asked.inputs["image"], asked.shown))
    assert 0.01 < (mask == 255).mean() < 0.6 and {*np.unique(mask)} == {0, 255}
    assert np.array_equal(shown[mask == 0], picture[mask == 0]) and (shown[mask == 255] == 255).all()


def test_no_seed_is_left_out() -> None:
    seeds: list[int] = []

    def model(prompt: str, image: Image.Image, seed: int) -> list[Image.Image]:
        seeds.append(seed)
        return [image]

    picture = Image.new("RGB", (PICTURE, PICTURE), "red")
    made = sheet_of(Subject("red", {"prompt": "red", "image": picture}, picture), model, 10, {})
    assert seeds == list(range(1, 11)) and made.width == ROW * TILE
    assert (np.asarray(made) == (255, 0, 0)).all(axis=2).mean() > 0.6, "eleven tiles of twelve, and captions"
