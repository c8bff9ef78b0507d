"""People's skeletons as OpenPose draws them. Z. Cao et al., "OpenPose: Realtime Multi-Person 2D Pose Estimation using
Part Affinity Fields", PAMI 2019.

OpenPose's own weights are for non-commercial use. So people are found by RT-DETR (Y. Zhao et al., "DETRs Beat YOLOs on
Real-time Object Detection", CVPR 2024) and posed by ViTPose (Y. Xu et al., "ViTPose: Simple Vision Transformer
Baselines for Human Pose Estimation", NeurIPS 2022), both Apache-2.0; only the drawing is OpenPose's.
"""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from controlnet.models.loading import WeightsMismatch, load_pretrained
from controlnet.request.pose import Joint, Pose

from .network import device_of, load_processor
from .skeletons import PoseAnnotator

PERSON = "person"
"""The detector's name of the class."""
PERSON_THRESHOLD = 0.5
"""Least score of a detected person."""
JOINT_THRESHOLD = 0.3
"""Least score of a joint. Less sure ones are left out of the skeleton."""
SMALLEST_PERSON = 4
"""Pixels: a box that is narrower or lower holds no readable pose."""

COCO_OF_OPENPOSE = (0, None, 6, 8, 10, 5, 7, 9, 12, 14, 16, 11, 13, 15, 2, 1, 4, 3)
"""For each of OpenPose's 18 joints its number among COCO's 17: nose, neck, right shoulder, elbow and wrist, the left
ones, right hip, knee and ankle, the left ones, right eye, left eye, right ear, left ear. COCO has no neck."""
NECK = COCO_OF_OPENPOSE.index(None)
COCO_SHOULDERS = (5, 6)


def load(detector_folder: Path, pose_folder: Path, device: torch.device) -> PoseAnnotator:
    """Raises WeightsMismatch if the tensors are not the models', or if the detector knows no people."""
    from transformers import RTDetrForObjectDetection, VitPoseForPoseEstimation

    detector = load_pretrained(RTDetrForObjectDetection, detector_folder, device)
    pose_model = load_pretrained(VitPoseForPoseEstimation, pose_folder, device)
    if PERSON not in detector.config.id2label.values():
        raise WeightsMismatch(f'annotator/person_detector has no class "{PERSON}": take a detector trained on COCO.')
    processors = load_processor(detector_folder), load_processor(pose_folder)
    return PoseAnnotator(partial(find_poses, detector, processors[0], pose_model, processors[1]))


def find_poses(
    detector: Any, detector_processor: Any, pose_model: Any, pose_processor: Any, image: Image.Image
) -> list[Pose]:
    """RGB picture -> the bodies of the people in it, in its pixels. The models' processors choose their resolutions."""
    picture = image.convert("RGB")
    boxes = find_people(detector, detector_processor, picture)
    if not len(boxes):
        return []
    joints, scores = find_joints(pose_model, pose_processor, picture, boxes)
    return [Pose(tuple(openpose_joints(*person))) for person in zip(joints, scores, strict=True)]


def find_people(detector: Any, processor: Any, image: Image.Image) -> np.ndarray:
    """RGB picture -> boxes of people in pixels, float32 [people, 4] as x, y, width, height; the surest first."""
    inputs = processor(images=image, return_tensors="pt").to(device_of(detector))
    with torch.inference_mode():
        outputs = detector(**inputs)
    (found,) = processor.post_process_object_detection(
        outputs, threshold=PERSON_THRESHOLD, target_sizes=[(image.height, image.width)]
    )
    people = [detector.config.id2label[label] == PERSON for label in found["labels"].tolist()]
    corners = found["boxes"].float().cpu().numpy()[np.array(people, bool)]
    boxes = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1)
    return boxes[(boxes[:, 2:] >= SMALLEST_PERSON).all(axis=1)]


def find_joints(
    pose_model: Any, processor: Any, image: Image.Image, boxes: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Boxes as find_people gives them -> COCO joints in pixels, [people, 17, 2], and their scores, [people, 17]."""
    inputs = processor(images=image, boxes=[boxes], return_tensors="pt").to(device_of(pose_model))
    with torch.inference_mode():
        outputs = pose_model(**inputs)
    (people,) = processor.post_process_pose_estimation(outputs, boxes=[boxes])
    joints = np.stack([person["keypoints"].numpy() for person in people])
    return joints, np.stack([person["scores"].numpy() for person in people])


def openpose_joints(joints: np.ndarray, scores: np.ndarray) -> list[Joint]:
    """One person's COCO joints [17, 2] and scores [17] -> OpenPose's 18 joints as (x, y), None if unsure.

    The neck is the point halfway between the shoulders, and unsure if either shoulder is.
    """
    sure = [
        (float(joint[0]), float(joint[1])) if score >= JOINT_THRESHOLD else None
        for joint, score in zip(joints, scores, strict=True)
    ]
    person = [None if number is None else sure[number] for number in COCO_OF_OPENPOSE]
    left, right = (sure[number] for number in COCO_SHOULDERS)
    if left and right:
        person[NECK] = ((left[0] + right[0]) / 2, (left[1] + right[1]) / 2)
    return person
