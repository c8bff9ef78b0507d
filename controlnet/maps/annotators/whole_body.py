"""Geometry of DWPose: pictures in the form that its two networks take, and what their outputs mean.

Z. Yang et al., "Effective Whole-body Pose Estimation with Two-stages Distillation", ICCV 2023 workshops. People are
found by YOLOX (Z. Ge et al., "YOLOX: Exceeding YOLO Series in 2021", arXiv 2107.08430). Their joints are read from
SimCC's two vectors for each joint, one of x and one of y (Y. Li et al., "SimCC", ECCV 2022).
"""

from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torchvision.ops import nms

from controlnet.request.pose import Joint, Pose

from .openpose import JOINT_THRESHOLD, SMALLEST_PERSON, openpose_joints

DETECTOR_SIDE = 640
STRIDES = (8, 16, 32)
CELLS = sum((DETECTOR_SIDE // stride) ** 2 for stride in STRIDES)
"""8400: the places at which YOLOX predicts a box."""
VALUES = 85
"""For each cell: the box's centre, width and height, how sure it is of a thing, and of each of COCO's 80 classes."""
GREY = 114
"""What YOLOX was trained to see beside a picture that is not square."""
CANDIDATE, OVERLAP, PERSON_THRESHOLD = 0.1, 0.45, 0.3
"""Least score of a box before those of one person are merged; the overlap from which they are; the least score after.
The authors' values."""

POSE_WIDTH, POSE_HEIGHT = 288, 384
JOINTS = 133
"""COCO-WholeBody: 17 of the body, 6 of the feet, 68 of the face, 21 of the left hand and 21 of the right one."""
BINS = 2
"""SimCC's bins for each pixel of the crop."""
MARGIN = 1.25
"""How much larger than a person's box its crop is, on each side."""
MEAN, DEVIATION = np.array(((123.675, 116.28, 103.53), (58.395, 57.12, 57.375)), np.float32)
"""ImageNet's, RGB."""
BODY, FACE, LEFT_HAND, RIGHT_HAND = slice(0, 17), slice(23, 91), slice(91, 112), slice(112, 133)
EYES = (2, 1)
"""The right eye and the left eye, which are the pupils of a face."""


def letterbox(pixels: np.ndarray) -> tuple[np.ndarray, float]:
    """RGB [height, width, 3], 0–255 -> what YOLOX sees, [1, 3, 640, 640], and its scale: the picture at the top left.

    YOLOX was trained on blue, green, red.
    """
    height, width = pixels.shape[:2]
    scale = min(DETECTOR_SIDE / height, DETECTOR_SIDE / width)
    size = max(1, int(width * scale)), max(1, int(height * scale))
    square = np.full((DETECTOR_SIDE, DETECTOR_SIDE, 3), GREY, np.uint8)
    square[: size[1], : size[0]] = cv2.resize(pixels, size, interpolation=cv2.INTER_LINEAR)
    return np.ascontiguousarray(square[:, :, ::-1].transpose(2, 0, 1)[None], np.float32), scale


def people_in(cells: np.ndarray, scale: float) -> np.ndarray:
    """YOLOX's output [8400, 85] -> the people's boxes in the picture's pixels, [people, 4], the surest first.

    Boxes are left, top, right, bottom. `scale` is letterbox's.
    """
    corners = np.concatenate([
        np.stack(np.meshgrid(*[np.arange(DETECTOR_SIDE // stride)] * 2), axis=2).reshape(-1, 2) for stride in STRIDES
    ])  # fmt: skip
    strides = np.repeat(STRIDES, [(DETECTOR_SIDE // stride) ** 2 for stride in STRIDES])[:, None]
    centres = (cells[:, :2] + corners) * strides
    halves = np.exp(cells[:, 2:4]) * strides / 2
    scores = cells[:, 4] * cells[:, 5]  # the first class is the person
    likely = scores > CANDIDATE
    boxes = np.concatenate([centres - halves, centres + halves], axis=1)[likely] / scale
    boxes, scores = torch.from_numpy(boxes.astype(np.float32)), torch.from_numpy(scores[likely].astype(np.float32))
    kept = nms(boxes, scores, OVERLAP)
    found = boxes[kept[scores[kept] > PERSON_THRESHOLD]].numpy()
    return found[((found[:, 2:] - found[:, :2]) >= SMALLEST_PERSON).all(axis=1)]


@dataclass(frozen=True)
class Crop:
    """The part of a picture in which a person's pose is looked for. It has the aspect ratio of the network's input."""

    left: float
    top: float
    scale: float
    """Pixels of the picture for each pixel of the network's input."""

    @classmethod
    def around(cls, box: np.ndarray) -> "Crop":
        """Around a person's box, with a margin."""
        left, top, right, bottom = (float(side) for side in box)
        scale = MARGIN * max((right - left) / POSE_WIDTH, (bottom - top) / POSE_HEIGHT)
        return cls((left + right - scale * POSE_WIDTH) / 2, (top + bottom - scale * POSE_HEIGHT) / 2, scale)

    def pixels(self, picture: np.ndarray) -> np.ndarray:
        """RGB [height, width, 3], 0–255 -> what the pose network sees, [1, 3, 384, 288]; black beyond the picture."""
        matrix = np.array([[1, 0, -self.left], [0, 1, -self.top]]) / self.scale
        seen = cv2.warpAffine(picture, matrix, (POSE_WIDTH, POSE_HEIGHT), flags=cv2.INTER_LINEAR)
        return ((seen.astype(np.float32) - MEAN) / DEVIATION).transpose(2, 0, 1)[None]

    def joints(self, across: np.ndarray, down: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """SimCC's vectors [133, 576] and [133, 768] -> the joints in the picture's pixels, [133, 2], and their scores.

        A joint's score is the smaller of its two maxima, as for the authors. (rtmlib takes the mean of the two, for
        which the threshold would be another.)
        """
        places = np.stack([across.argmax(axis=1), down.argmax(axis=1)], axis=1) / BINS
        return places * self.scale + (self.left, self.top), np.minimum(across.max(axis=1), down.max(axis=1))


def whole_pose(joints: np.ndarray, scores: np.ndarray) -> Pose:
    """One person's joints [133, 2] and scores [133] -> its body, hands and face, without joints that are unsure.

    Feet are left out: OpenPose's drawings, which the ControlNet was trained on, have none.
    """
    sure: list[Joint] = [
        (float(x), float(y)) if score >= JOINT_THRESHOLD else None for (x, y), score in zip(joints, scores, strict=True)
    ]
    body = openpose_joints(joints[BODY], scores[BODY])
    left, right, face = (tuple(sure[part]) for part in (LEFT_HAND, RIGHT_HAND, FACE))
    pupils = tuple(sure[eye] for eye in EYES)
    return Pose(
        tuple(body),
        left_hand=left if any(left) else None,
        right_hand=right if any(right) else None,
        face=(*face, *pupils) if any(face) else None,
    )
