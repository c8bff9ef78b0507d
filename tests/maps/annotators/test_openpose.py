"""People found by RT-DETR and ViTPose, and their skeletons as controlnet_aux draws them."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from annotator_weights import make_part
from PIL import Image
from skimage import data

from controlnet.maps.annotators import ANNOTATORS, openpose, skeletons
from controlnet.maps.annotators.network import quiet_controlnet_aux
from controlnet.models.loading import WeightsMismatch

with quiet_controlnet_aux():
    from controlnet_aux.open_pose import BodyResult, Keypoint, PoseResult, draw_poses

COCO = {
    "nose": (260, 80), "left eye": (270, 70), "right eye": (250, 70), "left ear": (285, 76), "right ear": (235, 76),
    "left shoulder": (330, 150), "right shoulder": (190, 150), "left elbow": (360, 240), "right elbow": (160, 240),
    "left wrist": (380, 330), "right wrist": (140, 330), "left hip": (300, 340), "right hip": (220, 340),
    "left knee": (305, 430), "right knee": (215, 430), "left ankle": (310, 500), "right ankle": (210, 500),
}  # fmt: skip
OPENPOSE_ORDER = [
    "nose", "neck", "right shoulder", "right elbow", "right wrist", "left shoulder", "left elbow", "left wrist",
    "right hip", "right knee", "right ankle", "left hip", "left knee", "left ankle", "right eye", "left eye",
    "right ear", "left ear",
]  # fmt: skip
JOINTS = np.array(list(COCO.values()), float)


def test_coco_joints_become_openpose_joints() -> None:
    person = openpose.openpose_joints(JOINTS, np.ones(17))
    assert person == [{**COCO, "neck": (260, 150)}[name] for name in OPENPOSE_ORDER]


def test_unsure_joints_are_dropped_and_the_neck_needs_both_shoulders() -> None:
    scores = np.ones(17)
    scores[list(COCO).index("left shoulder")] = 0.1
    person = openpose.openpose_joints(JOINTS, scores)
    assert [OPENPOSE_ORDER[i] for i, joint in enumerate(person) if joint is None] == ["neck", "left shoulder"]


def test_skeletons_equal_the_drawing_of_controlnet_aux() -> None:
    person = openpose.openpose_joints(JOINTS, np.ones(17))
    friend = [joint and (joint[0] + 90, joint[1] + 4) for joint in person]
    friend[7] = None
    poses = [
        PoseResult(BodyResult([j and Keypoint(j[0] / 640, j[1] / 512) for j in p], 1.0, 18), None, None, None)
        for p in (person, friend)
    ]
    theirs = draw_poses(poses, 512, 640, draw_hand=False, draw_face=False)
    assert np.array_equal(np.array(skeletons.draw_skeletons([person, friend], (640, 512))), theirs)
    double = [[joint and (joint[0] * 2, joint[1] * 2) for joint in p] for p in (person, friend)]
    large = np.array(skeletons.draw_skeletons(double, (1280, 1024)))
    assert np.array_equal(large, theirs.repeat(2, 0).repeat(2, 1)), (
        "limbs scale with the picture, and colours do not blend"
    )


@pytest.mark.parametrize("classes", [{0: "person", 1: "bicycle"}, {0: "cat", 1: "dog"}], ids=["bicycles", "no people"])
def test_only_people_are_posed(classes: dict[int, str], tmp_path: Path) -> None:
    """The detector finds its class 1 everywhere. A picture without people gives an empty map."""
    for part in ANNOTATORS["openpose"].parts:
        make_part(part, tmp_path)
    config = tmp_path / "annotator/person_detector/config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"id2label": classes}))
    if "person" in classes.values():
        annotator = ANNOTATORS["openpose"].load(tmp_path.joinpath, torch.device("cpu"))
        assert not np.array(annotator(Image.fromarray(data.astronaut()).resize((192, 128)))).any()
    else:
        with pytest.raises(WeightsMismatch, match="person"):
            ANNOTATORS["openpose"].load(tmp_path.joinpath, torch.device("cpu"))
