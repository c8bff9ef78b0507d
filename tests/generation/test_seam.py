"""The seam between what is painted and what is kept, on the tiny bundle, whose pictures are not noise."""

import numpy as np
import pytest
from PIL import Image
from support import ROOT

from controlnet.bundle import open_bundle
from controlnet.generation.generator import Generator
from controlnet.generation.job import Job
from controlnet.maps.controls import Control
from controlnet.pictures.canvas import InitialPicture, feather
from controlnet.settings import Settings

HOUSE = Image.open(ROOT / "examples/house.png").convert("RGB").resize((128, 128), Image.Resampling.LANCZOS)
INSIDE = (35, 45, 95, 115)
"""Left, top, right and bottom of the part that is repainted. None of them lies between two latents."""


def masked() -> Image.Image:
    mask = Image.new("L", HOUSE.size)
    mask.paste(255, INSIDE)
    return mask


@pytest.fixture(scope="module")
def generator() -> Generator:
    return Generator(open_bundle(Settings(bundle="tiny")))


def painted(generator: Generator, mask: Image.Image, seed: int) -> np.ndarray:
    holes = mask.point([0] * 128 + [255] * 128)
    shown = Image.composite(Image.new("RGB", HOUSE.size), HOUSE, holes)
    job = Job(
        prompt="a red house on grass under a blue sky",
        negative_prompt="",
        controls=(Control("inpaint", shown, holes=holes),),
        num_outputs=1,
        num_inference_steps=8,
        guidance_scale=3.0,
        scheduler="DDIM",
        seed=seed,
        control_mode="unbalanced",
        initial=InitialPicture(HOUSE, 1.0, mask),
    )
    return np.asarray(generator.generate(job)[0]).astype(float)


def seam(picture: np.ndarray) -> float:
    """The mean step across the edge of INSIDE, in grey levels, above that of the house itself."""
    left, top, right, bottom = INSIDE

    def steps(pixels: np.ndarray) -> float:
        rows = [np.abs(pixels[y, left:right] - pixels[y - 1, left:right]).mean() for y in (top, bottom)]
        columns = [np.abs(pixels[top:bottom, x] - pixels[top:bottom, x - 1]).mean() for x in (left, right)]
        return float(np.mean(rows + columns))

    return steps(picture) - steps(np.asarray(HOUSE).astype(float))


def test_a_feathered_mask_leaves_no_seam(generator: Generator) -> None:
    hard = [painted(generator, masked(), seed) for seed in range(3)]
    soft = [painted(generator, feather(masked(), 4), seed) for seed in range(3)]
    before, after = (float(np.mean([seam(picture) for picture in pictures])) for pictures in (hard, soft))
    assert before > 4, "there is no seam to be mended"
    assert after < 0.25 * before
    changed = [np.abs(picture - np.asarray(HOUSE))[45:115, 35:95].mean() for picture in soft]
    assert min(changed) > 10, "nothing was painted"


def test_pixels_that_stay_black_after_feathering_are_kept_bit_for_bit(generator: Generator) -> None:
    mask = feather(masked(), 4)
    outside = np.asarray(mask) == 0
    assert outside.mean() > 0.6
    assert np.array_equal(painted(generator, mask, 1)[outside], np.asarray(HOUSE)[outside])
