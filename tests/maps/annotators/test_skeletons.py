"""Poses are drawn as controlnet_aux draws them, pixel by pixel, and annotators say the poses that they draw."""

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support.warned import warned

from controlnet.maps.annotators import ANNOTATORS
from controlnet.maps.annotators.network import quiet_controlnet_aux, restore_exact
from controlnet.maps.annotators.skeletons import PoseAnnotator, draw_poses, draw_skeletons
from controlnet.request.pose import FARTHEST, POSE_PARTS, Joint, Pose

with quiet_controlnet_aux():
    from controlnet_aux.open_pose import Keypoint
    from controlnet_aux.open_pose.util import draw_bodypose, draw_facepose, draw_handpose

SIZE = (640, 512)
"""Its short side is the one at which poses are drawn, so nothing is resized."""


def scattered(count: int, seed: int, absent: tuple[int, ...] = ()) -> tuple[Joint, ...]:
    numbers = random.Random(seed)
    points = [(numbers.uniform(-30, 670), numbers.uniform(-30, 540)) for _ in range(count)]
    return tuple(None if i in absent else point for i, point in enumerate(points))


PEOPLE = [
    Pose(
        scattered(18, 1, absent=(4, 16)), scattered(21, 2, absent=(0, 8)), scattered(21, 3), scattered(70, 4, (7, 69))
    ),
    Pose(scattered(18, 5), None, scattered(21, 6), None),
    Pose((None,) * 18, scattered(21, 7), None, scattered(70, 8)),
]


def theirs(
    parts: tuple[str, ...], people: Sequence[Pose] = PEOPLE, size: tuple[int, int] = SIZE, side: tuple[int, int] = SIZE
) -> np.ndarray:
    """controlnet_aux's drawing, (width, height) `side`, of people in a picture of `size`.

    Joints of hands and faces outside the picture are left out.
    """
    canvas = np.zeros((side[1], side[0], 3), np.uint8)
    for person in people:
        body: Any = [j and Keypoint(j[0] / size[0], j[1] / size[1]) for j in person.body]
        canvas = draw_bodypose(canvas, body)
        left, right, face = (
            part and [Keypoint(j[0] / size[0], j[1] / size[1]) if j else Keypoint(-1, -1) for j in part]
            for part in (person.left_hand, person.right_hand, person.face)
        )
        if "hands" in parts:
            canvas = draw_handpose(draw_handpose(canvas, left), right)
        if "face" in parts:
            canvas = draw_facepose(canvas, face)
    return canvas


@pytest.mark.parametrize("choice", POSE_PARTS)
def test_pose_parts_are_drawn_as_controlnet_aux_draws_them(choice: str, recwarn: pytest.WarningsRecorder) -> None:
    drawn = np.array(draw_poses(PEOPLE, SIZE, choice))
    assert np.array_equal(drawn, theirs(POSE_PARTS[choice]))
    others = [other for other in POSE_PARTS if other != choice]
    assert not any(np.array_equal(drawn, theirs(POSE_PARTS[other])) for other in others), "choices draw the same"
    assert warned(recwarn) == []


@pytest.mark.parametrize(
    ("size", "side"), [((640, 512), (640, 512)), ((1024, 683), (768, 512)), ((131, 457), (512, 1786))]
)
def test_random_poses_are_drawn_as_controlnet_aux_draws_them(size: tuple[int, int], side: tuple[int, int]) -> None:
    """Some joints lie on whole pixels, on the border, on each other or outside. Up to half of them are missing."""
    numbers = random.Random(size[0])

    def joint(middle: float, reach: float) -> Joint:
        if numbers.random() < missing:
            return None
        x, y = (numbers.gauss(middle * length, reach * length) for length in size)
        return numbers.choice([(x, y), (float(round(x)), float(round(y))), (0.0, y), (x, 0.5), (middle, middle)])

    def joints(count: int, reach: float) -> tuple[Joint, ...]:
        middle = numbers.random()
        return tuple(joint(middle, reach) for _ in range(count))

    for _ in range(100):
        missing = numbers.choice([0, 0.1, 0.5])
        left, right, face = (numbers.choice([None, joints(count, 0.1)]) for count in (21, 21, 70))
        person = Pose(joints(18, numbers.choice([0.02, 0.3, 2])), left, right, face)
        expected = restore_exact(theirs(("hands", "face"), [person], size, side), size)
        assert np.array_equal(np.array(draw_poses([person], size, "all")), expected), person


def test_skeleton_lines_widen_with_the_picture_unblended() -> None:
    assert np.array_equal(np.array(draw_skeletons([p.body for p in PEOPLE], SIZE)), theirs(()))
    large = np.array(draw_poses([person.scaled(2, 2) for person in PEOPLE], (1280, 1024), "all"))
    assert np.array_equal(large, theirs(("hands", "face")).repeat(2, 0).repeat(2, 1))
    assert not np.array(draw_poses([], (70, 64), "all")).any()


@pytest.mark.parametrize("size", [(64, 64), (2048, 64), (64, 2048), (200, 1000), (2048, 2048)])
def test_any_size_and_joints_far_outside_can_be_drawn(size: tuple[int, int]) -> None:
    width, height = (FARTHEST * side for side in size)
    body = [(-width, -height), (width, height), (width, -height), *[(3.0, 4.0)] * 15]
    person = Pose(tuple(body), tuple(body[:3] * 7), None, tuple(body[:2] * 35))
    drawn = draw_poses([person], size, "all")
    assert (drawn.size, drawn.mode) == (size, "RGB") and np.array(drawn).any()


def test_pose_annotators_draw_the_poses_they_return() -> None:
    asked: list[str] = []

    def add(part: str, **fields: Any) -> Any:
        return lambda image, person: asked.append(part) or Pose(person.body, **(fields | {"face": person.face}))

    hand = scattered(21, 9)
    annotator = PoseAnnotator(lambda image: PEOPLE[1:2], {"hands": add("hands", left_hand=hand), "face": add("face")})
    picture = Image.new("RGB", SIZE)
    wanted = {"body": [], "body_hands": ["hands"], "body_face": ["face"], "all": ["hands", "face"]}
    for choice, parts in wanted.items():
        asked.clear()
        poses = annotator.poses(picture, choice)
        assert asked == parts, "a network was run for a part that was not asked for, or was not run"
        assert annotator(picture, pose_parts=choice).tobytes() == draw_poses(poses, SIZE, choice).tobytes()
    assert annotator.poses(picture, "body_hands")[0].left_hand == hand
    assert annotator(picture).tobytes() == draw_skeletons([PEOPLE[1].body], SIZE).tobytes(), "the default is the body"


@pytest.mark.parametrize("kind", ["openpose", "tiny_openpose"])
def test_kinds_that_find_bodies_only_refuse_hands_and_faces(kind: str) -> None:
    fault = ANNOTATORS[kind].fault
    assert fault({}) is None and fault({"pose_parts": "body"}) is None
    for choice, lacking in (("body_hands", "no hands:"), ("body_face", "no face:"), ("all", "no hands or face:")):
        sentence = fault({"pose_parts": choice})
        assert sentence and lacking in sentence and sentence.endswith("CONTROLNET_OPENPOSE=dwpose or cmu.")
        for whole in ("openpose_cmu", "openpose_dwpose"):
            assert ANNOTATORS[whole].fault({"pose_parts": choice}) is None
