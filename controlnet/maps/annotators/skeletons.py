"""Control maps of people's poses, drawn as OpenPose draws them, and what all annotators that find poses share."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from controlnet.request.pose import FOUND_PARTS, POSE_PARTS, Joint, Pose

from . import TRAINED_SHORT_SIDE
from .network import private_size, quiet_controlnet_aux, restore_exact

with quiet_controlnet_aux():
    from controlnet_aux.open_pose import BodyResult, Keypoint, PoseResult
    from controlnet_aux.open_pose import draw_poses as draw_keypoints


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

    def __call__(self, image: Image.Image, pose_parts: str = FOUND_PARTS) -> Image.Image:
        """RGB picture -> the skeletons of the people in it, on black. Its info has PEOPLE."""
        people = self.poses(image, pose_parts)
        drawn = draw_poses(people, image.size, pose_parts)
        drawn.info[PEOPLE] = (tuple(people), image.size)
        return drawn

    def poses(self, image: Image.Image, pose_parts: str = FOUND_PARTS) -> list[Pose]:
        """RGB picture -> the people in it, in its pixels, with the parts of POSE_PARTS[pose_parts], all in `more`."""
        people = self.find(image)
        for part in POSE_PARTS[pose_parts]:
            people = [self.more[part](image, person) for person in people]
        return people


def draw_poses(people: Sequence[Pose], size: tuple[int, int], pose_parts: str = FOUND_PARTS) -> Image.Image:
    """People in pixels of the (width, height) `size` -> an RGB control map of that size: OpenPose's drawing on black.

    controlnet_aux draws, in OpenPose's colours and with lines and dots of a fixed width. It draws at a short side of
    512, for which that width is meant, and the drawing is resized to `size` without blending colours. `pose_parts` is a
    key of POSE_PARTS.
    """
    parts = POSE_PARTS[pose_parts]
    width, height = private_size(size, TRAINED_SHORT_SIDE, 1)
    results = [_as_result(person, size) for person in people]
    drawn = draw_keypoints(results, height, width, draw_hand="hands" in parts, draw_face="face" in parts)
    return Image.fromarray(restore_exact(drawn, size))


def draw_skeletons(people: Sequence[Sequence[Joint]], size: tuple[int, int]) -> Image.Image:
    """The 18 joints of each person's body, in pixels of `size` -> their control map, as draw_poses draws it."""
    return draw_poses([Pose(tuple(body)) for body in people], size)


def _as_result(person: Pose, size: tuple[int, int]) -> PoseResult:
    """A person in pixels of `size` in controlnet_aux's form, whose coordinates are shares of the picture."""

    def keypoint(joint: Joint) -> Keypoint | None:
        return joint and Keypoint(joint[0] / size[0], joint[1] / size[1])

    def keypoints(part: Sequence[Joint] | None) -> list[Keypoint] | None:
        # In hands and faces controlnet_aux takes no None, but skips what lies outside the picture.
        return [keypoint(joint) or Keypoint(-1, -1) for joint in part] if part else None

    # Any, because controlnet_aux's annotation leaves out the None that it handles in bodies.
    body: Any = [keypoint(joint) for joint in person.body]
    left, right, face = (keypoints(part) for part in (person.left_hand, person.right_hand, person.face))
    return PoseResult(BodyResult(body, 0.0, 0), left, right, face)
