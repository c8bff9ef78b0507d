"""Control maps of people's poses, drawn as OpenPose draws them, and what all annotators that find poses share.

The drawings equal those of controlnet_aux 0.0.10 pixel by pixel, because the ControlNets were trained on such maps.
"""

import colorsys
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np
from PIL import Image

from controlnet.request.pose import FOUND_PARTS, POSE_PARTS, Joint, Pose

from . import TRAINED_SHORT_SIDE
from .network import private_size, restore_exact

Colour = tuple[int, int, int]


def _hues(count: int) -> list[Colour]:
    """`count` pure RGB colours around the colour wheel, from red."""
    wheel = (colorsys.hsv_to_rgb(i / count, 1, 1) for i in range(count))
    return [(round(red * 255), round(green * 255), round(blue * 255)) for red, green, blue in wheel]


BODY_COLOURS = _hues(18)
"""Of the joints of a body. Its limbs take the first 17, darker."""
LIMBS = [
    *[(1, 2), (1, 5), (2, 3), (3, 4), (5, 6), (6, 7)],  # the arms, from the neck
    *[(1, 8), (8, 9), (9, 10), (1, 11), (11, 12), (12, 13)],  # the legs, from the neck
    *[(1, 0), (0, 14), (14, 16), (0, 15), (15, 17)],  # the head
]
"""Pairs of a body's joints that are connected, in the order in which they are drawn."""
BONES = [(0 if tip == knuckle else tip - 1, tip) for knuckle in range(1, 21, 4) for tip in range(knuckle, knuckle + 4)]
"""Pairs of a hand's joints that are connected: from the wrist along each finger, the thumb first."""
BONE_COLOURS = _hues(len(BONES))
HAND_COLOUR = (0, 0, 255)
FACE_COLOUR = (255, 255, 255)
LIMB_HALF_WIDTH = 4
BONE_WIDTH = 2
JOINT_RADIUS = 4
FACE_RADIUS = 3


PEOPLE = "people"
"""Key in the info of a map that a PoseAnnotator has drawn. Its value is the people as a tuple of Pose, and the (width,
height) of the picture that they were found in."""


@dataclass(frozen=True)
class PoseAnnotator:
    """An annotator that can also say which poses it draws. Both calls leave the picture untouched."""

    find: Callable[[Image.Image], list[Pose]]
    """RGB picture -> the bodies of the people in it, in its pixels."""
    more: Mapping[str, Callable[[Image.Image, Pose], Pose]] = field(default_factory=dict)
    """For "hands" and "face", if it finds them: the picture and a person -> the person with those."""
    whole: bool = False
    """Whether `find` finds hands and faces too, all at once."""

    def __call__(self, image: Image.Image, pose_parts: str = FOUND_PARTS) -> Image.Image:
        """RGB picture -> the skeletons of the people in it, on black. Its info has PEOPLE."""
        people = self.poses(image, pose_parts)
        drawn = draw_poses(people, image.size, pose_parts)
        drawn.info[PEOPLE] = (tuple(people), image.size)
        return drawn

    def poses(self, image: Image.Image, pose_parts: str = FOUND_PARTS) -> list[Pose]:
        """RGB picture -> the people in it, in its pixels, with the parts of POSE_PARTS[pose_parts] and no others.

        These must be in `more`, unless `find` finds them.
        """
        people, parts = self.find(image), POSE_PARTS[pose_parts]
        if self.whole:
            return [person.only(parts) for person in people]
        for part in parts:
            people = [self.more[part](image, person) for person in people]
        return people


def draw_poses(
    people: Sequence[Pose], size: tuple[int, int], pose_parts: str = FOUND_PARTS, line_width: float = 1.0
) -> Image.Image:
    """People in pixels of the (width, height) `size` -> an RGB control map of that size: OpenPose's drawing on black.

    The colours are OpenPose's, and lines and dots have a fixed width. It is meant for a short side of 512, so the poses
    are drawn at that one, and the drawing is resized to `size` without blending colours. `pose_parts` is a key of
    POSE_PARTS. `line_width` is a factor for limbs and joints of bodies.
    """
    return Image.fromarray(restore_exact(_drawing(people, size, pose_parts, line_width), size))


def count_shown(people: Sequence[Pose], size: tuple[int, int], pose_parts: str, line_width: float = 1.0) -> int:
    """How many of the people draw_poses shows: at least a pixel of each of them lies on the map."""
    return sum(bool(_drawing([person], size, pose_parts, line_width).any()) for person in people)


def _drawing(people: Sequence[Pose], size: tuple[int, int], pose_parts: str, line_width: float) -> np.ndarray:
    """The drawing of draw_poses before it is resized to `size`: uint8 [height, width, 3]."""
    parts = POSE_PARTS[pose_parts]
    width, height = private_size(size, TRAINED_SHORT_SIDE, 1)
    canvas = np.zeros((height, width, 3), np.uint8)

    def on_canvas(joints: Sequence[Joint] | None) -> list[Joint]:
        return [joint and (joint[0] / size[0] * width, joint[1] / size[1] * height) for joint in joints or ()]

    for person in people:
        _draw_body(canvas, on_canvas(person.body), line_width)
        if "hands" in parts:
            _draw_hand(canvas, on_canvas(person.left_hand))
            _draw_hand(canvas, on_canvas(person.right_hand))
        if "face" in parts:
            _draw_face(canvas, on_canvas(person.face))
    return canvas


def draw_skeletons(people: Sequence[Sequence[Joint]], size: tuple[int, int]) -> Image.Image:
    """The 18 joints of each person's body, in pixels of `size` -> their control map, as draw_poses draws it."""
    return draw_poses([Pose(tuple(body)) for body in people], size)


def _draw_body(canvas: np.ndarray, joints: Sequence[Joint], line_width: float) -> None:
    """Draw the limbs as ellipses and the joints as dots. The 18 joints are in the canvas's pixels."""
    half_width, radius = round(LIMB_HALF_WIDTH * line_width), round(JOINT_RADIUS * line_width)
    for (start, end), (red, green, blue) in zip(LIMBS, BODY_COLOURS, strict=False):
        one, other = joints[start], joints[end]
        if one and other:
            across, down = one[0] - other[0], one[1] - other[1]
            middle = int((one[0] + other[0]) / 2), int((one[1] + other[1]) / 2)
            axes = int((across**2 + down**2) ** 0.5 / 2), half_width
            angle = int(math.degrees(math.atan2(down, across)))
            outline = np.array(cv2.ellipse2Poly(middle, axes, angle, 0, 360, 1))
            cv2.fillConvexPoly(canvas, outline, (red * 3 // 5, green * 3 // 5, blue * 3 // 5))
    for joint, colour in zip(joints, BODY_COLOURS, strict=True):
        if joint:
            cv2.circle(canvas, (int(joint[0]), int(joint[1])), radius, colour, cv2.FILLED)


def _draw_hand(canvas: np.ndarray, joints: Sequence[Joint]) -> None:
    """Draw the bones as lines and the joints as dots. The 21 joints are in the canvas's pixels; none draw nothing."""
    points = _drawable(joints)
    if not points:
        return
    for (start, end), colour in zip(BONES, BONE_COLOURS, strict=True):
        one, other = points[start], points[end]
        if one and other:
            cv2.line(canvas, one, other, colour, BONE_WIDTH)
    for point in filter(None, points):
        cv2.circle(canvas, point, JOINT_RADIUS, HAND_COLOUR, cv2.FILLED)


def _draw_face(canvas: np.ndarray, joints: Sequence[Joint]) -> None:
    """Draw the points of a face, in the canvas's pixels, as dots."""
    for point in filter(None, _drawable(joints)):
        cv2.circle(canvas, point, FACE_RADIUS, FACE_COLOUR, cv2.FILLED)


def _drawable(joints: Sequence[Joint]) -> list[tuple[int, int] | None]:
    """Joints of a hand or face in whole pixels. None for those that are missing, or left of or above the pixel (1, 1):
    controlnet_aux takes coordinates up to 0 for missing ones."""
    points = [joint and (int(joint[0]), int(joint[1])) for joint in joints]
    return [point if point and min(point) > 0 else None for point in points]
