"""From a perfect network's view of a scene, the evaluation reads what the scene's true control map asks for."""

from functools import cache
from itertools import islice

import numpy as np
import pytest
import torch
from PIL import Image

from controlnet.maps.annotators.tiny_network import Seen
from tinyworld.dataset import Sample, sample_of
from tinyworld.hints import HINTS, draw_from_truth
from tinyworld.judge import MEASURED, READINGS, Look, colour_of, wanted
from tinyworld.render import FIRST_SOLID, render
from tinyworld.scene import make_scene
from tinyworld.things import COLOURS
from tinyworld.truth import CLASSES
from tinyworld.vision import targets

NUMBERS = np.array([number for _, number in CLASSES])
LEAST = {"scribble": 0.5, "canny": 0.25, "canny, sharp": 0.4, "lineart": 0.25, "tile": 0.85, "mlsd": 0.95}
LEAST |= dict.fromkeys(("hed", "depth", "normal", "seg"), 0.99)
"""The least score of the true map, if not 0.9. A doodle wobbles by up to two pixels, canny maps have random thresholds
and edges between colours of one brightness, which the network does not see, lineart draws what is darker than its
surroundings (in one scene mostly texture), and tile maps are blurred variably."""


def perfect_view(sample: Sample) -> Seen:
    """The output of a network that reproduces its targets exactly."""
    truth = targets([sample])

    def logits(values: torch.Tensor) -> torch.Tensor:
        return torch.logit(values.clamp(1e-4, 1 - 1e-4))

    return Seen(
        outlines=logits(truth["outlines"]),
        edges=logits(truth["edges"]),
        straight=logits(truth["straight"]),
        nearness=truth["nearness"],
        normals=torch.nn.functional.normalize(truth["normals"], dim=1),
        classes=torch.nn.functional.one_hot(truth["classes"], len(CLASSES)).permute(0, 3, 1, 2).float(),
        joints=logits(truth["joints"]),
        to_neck=truth["to_neck"],
    )


@cache
def scenes() -> list[Sample]:
    """Four scenes with a person and a box."""
    made = (make_scene(seed) for seed in range(200))
    return [sample_of(scene) for scene in islice((s for s in made if {"person", "box"} <= {*s.caption.split()}), 4)]


def look_at(sample: Sample) -> Look:
    return Look(sample.picture, sample.picture, perfect_view(sample), NUMBERS)


@pytest.mark.parametrize("name", READINGS)
def test_a_true_picture_obeys_its_own_map_and_no_other(name: str) -> None:
    reading, samples = READINGS[name], scenes()
    asked = [wanted(name, draw_from_truth(HINTS[reading.conditioner], s), s.people) for s in samples]
    found = [reading.found(look_at(sample)) for sample in samples]
    own = [reading.compare(one, other)[1] for one, other in zip(found, asked, strict=True)]
    others = [reading.compare(found[i], asked[i - 1])[1] for i in range(len(samples))]
    assert min(own) >= LEAST.get(name, 0.9), own
    assert np.mean(others) < np.mean(own) - 0.15, (own, others)


@pytest.mark.parametrize("conditioner", ["depth", "normal"])
def test_a_negated_map_is_not_obeyed(conditioner: str) -> None:
    reading, sample = READINGS[conditioner], scenes()[0]
    control_map = Image.fromarray(255 - np.asarray(draw_from_truth(HINTS[conditioner], sample)))
    found = reading.found(look_at(sample))
    assert reading.compare(found, wanted(conditioner, control_map, []))[1] < 0.2


def test_every_trained_conditioner_but_inpaint_has_a_reading() -> None:
    """inpaint has none: anything may fill a hole, and around it the picture is unchanged."""
    assert set(MEASURED) == set(HINTS) - {"inpaint"}


@pytest.mark.parametrize("colour", COLOURS)
def test_the_colour_of_a_rendered_ball_is_read_correctly(colour: str) -> None:
    scenes = (make_scene(seed) for seed in range(3000))
    scene = next(s for s in scenes if len(s.things) == 1 and s.things[0].words == f"{colour} ball")
    view = render(scene)
    assert colour_of(view.picture[view.ids == FIRST_SOLID]) == colour
