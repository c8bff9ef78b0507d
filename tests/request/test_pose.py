"""OpenPose's JSON in and out: what editors and OpenPose write is read, and the rest is refused in one sentence."""

import json
import random
from typing import Any

import pytest

from controlnet.request.pose import (
    FARTHEST,
    LONGEST_TEXT,
    MOST_PEOPLE,
    Joint,
    Pose,
    PoseError,
    poses_to_json,
    read_poses,
)

SIZE = (640, 400)


def joints(count: int, seed: int = 0, absent: tuple[int, ...] = ()) -> tuple[Joint, ...]:
    """Joints all over the canvas, some of them a little outside."""
    numbers = random.Random(seed)
    points = [(numbers.uniform(-20, 660), numbers.uniform(-20, 420)) for _ in range(count)]
    return tuple(None if i in absent else point for i, point in enumerate(points))


PEOPLE = [
    Pose(joints(18, 1)),
    Pose(joints(18, 2, absent=(0, 7, 17)), joints(21, 3, absent=(20,)), joints(21, 4), joints(70, 5, absent=(0, 69))),
    Pose((None,) * 18, right_hand=joints(21, 6)),
]


def close(got: Pose, wanted: Pose, within: float = 0.005) -> bool:
    for field in ("body", "left_hand", "right_hand", "face"):
        ours, theirs = getattr(got, field), getattr(wanted, field)
        if (ours is None) != (theirs is None) or len(ours or ()) != len(theirs or ()):
            return False
        for a, b in zip(ours or (), theirs or (), strict=True):
            if (a is None) != (b is None) or (a and b and max(abs(a[0] - b[0]), abs(a[1] - b[1])) > within + 1e-9):
                return False
    return True


def flat(*points: Any) -> list[float]:
    return [value for point in points for value in (point or (0, 0, 0))]


def written(person: dict[str, Any] | None = None, **picture: Any) -> str:
    return json.dumps({"people": [person or {"pose_keypoints_2d": flat(*[(8, 9, 1)] * 18)}]} | picture)


def test_pose_json_round_trips_to_a_hundredth_of_a_pixel() -> None:
    text = poses_to_json(PEOPLE, SIZE)
    again = read_poses(text).on(SIZE, SIZE)
    assert len(again) == 3 and all(close(got, wanted) for got, wanted in zip(again, PEOPLE, strict=True))
    assert poses_to_json(again, SIZE) == text
    assert read_poses(poses_to_json([], SIZE)).on(SIZE, SIZE) == ()


def test_pose_json_is_openposes_format_with_the_canvas() -> None:
    values = json.loads(poses_to_json(PEOPLE[1:2], SIZE))
    (person,) = values.pop("people")
    assert values == {"canvas_width": 640, "canvas_height": 400}
    lengths = {key: len(numbers) for key, numbers in person.items()}
    keys = ("pose_keypoints_2d", "hand_left_keypoints_2d", "hand_right_keypoints_2d", "face_keypoints_2d")
    assert lengths == dict(zip(keys, (54, 63, 63, 210), strict=True))
    assert person["pose_keypoints_2d"][:3] == [0, 0, 0] and person["pose_keypoints_2d"][5] == 1
    assert json.loads(poses_to_json(PEOPLE[:1], SIZE))["people"][0]["face_keypoints_2d"] is None


def test_a_pose_part_of_the_wrong_length_is_not_written() -> None:
    with pytest.raises(PoseError, match="has 17 joints: expected 18"):
        poses_to_json([Pose(joints(17))], SIZE)


@pytest.mark.parametrize("wrapped", [False, True], ids=["one picture", "a batch of one"])
def test_poses_are_stretched_from_their_canvas_to_the_size(wrapped: bool) -> None:
    picture = json.loads(poses_to_json(PEOPLE, SIZE))
    text = json.dumps([picture] if wrapped else picture)
    doubled = [person.scaled(2, 0.5) for person in PEOPLE]
    assert all(close(*pair, within=0.01) for pair in zip(read_poses(text).on((1280, 200), SIZE), doubled, strict=True))


def test_poses_without_canvas_are_pixels_or_shares() -> None:
    pixels = written({"pose_keypoints_2d": flat((320, 100, 0.8), *[None] * 17)})
    shares = written({"pose_keypoints_2d": flat((0.5, 0.25, 0.8), *[None] * 17)})
    with_canvas = written({"pose_keypoints_2d": flat((0.5, 0.25, 0.8), *[None] * 17)}, canvas_width=9, canvas_height=9)
    for text in (pixels, shares, with_canvas):
        (person,) = read_poses(text).on(SIZE, SIZE)
        assert person.body == ((320, 100), *[None] * 17)
    (halved,) = read_poses(pixels).on(SIZE, (1280, 400))
    assert halved.body[0] == (160, 100), "they are pixels of the picture that was sent"
    assert read_poses(shares).on(SIZE, (1280, 400)) == read_poses(shares).on(SIZE, SIZE)
    # If one coordinate of any person is above 1, all are pixels.
    hand = {"hand_left_keypoints_2d": flat((1, 1.5, 1), *[None] * 20)}
    body = json.loads(shares)["people"][0]
    first, second = read_poses(json.dumps({"people": [body, hand]})).on(SIZE, SIZE)
    assert first.body[0] == (0.5, 0.25) and second.left_hand and second.left_hand[0] == (1, 1.5)


def test_width_and_height_are_the_canvas_that_some_editors_write() -> None:
    joint = {"pose_keypoints_2d": flat((640, 360, 1), *[None] * 17)}
    for canvas in (
        {"width": 1280, "height": 720},
        {"canvas_width": 1280, "canvas_height": 720, "width": 3, "height": 3},
    ):
        (person,) = read_poses(written(joint, **canvas)).on(SIZE, (100, 100))
        assert person.body[0] == (320, 200)


def test_joints_of_confidence_zero_are_absent() -> None:
    rows = [(0, 0, 1), (30, 40, 0), (0, 0, 0), (30, 40, -1), (30, 40, 0.01), (30, 40, 2)]
    (person,) = read_poses(written({"pose_keypoints_2d": flat(*rows, *[None] * 12)})).on(SIZE, SIZE)
    assert person.body[:6] == ((0, 0), None, None, None, (30, 40), (30, 40))


@pytest.mark.parametrize("nothing", [None, [], [0.0] * 63], ids=["null", "empty", "all zero"])
def test_absent_pose_parts_are_none(nothing: Any) -> None:
    person = {
        "pose_keypoints_2d": None,
        "hand_left_keypoints_2d": nothing,
        "face_keypoints_2d": None,
        "person_id": [-1],
    }
    assert read_poses(written(person, version=1.3)).on(SIZE, SIZE) == (Pose((None,) * 18),)
    assert read_poses('{"people": [{}], "canvas_width": null, "canvas_height": null}').on(SIZE, SIZE) == (
        Pose((None,) * 18),
    )


def test_body_25_is_read_as_18_joints() -> None:
    limbs = ["nose", "neck", "r shoulder", "r elbow", "r wrist", "l shoulder", "l elbow", "l wrist"]
    legs = ["r hip", "r knee", "r ankle", "l hip", "l knee", "l ankle"]
    head = ["r eye", "l eye", "r ear", "l ear"]
    feet = ["l big toe", "l small toe", "l heel", "r big toe", "r small toe", "r heel"]
    names = [*limbs, "middle of the hips", *legs, *head, *feet]
    (person,) = read_poses(written({"pose_keypoints_2d": flat(*[(10 * i, 7, 1) for i in range(25)])})).on(SIZE, SIZE)
    assert [names[int(joint[0] / 10)] for joint in person.body if joint] == [*limbs, *legs, *head]


def test_dwpose_faces_are_read_without_pupils() -> None:
    (person,) = read_poses(written({"face_keypoints_2d": flat(*[(i, 7, 1) for i in range(68)])})).on(SIZE, SIZE)
    assert person.face == (*((float(i), 7.0) for i in range(68)), None, None)


BODY = flat(*[(8, 9, 1)] * 18)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"not JSON \(Expecting value at line 1, column 1\): expected"),
        ('{"people": [}', "not JSON"),
        ("nose: 3, 4", "not JSON"),
        (written({"pose_keypoints_2d": [float("nan"), *BODY[1:]]}), "number NaN: expected finite"),
        (written({"pose_keypoints_2d": [float("inf"), *BODY[1:]]}), "number Infinity: expected finite"),
        (written({"pose_keypoints_2d": [float("-inf"), *BODY[1:]]}), "number -Infinity: expected finite"),
        (written({"pose_keypoints_2d": BODY}).replace("8", "1e999", 1), "person 1's pose_keypoints_2d holds inf"),
        (written({"pose_keypoints_2d": BODY}).replace("8", "8" * 400, 1), "pose_keypoints_2d holds 888"),
        (written({"pose_keypoints_2d": BODY}).replace("8", "8" * 5000, 1), "a number that is too long"),
        (written({"pose_keypoints_2d": ["8", *BODY[1:]]}), "pose_keypoints_2d holds '8': expected 54 or 75 numbers"),
        (written({"pose_keypoints_2d": [True, *BODY[1:]]}), "holds True"),
        (written({"pose_keypoints_2d": [None, *BODY[1:]]}), "holds None"),
        (written({"pose_keypoints_2d": BODY[1:]}), "has 53 numbers: expected 54 or 75 numbers"),
        (written({"pose_keypoints_2d": BODY[3:]}), "has 51 numbers: expected 54 or 75 numbers"),
        (written({"pose_keypoints_2d": "8 9 1"}), "pose_keypoints_2d is '8 9 1': expected 54 or 75"),
        (written({"pose_keypoints_2d": {}}), "pose_keypoints_2d is {}: expected 54 or 75"),
        (written({"hand_left_keypoints_2d": BODY}), "hand_left_keypoints_2d has 54 numbers: expected 63 numbers"),
        (written({"hand_right_keypoints_2d": BODY}), "hand_right_keypoints_2d has 54 numbers: expected 63 numbers"),
        (written({"face_keypoints_2d": BODY}), "face_keypoints_2d has 54 numbers: expected 204 or 210 numbers"),
        ("{}", 'no "people": expected .* got the keys'),
        ('"people"', "no \"people\": expected .* got 'people'"),
        ("3", 'no "people": expected .* got 3'),
        ("[3]", 'no "people": expected .* got 3'),
        ("[]", "a list of 0: expected the poses of one picture"),
        (json.dumps([json.loads(written())] * 2), "a list of 2: expected the poses of one picture"),
        ('{"people": null}', '"people" in the pose JSON is None: expected a list'),
        ('{"people": [3]}', r'"people" in the pose JSON is \[3\]: expected a list'),
        (json.dumps({"people": [{}] * (MOST_PEOPLE + 1)}), "101 people: expected at most 100"),
        (written(canvas_width=640), "canvas_width and canvas_height are 640 and None: expected pixels"),
        (written(canvas_width=0, canvas_height=9), "are 0 and 9: expected pixels"),
        (written(canvas_width="640", canvas_height=9), "are '640' and 9: expected pixels"),
        (written(canvas_width=True, canvas_height=9), "are True and 9: expected pixels"),
        (written(canvas_width=1e12, canvas_height=9), "are 1000000000000.0 and 9: expected pixels"),
        (" " * (LONGEST_TEXT + 1), "1000001 characters long: expected at most 1000000"),
        ("[" * 500_000, "nested too deeply"),
        ('{"people":' * 90_000, "nested too deeply"),
        (written({"pose_keypoints_2d": [6401, *BODY[1:]]}), "10 canvas widths to the right and 0.0225 heights down"),
        (
            written({"pose_keypoints_2d": [8, -4001, *BODY[2:]]}),
            r"and -10 heights down \(those of the picture, 640×400, as it has no canvas_width\): expected",
        ),
        (written(canvas_width=1, canvas_height=1).replace("8", "11"), "11 canvas widths .* heights down: expected"),
        (written(width=640), "width and height are 640 and None: expected pixels"),
        (written(width=640, height="400"), "width and height are 640 and '400': expected pixels"),
    ],
    ids=lambda value: "",
)
def test_a_bad_pose_json_gets_one_sentence(text: str, message: str) -> None:
    with pytest.raises(PoseError, match=message) as caught:
        read_poses(text).on(SIZE, SIZE)
    sentence = str(caught.value)
    assert sentence.endswith(".") and "\n" not in sentence and len(sentence) < 300
    assert caught.value.__cause__ is None


def test_poses_at_the_bounds_are_allowed() -> None:
    assert len(read_poses(json.dumps({"people": [{}] * MOST_PEOPLE})).on(SIZE, SIZE)) == MOST_PEOPLE
    text = written()
    assert len(read_poses(text + " " * (LONGEST_TEXT - len(text))).on(SIZE, SIZE)) == 1
    edge = [640 * FARTHEST, -400 * FARTHEST, *BODY[2:]]
    assert read_poses(written({"pose_keypoints_2d": edge})).on(SIZE, SIZE)[0].body[0] == (6400, -4000)


def test_a_hundred_whole_people_fit_the_longest_pose_json() -> None:
    everybody = [Pose(joints(18), joints(21), joints(21), joints(70)).scaled(3.21, 3.21)] * MOST_PEOPLE
    assert len(poses_to_json(everybody, (2048, 2048))) < LONGEST_TEXT / 2
