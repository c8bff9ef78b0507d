"""People's bodies, hands and faces by OpenPose's own networks. Z. Cao et al., "OpenPose: Realtime Multi-Person 2D Pose
Estimation using Part Affinity Fields", PAMI 2019; T. Simon et al., "Hand Keypoint Detection in Single Images using
Multiview Bootstrapping", CVPR 2017. Their weights are CMU's and for non-commercial use only, so a bundle has this
annotator as an option and never by default.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image

from controlnet.models.loading import load_network
from controlnet.request.pose import Joint, Pose

from . import TRAINED_SHORT_SIDE
from .network import LONGEST_ASPECT, private_pixels, quiet_controlnet_aux
from .skeletons import PoseAnnotator

with quiet_controlnet_aux():
    from controlnet_aux.open_pose.body import Body, BodyResult, Keypoint
    from controlnet_aux.open_pose.face import Face, FaceNet
    from controlnet_aux.open_pose.hand import Hand
    from controlnet_aux.open_pose.model import bodypose_model, handpose_model
    from controlnet_aux.open_pose.util import faceDetect, handDetect

BODY_FILE, HAND_FILE, FACE_FILE = "body_pose_model.pth", "hand_pose_model.pth", "facenet.pth"
FACE_JOINTS = 70
"""The face network's last map, after these, is the background's."""
FACE_THRESHOLD = 0.05
"""controlnet_aux's: the least height of a joint's map."""
GREY = (128, 128, 128)
"""What the networks were trained to see beyond a picture's border."""


def load(folder: Path, device: torch.device) -> PoseAnnotator:
    """Raises WeightsMismatch if a file's tensors do not fit its network. Only the face's file must have no others."""
    body = load_network(bodypose_model, folder / BODY_FILE, device, tensors_of=in_blocks(bodypose_model))
    hand = load_network(handpose_model, folder / HAND_FILE, device, tensors_of=in_blocks(handpose_model))
    face = load_network(FaceNet, folder / FACE_FILE, device)
    return PoseAnnotator(
        partial(find_bodies, body), {"hands": partial(add_hands, hand), "face": partial(add_face, face)}
    )


def in_blocks(build: Callable[[], torch.nn.Module]) -> Callable[[Mapping[str, torch.Tensor]], dict[str, torch.Tensor]]:
    """A function that renames the tensors of a published file: "conv1_1.weight" is "model0.conv1_1.weight" in the
    network. It leaves out tensors that the network does not have, as controlnet_aux does."""
    with torch.device("meta"):
        names = {name.partition(".")[2]: name for name in build().state_dict()}
    return lambda tensors: {names[name]: tensor for name, tensor in tensors.items() if name in names}


def find_bodies(network: torch.nn.Module, image: Image.Image, short_side: int = TRAINED_SHORT_SIDE) -> list[Pose]:
    """RGB picture -> the bodies in it, in its pixels. short_side is the private resolution, in pixels. If the
    picture already has it, the bodies are those of controlnet_aux's OpenposeDetector."""
    view = _View(image, short_side)
    candidates, people = _estimator(Body, network)(view.pixels)
    bodies = Body.format_body_result(candidates, people)
    return [view.restore(Pose(view.joints(body.keypoints))) for body in bodies]


def add_hands(network: torch.nn.Module, image: Image.Image, person: Pose, short_side: int = TRAINED_SHORT_SIDE) -> Pose:
    """The person with the hands that are found beyond its wrists. A forearm shorter than about 13 private pixels
    gets no hand."""
    view = _View(image, short_side)
    hands: dict[str, Any] = {"left_hand": None, "right_hand": None}
    for x, y, side, is_left in handDetect(view.body_of(person), view.pixels):
        peaks = _estimator(Hand, network)(view.pixels[y : y + side, x : x + side]).tolist()
        # The class returns 0 for a joint that it did not find.
        found = view.joints(None if 0 in peak else Keypoint(peak[0] + x, peak[1] + y) for peak in peaks)
        hands["left_hand" if is_left else "right_hand"] = found if any(found) else None
    restored = view.restore(replace(person, **hands))
    return replace(person, left_hand=restored.left_hand, right_hand=restored.right_hand)


def add_face(network: torch.nn.Module, image: Image.Image, person: Pose, short_side: int = TRAINED_SHORT_SIDE) -> Pose:
    """The person with the face that is found around its nose.

    controlnet_aux drops the joints that it does not find, which shifts the numbers of the others, and draws one more
    for the background; here each keeps its number.
    """
    view = _View(image, short_side)
    box = faceDetect(view.body_of(person), view.pixels)
    if box is None:
        return person
    x, y, side = box
    heat = _estimator(Face, network)(view.pixels[y : y + side, x : x + side])[:FACE_JOINTS]
    flat = heat.reshape(FACE_JOINTS, -1)
    rows, columns = np.divmod(flat.argmax(axis=1), heat.shape[2])
    seen = flat.max(axis=1) > FACE_THRESHOLD
    found = view.joints(
        Keypoint(float(column + x), float(row + y)) if sure else None
        for column, row, sure in zip(columns, rows, seen, strict=True)
    )
    return replace(person, face=view.restore(Pose(person.body, face=found)).face) if any(found) else person


class _View:
    """A picture as the networks see it, and conversions between its pixels and the picture's."""

    def __init__(self, image: Image.Image, short_side: int) -> None:
        pixels = private_pixels(image, short_side, 1)
        self.height, self.width = pixels.shape[:2]
        self.across, self.down = image.width / self.width, image.height / self.height
        # For a longer strip the class would make maps one cell wide, which it cannot handle.
        least = max(pixels.shape[:2]) // LONGEST_ASPECT
        right, below = max(0, least - self.width), max(0, least - self.height)
        padded = cv2.copyMakeBorder(pixels, 0, below, 0, right, cv2.BORDER_CONSTANT, value=GREY)
        self.pixels = padded[:, :, ::-1].copy()  # the networks were trained on blue, green, red

    def joints(self, keypoints: Iterable[Keypoint | None]) -> tuple[Joint, ...]:
        """The joints inside the picture, not in its padding, in private pixels."""
        return tuple(
            (float(k.x), float(k.y)) if k and 0 <= k.x < self.width and 0 <= k.y < self.height else None
            for k in keypoints
        )

    def restore(self, person: Pose) -> Pose:
        """Private pixels -> the picture's."""
        return person.scaled(self.across, self.down)

    def body_of(self, person: Pose) -> BodyResult:
        """The person's body in private pixels, in controlnet_aux's form."""
        body: Any = [joint and Keypoint(*joint) for joint in person.scaled(1 / self.across, 1 / self.down).body]
        return BodyResult(body, 0.0, 0)


def _estimator(estimator_class: Any, network: torch.nn.Module) -> Any:
    """controlnet_aux's Body, Hand or Face around a loaded network. Its own loading takes no device and ignores
    unknown tensors."""
    made = estimator_class.__new__(estimator_class)
    made.model = network
    return made
