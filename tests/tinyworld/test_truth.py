"""The truth of the procedural world: lines, nearness, normals, classes and joints agree with their picture."""

from functools import cache

import cv2
import numpy as np
import pytest
from support.scenes import small_dataset

from controlnet.maps.annotators.tiny_network import NECK_UNIT
from tinyworld.dataset import PICTURE, SEEN
from tinyworld.render import GROUND, LEFT, RIGHT, SKY, WALL, View, render, smaller
from tinyworld.scene import Scene, make_scene
from tinyworld.truth import CLASSES, OPENPOSE_JOINTS, Truth, outlines, truth_of
from tinyworld.vision import targets

NAMES = [name for name, _ in CLASSES]
JOINT = {name: row for row, name in enumerate(OPENPOSE_JOINTS)}


@cache
def scene_with(word: str, nth: int = 0) -> tuple[Scene, View, Truth]:
    """The nth scene with the word in its caption, its view and its truth."""
    seeds = (seed for seed in range(1000) if word in make_scene(seed).caption)
    scene = make_scene([seed for seed, _ in zip(seeds, range(nth + 1), strict=False)][-1])
    view = render(scene)
    return scene, view, truth_of(scene, view)


def test_nearness_is_1_for_the_nearest_and_0_for_the_sky() -> None:
    _, view, truth = scene_with("sky")
    assert truth.nearness.min() == 0 and truth.nearness.max() == 1
    assert (truth.nearness[view.ids == SKY] == 0).all()
    near, far = truth.nearness[-1, 64], truth.nearness[view.ids == GROUND].min()
    assert near > far


def test_normals_face_left_up_and_to_the_camera() -> None:
    _, view, truth = next(
        seen for seen in (scene_with("room", n) for n in range(50)) if {LEFT, RIGHT, WALL} <= set(seen[1].ids.flat)
    )
    assert truth.normals[view.ids == GROUND][:, 1].min() > 0.9
    assert truth.normals[view.ids == WALL][:, 2].min() > 0.9
    assert (truth.normals[view.ids == LEFT][:, 0] < -0.9).all(), "the wall on the left faces right"
    assert (truth.normals[view.ids == RIGHT][:, 0] > 0.9).all()
    assert np.allclose(np.linalg.norm(truth.normals, axis=2), 1, atol=1e-3)


@pytest.mark.parametrize(
    ("word", "name"),
    [
        *[(word, word) for word in ("ball", "house", "sky", "person", "water", "boat", "cup")],
        *[("pyramid", "tent"), ("snow", "earth"), ("cat", "animal"), ("owl", "animal")],
    ],
)
def test_things_in_the_caption_have_their_ade20k_class(word: str, name: str) -> None:
    views = [scene_with(word, nth)[2].classes for nth in range(2)]  # a camera that is near may miss one thing
    assert max((classes == NAMES.index(name)).sum() for classes in views) > 50


def test_the_class_numbers_are_ade20ks() -> None:
    """Some well-known numbers of ADE20K's list, and no number twice."""
    numbers = dict(CLASSES)
    assert (numbers["wall"], numbers["sky"], numbers["person"], numbers["ball"]) == (0, 2, 12, 119)
    assert (numbers["water"], numbers["boat"], numbers["animal"]) == (21, 76, 126)
    assert len(set(numbers.values())) == len(CLASSES)


def test_straight_lines_run_along_the_outlines() -> None:
    for nth in range(4):
        _, view, truth = scene_with("box", nth)
        near = cv2.dilate(outlines(view), np.ones((5, 5), np.uint8)) > 0
        assert (truth.straight > 0).sum() > 40
        assert near[truth.straight > 0].mean() > 0.95


def test_a_lone_ball_outdoors_has_no_straight_lines() -> None:
    outdoors = (scene for scene in map(make_scene, range(2000)) if "sky" in scene.caption)
    scene = next(s for s in outdoors if len(s.things) == 1 and s.things[0].words.endswith("ball"))
    assert not truth_of(scene, render(scene)).straight.any()


def test_joints_lie_on_the_person_and_right_joints_on_the_left() -> None:
    for nth in range(5):
        _, _, truth = scene_with("person", nth)
        on_person = cv2.dilate((truth.classes == NAMES.index("person")).astype(np.uint8), np.ones((3, 3))) > 0
        for person in truth.people:
            seen = person[person[:, 2] > 0, :2].astype(int)
            assert on_person[seen[:, 1], seen[:, 0]].all()
            assert person[JOINT["right_shoulder"], 0] < person[JOINT["left_shoulder"], 0]
            for pair in ("eye", "ear"):
                assert person[JOINT[f"right_{pair}"], 0] < person[JOINT[f"left_{pair}"], 0]
            assert person[JOINT["nose"], 1] < person[JOINT["neck"], 1] < person[JOINT["left_hip"], 1]


def test_a_mirrored_sample_has_mirrored_truth() -> None:
    plain, mirrored = small_dataset().sample(0), small_dataset().sample(0, mirrored=True)
    assert np.array_equal(mirrored.picture, plain.picture[:, ::-1])
    assert np.array_equal(mirrored.classes, plain.classes[:, ::-1])
    assert np.array_equal(mirrored.normals[..., 0], -plain.normals[:, ::-1, 0])
    assert np.array_equal(mirrored.normals[..., 1:], plain.normals[:, ::-1, 1:])
    right, left = JOINT["right_wrist"], JOINT["left_wrist"]
    assert mirrored.people[0, right, 0] == pytest.approx(SEEN - plain.people[0, left, 0])
    assert mirrored.people[0, right, 1] == plain.people[0, left, 1]


@pytest.mark.parametrize("size", [SEEN, PICTURE])
def test_boxes_frame_the_things_that_the_words_name(size: int) -> None:
    for row in range(2):
        for mirrored in (False, True):
            sample = small_dataset(size).sample(row, mirrored)
            person = [words.startswith("person") for words in sample.words.things].index(True)
            left, top, right, bottom = sample.boxes[person] + (-3, -3, 3, 3)
            joints = sample.people[0][sample.people[0][:, 2] > 0]
            assert (joints[:, 0] >= left).all() and (joints[:, 0] <= right).all(), (size, row, mirrored)
            assert (joints[:, 1] >= top).all() and (joints[:, 1] <= bottom).all()


def test_a_view_at_half_its_size_is_the_scene_at_that_size() -> None:
    scene = make_scene(3)
    half, small = smaller(render(scene, 128), 2), render(scene, 64)
    assert np.abs(half.picture.astype(int) - small.picture).mean() < 2
    assert (half.ids == small.ids).mean() > 0.97


def test_targets_have_a_bump_on_each_joint_and_point_to_the_neck() -> None:
    sample = small_dataset().sample(1)
    wanted = targets([sample])
    person = sample.people[0]
    for joint, (x, y, visible) in enumerate(person):
        row, column = int(y / 2), int(x / 2)
        if visible:
            assert wanted["joints"][0, joint, row, column] > 0.6
            tip = wanted["to_neck"][0, :, row, column].numpy() * NECK_UNIT + (2 * column + 1, 2 * row + 1)
            assert np.allclose(tip, person[JOINT["neck"], :2], atol=1e-3)
    assert wanted["outlines"].max() == 1 and wanted["classes"].dtype.is_floating_point is False
