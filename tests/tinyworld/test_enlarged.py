"""What tiny's pictures gain and keep when they are enlarged. docs/quality.md is made from more scenes."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from controlnet.generation import painting
from controlnet.maps.controls import Control
from tinyworld.enlarged import Enlarged, as_toml, edges_of_windows, measure, seams, steepness, structure
from tinyworld.painter import Painter


@pytest.fixture(scope="module")
def painter() -> Painter:
    """With small pictures and few steps."""
    painter = Painter("tiny", "drawn")
    painter.size = (128, 128)
    manifest = painter.bundle.manifest
    painter.bundle.manifest = replace(manifest, defaults=replace(manifest.defaults, num_inference_steps=8))
    return painter


def test_enlarged_pictures_are_sharper_with_the_same_structure_and_without_seams(painter: Painter) -> None:
    measured = measure(painter, 2, 4.0, 0.4)
    assert measured.steepness > 1.3 * measured.before
    assert measured.f1 > measured.floor + 0.2
    assert measured.seams < 1.2


def test_a_flat_gradient_gets_no_seams(painter: Painter, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first pass is left out: what it has made is the gradient."""
    grey = np.linspace(60, 200, 128)
    flat = Image.fromarray(np.stack([np.tile(grey, (128, 1))] * 3, axis=-1).astype(np.uint8))
    decode = painting.decode
    passes: list[int] = []

    def made(*given) -> Image.Image:
        passes.append(1)
        return flat if len(passes) == 1 else decode(*given)

    monkeypatch.setattr(painting, "decode", made)
    control = Control("canny", Image.new("RGB", (128, 128)), scale=0.0)
    large = painter.paint_with((control,), "", 3, upscale=4.0, upscale_strength=0.4)
    places = edges_of_windows(painter, large.size)
    assert len(passes) == 2 and len(places) == 2
    levels = np.asarray(large, float).mean((0, 2))
    assert seams(large, places) < 1.2
    # The mean of a column follows the gradient, without steps at the windows' edges.
    ahead = np.abs([levels[place : place + 16].mean() - levels[place - 16 : place].mean() for place in places])
    usual = np.abs([levels[x : x + 16].mean() - levels[x - 16 : x].mean() for x in range(32, 480)])
    assert ahead.max() < 1.5 * usual.mean()


def test_the_measures_find_what_they_are_for() -> None:
    rng = np.random.default_rng(1)
    fine = Image.fromarray(rng.integers(100, 110, (64, 64, 3), dtype=np.uint8))
    step = Image.fromarray(np.where(np.arange(64)[None, :, None] < 32, np.asarray(fine), np.asarray(fine) + 12))
    assert seams(step, [32]) > 1.5 > 1.1 > seams(fine, [32])
    square = Image.new("RGB", (64, 64))
    square.paste("white", (16, 16, 48, 48))
    soft = square.resize((16, 16)).resize((64, 64), Image.Resampling.LANCZOS)
    assert steepness(square) > 2 * steepness(soft)
    elsewhere = square.transform(square.size, Image.Transform.AFFINE, (1, 0, 12, 0, 1, 12))
    assert structure(square, soft, 4.0) > 0.9 and structure(square, elsewhere, 4.0) < 0.5


def test_figures_are_written_as_toml_for_the_manifest() -> None:
    written = as_toml([Enlarged(0.4, 30.0, 10.0, 0.9, 0.2, 1.0, 1.1)], 8, 4.0)
    assert written.startswith("[made.enlarged]\nscenes = 8\nupscale = 4\n")
    assert "40 = { steepness = 30.000, before = 10.000, f1 = 0.900, floor = 0.200, " in written
    assert "seams = 1.000, seams_before = 1.100 }" in written
