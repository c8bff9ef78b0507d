"""What the evaluation reads from a perfect network's view of a scene is what the scene's true control map asks for."""

import numpy as np
import pytest
import torch
from PIL import Image

from controlnet.maps.annotators.tiny_network import Seen
from tinyworld.dataset import Sample, sample_of
from tinyworld.hints import HINTS, draw_from_truth
from tinyworld.judge import READINGS, Look, colour_of, wanted
from tinyworld.render import FIRST_SOLID, render
from tinyworld.scene import make_scene
from tinyworld.things import COLOURS
from tinyworld.truth import CLASSES
from tinyworld.vision import targets

NUMBERS = np.array([number for _, number in CLASSES])
SCENES = [seed for seed in range(200) if {"person", "box"} <= set(make_scene(seed).caption.split())][:4]
LEAST = {"scribble": 0.5, "canny": 0.5, "lineart": 0.25, "tile": 0.85, "mlsd": 0.95}
LEAST |= dict.fromkeys(("hed", "depth", "normal", "seg"), 0.99)
"""A doodle wobbles by up to two pixels, canny maps have random thresholds, lineart draws what is darker than its
surroundings and of one of these scenes mostly its texture, and tile maps are blurred more or less."""


def perfect_view(sample: Sample) -> Seen:
    """What a network would see that had learnt its targets by heart."""
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


def look_at(sample: Sample) -> Look:
    return Look(sample.picture, perfect_view(sample), NUMBERS)


@pytest.mark.parametrize("conditioner", READINGS)
def test_the_truth_obeys_its_own_map_and_no_other(conditioner: str) -> None:
    reading = READINGS[conditioner]
    samples = [sample_of(make_scene(seed)) for seed in SCENES]
    asked = [wanted(conditioner, draw_from_truth(HINTS[conditioner], s), s.people) for s in samples]
    found = [reading.found(look_at(sample)) for sample in samples]
    own = [reading.compare(one, other)[1] for one, other in zip(found, asked, strict=True)]
    others = [reading.compare(found[i], asked[i - 1])[1] for i in range(len(SCENES))]
    assert min(own) >= LEAST.get(conditioner, 0.9), own
    assert np.mean(others) < np.mean(own) - 0.15, (own, others)


@pytest.mark.parametrize("conditioner", ["depth", "normal"])
def test_a_negated_map_is_not_obeyed(conditioner: str) -> None:
    reading, sample = READINGS[conditioner], sample_of(make_scene(SCENES[0]))
    control_map = Image.fromarray(255 - np.asarray(draw_from_truth(HINTS[conditioner], sample)))
    found = reading.found(look_at(sample))
    assert reading.compare(found, wanted(conditioner, control_map, []))[1] < 0.2


def test_there_is_a_reading_for_every_control_map_that_is_trained() -> None:
    """But for inpaint's: what goes into a hole is free, and around it the picture itself comes back."""
    assert set(READINGS) == set(HINTS) - {"inpaint"}


@pytest.mark.parametrize("colour", COLOURS)
def test_a_rendered_things_colour_is_read_by_its_name(colour: str) -> None:
    scenes = (make_scene(seed) for seed in range(3000))
    scene = next(s for s in scenes if len(s.things) == 1 and s.things[0].words == f"{colour} ball")
    view = render(scene)
    assert colour_of(view.picture[view.ids == FIRST_SOLID]) == colour
