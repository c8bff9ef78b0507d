"""Pictures obey several controls and regions, on a few held-out scenes. docs/quality.md is made from 32."""

from dataclasses import replace

import pytest
import torch

from controlnet.maps.annotators.tiny_network import TinyVisionModel
from controlnet.models.loading import load_pretrained
from tinyworld.export import EVALUATOR
from tinyworld.judge import Judge
from tinyworld.painter import Painter
from tinyworld.together import Obedience, as_toml, measure_pair, measure_region

SCENES = 4


@pytest.fixture(scope="module")
def painter() -> Painter:
    """With small pictures and 6 steps, which are enough to be obeyed."""
    painter = Painter("tiny", "drawn")
    painter.size = (128, 128)
    manifest = painter.bundle.manifest
    painter.bundle.manifest = replace(manifest, defaults=replace(manifest.defaults, num_inference_steps=6))
    return painter


@pytest.fixture(scope="module")
def judge() -> Judge:
    return Judge(load_pretrained(TinyVisionModel, EVALUATOR, torch.device("cpu")))


def test_two_controls_are_both_obeyed(painter: Painter, judge: Judge) -> None:
    measured = measure_pair(("canny", "depth"), painter, judge, SCENES)
    assert all(one.score > one.floor + 0.2 for one in measured.values()), measured


def test_a_control_is_obeyed_only_inside_its_region(painter: Painter, judge: Judge) -> None:
    measured = measure_region("canny", painter, judge, SCENES)
    inside, outside = measured["inside"], measured["outside"]
    assert inside.score > inside.floor + 0.3, measured
    assert outside.score < outside.floor + 0.15, measured


def test_figures_are_written_as_toml_for_the_manifest() -> None:
    written = as_toml({"canny_left": {"inside": Obedience(0.5, 0.25)}}, 4)
    assert "[made.together.canny_left]\ninside = { score = 0.500, floor = 0.250 }" in written
