"""script/check-weights draws with every conditioner, also with one that needs a part to repaint."""

import check_weights
import pytest
from PIL import Image
from support import ROOT

import predict


@pytest.mark.parametrize("conditioner", ["inpaint", "canny"])
def test_check_weights_draws_map_and_picture(predictor: predict.Predictor, conditioner: str) -> None:
    files = check_weights.draw(predictor, ROOT / "examples/cat.jpg", conditioner)
    control_map, picture = (Image.open(file) for file in files)
    assert control_map.size == picture.size


@pytest.fixture(scope="module", name="predictor")
def predictor_fixture() -> predict.Predictor:
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("CONTROLNET_BUNDLE", "tiny")
        predictor = predict.Predictor()
        predictor.setup()
    return predictor
