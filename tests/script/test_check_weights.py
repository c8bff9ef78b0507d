"""script/check-weights draws with every conditioner, also with one that needs a part to repaint, and like a picture."""

import check_weights
import pytest
from PIL import Image
from support import ROOT
from support.requests import FakeBundle, asked

import predict


@pytest.mark.parametrize("conditioner", ["inpaint", "canny"])
def test_check_weights_draws_map_and_picture(predictor: predict.Predictor, conditioner: str) -> None:
    inputs = check_weights.requests(predictor.model.bundle)[conditioner]
    files = check_weights.draw(predictor, ROOT / "examples/cat.jpg", inputs)
    control_map, picture = (Image.open(file) for file in files)
    assert control_map.size == picture.size


def test_check_weights_tries_a_reference_picture_if_the_bundle_takes_one() -> None:
    class Without(FakeBundle):
        reference = None

    taking, other = check_weights.requests(FakeBundle()), check_weights.requests(Without())
    assert taking.keys() - other.keys() == {"reference"} and {*other} == {*FakeBundle().conditioners}
    file = asked(**taking["reference"]).reference_image
    assert file and (ROOT / file).is_file()


@pytest.fixture(scope="module", name="predictor")
def predictor_fixture() -> predict.Predictor:
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("CONTROLNET_BUNDLE", "tiny")
        predictor = predict.Predictor()
        predictor.setup()
    return predictor
