"""The evaluation's figures: a share of 1 for the rendered scene itself, about 0 for another scene."""

from collections.abc import Callable
from itertools import islice
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from support.scenes import kept_held_out, people_case

from controlnet.maps.annotators.canny import draw_canny
from controlnet.maps.annotators.tiny_network import TinyVisionModel
from controlnet.models.loading import load_pretrained
from controlnet.weights.manifest import WEIGHTS, Manifest
from tinyworld import cases, evaluate
from tinyworld.cases import Case, held_out
from tinyworld.dataset import HELD_OUT, sample_of
from tinyworld.export import EVALUATOR
from tinyworld.hints import HINTS, draw_from_truth
from tinyworld.judge import MEASURED, Judge, readings_of
from tinyworld.painter import Painter
from tinyworld.scene import colourless, make_scene, recoloured

COUNT = 6


@pytest.fixture(scope="module")
def judge() -> Judge:
    return Judge(load_pretrained(TinyVisionModel, EVALUATOR, torch.device("cpu")))


@pytest.fixture(autouse=True)
def scenes_are_rendered_once(monkeypatch) -> None:
    monkeypatch.setattr(evaluate, "held_out", kept_held_out)


class Paints(SimpleNamespace):
    """A painter whose control maps are the truth and whose pictures are `picture_of(case)`, at 128 pixels."""

    size = (128, 128)

    def __init__(self, picture_of: Callable[[Case], Image.Image]) -> None:
        super().__init__(picture_of=picture_of, cases=[], prompts=[])

    def control_map(self, conditioner: str, case: Case) -> Image.Image:
        self.cases.append(case)
        return draw_from_truth(HINTS[conditioner], case.sample)

    def paint(self, conditioner: str, control_map: Image.Image, prompt: str, seed: int) -> Image.Image:
        self.prompts.append(prompt)
        return self.picture_of(self.cases[-1])


@pytest.mark.parametrize("conditioner", MEASURED)
def test_only_the_scene_itself_reaches_the_ceiling(judge: Judge, conditioner: str) -> None:
    stranger = Image.fromarray(people_case().sample.picture[:, ::-1].copy())
    perfect = evaluate.measure(conditioner, Paints(lambda case: case.picture), judge, COUNT)
    blind = evaluate.measure(conditioner, Paints(lambda case: stranger), judge, COUNT)
    assert perfect.keys() == blind.keys() == readings_of(conditioner).keys()
    for name, one in perfect.items():
        assert one.share == pytest.approx(1) and one.score == one.ceiling > one.floor + 0.1, name
        assert abs(blind[name].share) < 0.35, (name, blind)


def test_stricter_readings_find_less(judge: Judge) -> None:
    measured = evaluate.measure("openpose", Paints(lambda case: case.picture), judge, COUNT)
    assert measured["openpose"].score >= measured["openpose, close"].score > measured["openpose, exact"].score


def test_a_blurred_picture_is_less_sharp(judge: Judge) -> None:
    """At full size. The network that scores hardly sees it."""

    class Large(Paints):
        size = (256, 256)

        def control_map(self, conditioner: str, case: Case) -> Image.Image:
            super().control_map(conditioner, case)
            return draw_canny(case.picture)

    sharp = evaluate.measure("canny", Large(lambda case: case.picture), judge, 3)
    soft = evaluate.measure("canny", Large(lambda case: blurred(case.picture)), judge, 3)
    assert soft["canny"].score > 0.8 * sharp["canny"].score
    assert soft["canny, sharp"].score < 0.8 * sharp["canny, sharp"].score


def blurred(picture: Image.Image) -> Image.Image:
    return picture.resize((48, 48), Image.Resampling.BOX).resize(picture.size, Image.Resampling.BILINEAR)


def test_openpose_is_measured_on_scenes_with_people(judge: Judge) -> None:
    painter = Paints(lambda case: case.picture)
    evaluate.measure("openpose", painter, judge, COUNT)
    assert all(any("person" in thing.words for thing in case.scene.things) for case in painter.cases)


def test_evaluation_makes_no_scene_that_training_makes(monkeypatch) -> None:
    made: list[int] = []
    monkeypatch.setattr(cases, "make_scene", lambda seed: made.append(seed) or make_scene(seed))
    for fits in (cases.shows_anything, *cases.SUBJECTS.values()):
        next(cases.held_out(128, fits))
    trained_on = int(Manifest.read(WEIGHTS / "tiny.toml").made["data"].split()[0])  # "10000 scenes of …"
    assert made and min(made) >= HELD_OUT > trained_on


def test_a_picture_that_ignores_the_prompt_has_a_wrong_colour() -> None:
    painter = Paints(lambda case: case.picture)
    figures = evaluate.measure_colours(painter, COUNT)
    assert (figures["right"], figures["ceiling"]) == (0, 1)
    for prompt, case in zip(painter.prompts, painter.cases, strict=True):
        assert prompt != case.scene.caption and len(case.scene.things) == 1


def test_a_larger_bundle_gets_larger_pictures_of_the_same_scene() -> None:
    small, large = (next(cases.held_out(size)).picture for size in (128, 256))
    assert large.size == (256, 256)
    assert np.abs(np.asarray(large.resize((128, 128), Image.Resampling.BOX)).astype(int) - np.asarray(small)).mean() < 4


def test_recolouring_keeps_grammar_and_changes_every_colour() -> None:
    caption = "an orange house with a red roof on snow under a blue sky"
    for seed in range(30):
        words = recoloured(caption, np.random.default_rng(seed)).split()
        assert words[2] == "house" and words[1] != "orange" and words[5] != "red" and words[11] != "blue"
        assert words[11] in ("grey", "orange", "black")
        assert all((words[i] == "an") == (words[i + 1][0] in "aeiou") for i in (0, 4, 10))
    assert recoloured(caption, np.random.default_rng(0), "green", only_first=True) == caption.replace(
        "an orange", "a green"
    )


def test_captions_of_piles_name_all_their_colours() -> None:
    seeds = (seed for seed in range(2000) if "many" in make_scene(seed).caption)
    for seed in islice(seeds, 5):
        scene = make_scene(seed)
        assert 6 <= len(scene.things) <= 12
        assert {thing.colour for thing in scene.things} <= set(scene.caption.replace(",", "").split())


def test_shorter_captions_are_correct_english_about_the_same_scene() -> None:
    assert colourless("an orange house with a red roof on snow") == "a house with a roof on snow"
    assert colourless("a red owl and many blue, pink and white things") == "an owl and many things"
    for seed in range(60):
        scene = make_scene(seed)
        words = {word for caption in scene.shorter for word in caption.replace(",", "").split()}
        assert words <= {*scene.caption.replace(",", "").split(), "a", "an", "and", "beside", "next", "to"}, seed
        assert len({*scene.shorter}) > 1 and scene.caption not in scene.shorter


def test_true_maps_have_the_size_of_the_picture() -> None:
    painter = Painter("tiny", "truth")
    case, size = next(held_out(painter.size[0])), painter.size[0]
    true = draw_from_truth(HINTS["seg"], sample_of(case.scene, size))
    assert np.array_equal(np.asarray(painter.control_map("seg", case)), np.asarray(true.convert("RGB")))
