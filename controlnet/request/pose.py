"""People's poses as joints in pixels, and as the JSON that OpenPose and pose editors read and write.

The format is OpenPose's output (Z. Cao et al., "OpenPose: Realtime Multi-Person 2D Pose Estimation using Part Affinity
Fields", PAMI 2019; "Output format" in its documentation) plus the canvas's size, as DWPose, controlnet_aux and the
editors of web UIs write it. Drawing them is in controlnet/maps/annotators/skeletons.py.
"""

import json
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, fields
from reprlib import repr as brief
from typing import Any, TypeGuard

Joint = tuple[float, float] | None
"""x and y in pixels, right and down from the picture's corner; None if the joint is not known."""

POSE_PARTS: dict[str, tuple[str, ...]] = {
    "body": (),
    "body_hands": ("hands",),
    "body_face": ("face",),
    "all": ("hands", "face"),
}
"""The choices of pose_parts: which parts of people are found and drawn in addition to the body."""

FOUND_PARTS, SENT_PARTS = "body", "all"
"""The pose_parts if none are sent: for people whom an annotator finds, and for those in a pose_json."""

LONGEST_TEXT = 1_000_000
"""Characters; a hundred people with hands and faces take less than half of it."""
MOST_PEOPLE = 100
FARTHEST = 10
"""Canvases: how far from its corner a joint may lie. Editors leave joints outside the canvas, but not that far."""
LARGEST_NUMBER = 1e9

_BODY_25 = (*range(8), *range(9, 19))
"""For each of the 18 joints its number in BODY_25, which adds a joint between the hips (8) and six of the feet."""
_LAYOUTS: dict[str, tuple[str, dict[int, Sequence[int | None]]]] = {
    "body": ("pose_keypoints_2d", {18: range(18), 25: _BODY_25}),
    "left_hand": ("hand_left_keypoints_2d", {21: range(21)}),
    "right_hand": ("hand_right_keypoints_2d", {21: range(21)}),
    # DWPose's faces lack the pupils.
    "face": ("face_keypoints_2d", {70: range(70), 68: (*range(68), None, None)}),
}
"""For each field of Pose: its key in the JSON, and for each accepted number of joints, the position of each joint."""

_SIZES = (("canvas_width", "canvas_height"), ("width", "height"))
"""Keys of the canvas's size. DWPose, controlnet_aux and web UIs write the first two, some editors the others."""


class PoseError(ValueError):
    """Poses that cannot be read or drawn."""


@dataclass(frozen=True)
class Pose:
    """One person. Left and right are the person's own."""

    body: tuple[Joint, ...]
    """OpenPose's 18: nose, neck, right shoulder, elbow and wrist, the left ones, right hip, knee and ankle, the left
    ones, right eye, left eye, right ear, left ear."""
    left_hand: tuple[Joint, ...] | None = None
    """21: wrist, then four per finger from the palm outwards, thumb first. None if the hand was not looked for or
    nothing of it was found."""
    right_hand: tuple[Joint, ...] | None = None
    face: tuple[Joint, ...] | None = None
    """70: the 68 landmarks of iBUG's 300-W, right pupil, left pupil; None as for hands."""

    def scaled(self, across: float, down: float) -> "Pose":
        """The same person with every x times `across` and every y times `down`."""
        parts = {field.name: getattr(self, field.name) for field in fields(self)}
        return Pose(**{name: part and tuple(_scaled(j, across, down) for j in part) for name, part in parts.items()})

    def only(self, parts: Collection[str]) -> "Pose":
        """The body with those of "hands" and "face" that `parts` names."""
        hands, face = "hands" in parts, "face" in parts
        left, right = (self.left_hand, self.right_hand) if hands else (None, None)
        return Pose(self.body, left_hand=left, right_hand=right, face=self.face if face else None)

    def joints(self) -> Iterator[tuple[float, float]]:
        """Every known joint of every part."""
        parts = (getattr(self, field.name) for field in fields(self))
        return (joint for part in parts for joint in part or () if joint)


@dataclass(frozen=True)
class SentPoses:
    """The people in a request's pose_json, before the size of the canvas is known."""

    people: tuple[Pose, ...]
    """In the JSON's own coordinates."""
    canvas: tuple[float, float] | None
    """Width and height that the coordinates refer to. None: those of the picture that was sent with them."""

    def on(self, size: tuple[int, int], picture: tuple[int, int]) -> tuple[Pose, ...]:
        """The people in pixels of a canvas of `size` (width, height). `picture` is the size of the sent picture.

        Raises PoseError if one is too far from the canvas.
        """
        canvas = self.canvas or picture
        people = tuple(person.scaled(size[0] / canvas[0], size[1] / canvas[1]) for person in self.people)
        for joint in (joint for person in people for joint in person.joints()):
            if any(abs(value) > FARTHEST * side for value, side in zip(joint, size, strict=True)):
                x, y = (value / side for value, side in zip(joint, size, strict=True))
                assumed = f" (those of the picture, {picture[0]}×{picture[1]}, as it has no canvas_width)"
                raise PoseError(
                    f"The pose JSON has a joint {x:.3g} canvas widths to the right and {y:.3g} heights down"
                    f"{'' if self.canvas else assumed}: expected joints on the canvas or at most {FARTHEST} canvases "
                    "away."
                )
        return people


def read_poses(text: str) -> SentPoses:
    """Read OpenPose's JSON: one picture's object with "people", or a list that holds only that.

    Coordinates that all lie within 0 to 1 are shares of the canvas. Otherwise they are pixels: of canvas_width ×
    canvas_height if the JSON has these, else of width × height, else of the picture that was sent with it, as OpenPose
    itself writes them. A joint whose confidence is 0 or less is absent. So is a part that is left out, null, empty, or
    has no joint. Bodies may have 18 joints or BODY_25's 25, faces 70 or DWPose's 68.

    Raises PoseError for everything else, with one sentence that says what was expected and what came.
    """
    picture = _one_picture(_load(text))
    people = tuple(_read_person(person, number) for number, person in enumerate(_people(picture), start=1))
    canvas = _canvas(picture)
    if all(0 <= value <= 1 for person in people for joint in person.joints() for value in joint):
        canvas = (1, 1)
    return SentPoses(people, canvas)


def poses_to_json(people: Sequence[Pose], size: tuple[int, int]) -> str:
    """People in pixels of a canvas of `size` (width, height) -> JSON that read_poses reads, to 0.01 pixels.

    Parts that are None are null, joints that are None have the confidence 0. (People who all stand within the canvas's
    first pixel would be read as shares of the canvas.)
    """
    rows = [
        {key: _flat(getattr(person, name), next(iter(layouts))) for name, (key, layouts) in _LAYOUTS.items()}
        for person in people
    ]
    return json.dumps({"people": rows, "canvas_width": size[0], "canvas_height": size[1]})


def _flat(part: Sequence[Joint] | None, count: int) -> list[float] | None:
    if part is None:
        return None
    if len(part) != count:
        raise PoseError(f"A part of a pose has {len(part)} joints: expected {count}.")
    return [value for joint in part for value in ((*(round(float(v), 2) for v in joint), 1.0) if joint else (0.0,) * 3)]


def _scaled(joint: Joint, across: float, down: float) -> Joint:
    return joint and (joint[0] * across, joint[1] * down)


def _load(text: str) -> Any:
    """The JSON's value, of any type."""
    if len(text) > LONGEST_TEXT:
        raise PoseError(f"The pose JSON is {len(text)} characters long: expected at most {LONGEST_TEXT}.")
    try:
        return json.loads(text, parse_constant=_refuse)
    except PoseError:
        raise
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        raise PoseError(
            f'The pose is not JSON ({error.msg} at {place}): expected {{"people": [...]}} as OpenPose writes it.'
        ) from None
    except RecursionError:
        raise PoseError(
            "The pose JSON is nested too deeply: expected lists of numbers as OpenPose writes them."
        ) from None
    except ValueError:  # a whole number of thousands of digits
        raise PoseError("The pose JSON has a number that is too long: expected coordinates in pixels.") from None


def _refuse(constant: str) -> None:
    raise PoseError(f"The pose JSON has the number {constant}: expected finite ones.")


def _one_picture(value: Any) -> dict[str, Any]:
    if _is_list(value):
        if len(value) != 1:
            raise PoseError(f"The pose JSON is a list of {len(value)}: expected the poses of one picture.")
        (value,) = value
    if not _is_object(value) or "people" not in value:
        got = f"the keys {brief(sorted(value))}" if _is_object(value) else brief(value)
        raise PoseError(
            f'The pose JSON has no "people": expected {{"people": [...]}} as OpenPose writes it, got {got}.'
        )
    return value


def _people(picture: dict[str, Any]) -> list[dict[str, Any]]:
    people = picture["people"]
    if not _is_list(people) or not all(_is_object(person) for person in people):
        raise PoseError(f'"people" in the pose JSON is {brief(people)}: expected a list with one object per person.')
    if len(people) > MOST_PEOPLE:
        raise PoseError(f"The pose JSON has {len(people)} people: expected at most {MOST_PEOPLE}.")
    return people


def _canvas(picture: dict[str, Any]) -> tuple[float, float] | None:
    """Width and height, or None if the JSON names neither."""
    for names in _SIZES:
        width, height = (picture.get(name) for name in names)
        if width is None and height is None:
            continue
        if not (_is_number(width) and _is_number(height) and width >= 1 and height >= 1):
            raise PoseError(
                f"The pose JSON's {' and '.join(names)} are {brief(width)} and {brief(height)}: expected pixels, at "
                "least 1, or neither of the two."
            )
        return width, height
    return None


def _is_list(value: Any) -> TypeGuard[list[Any]]:
    return isinstance(value, list)


def _is_object(value: Any) -> TypeGuard[dict[str, Any]]:
    return isinstance(value, dict)


def _is_number(value: Any) -> TypeGuard[float]:
    # Not isinstance: true would pass as 1. The comparison holds for whole numbers too long for a float.
    return type(value) in (int, float) and abs(value) <= LARGEST_NUMBER


def _read_person(person: dict[str, Any], number: int) -> Pose:
    """The person in the JSON's own coordinates. `number` tells them apart in errors, counted from 1."""
    parts: dict[str, Any] = {
        name: _read_part(person.get(key), layouts, f"person {number}'s {key}")
        for name, (key, layouts) in _LAYOUTS.items()
    }
    return Pose(**(parts | {"body": parts["body"] or (None,) * 18}))


def _read_part(values: Any, layouts: dict[int, Sequence[int | None]], what: str) -> tuple[Joint, ...] | None:
    if values is None or values == []:
        return None
    wanted = " or ".join(str(3 * count) for count in sorted(layouts))
    expected = f"expected {wanted} numbers, x, y and confidence of each joint"
    if not _is_list(values):
        raise PoseError(f"In the pose JSON {what} is {brief(values)}: {expected}.")
    if len(values) % 3 or len(values) // 3 not in layouts:
        raise PoseError(f"In the pose JSON {what} has {len(values)} numbers: {expected}.")
    for value in values:
        if not _is_number(value):
            raise PoseError(f"In the pose JSON {what} holds {brief(value)}: {expected}.")
    joints = [(float(x), float(y)) if sure > 0 else None for x, y, sure in zip(*[iter(values)] * 3, strict=True)]
    part = tuple(None if place is None else joints[place] for place in layouts[len(joints)])
    return part if any(part) else None
