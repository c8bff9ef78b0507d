"""OpenPose's own networks: strict loading of the published files, and joints at the right places."""

from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data
from support.warned import warned

from controlnet.maps.annotators import ANNOTATORS, openpose_cmu
from controlnet.maps.annotators.network import quiet_controlnet_aux
from controlnet.maps.annotators.skeletons import PoseAnnotator, draw_poses
from controlnet.models.loading import WeightsMismatch
from controlnet.request.pose import Joint, Pose

with quiet_controlnet_aux():
    from controlnet_aux import OpenposeDetector

CPU = torch.device("cpu")


@pytest.fixture
def folder(folder_of: Callable[[str], Path]) -> Path:
    return folder_of("annotator/openpose_cmu")


def test_the_published_layout_loads_with_every_tensor_in_its_place(folder: Path, loaded: Callable[[str], Any]) -> None:
    annotator = loaded("openpose_cmu")
    networks = {
        openpose_cmu.BODY_FILE: annotator.find.args[0],
        openpose_cmu.HAND_FILE: annotator.more["hands"].args[0],
        openpose_cmu.FACE_FILE: annotator.more["face"].args[0],
    }
    for file, network in networks.items():
        published = torch.load(folder / file, weights_only=True)
        loaded = network.state_dict()
        assert len(published) == len(loaded) and not any(name.startswith("model") for name in published)
        for name, tensor in loaded.items():
            layer = name if name in published else name.split(".", 1)[1]
            assert torch.equal(tensor, published[layer].float()), name


@pytest.mark.parametrize(
    ("file", "missing", "reshaped", "blocks"),
    [
        ("body_pose_model.pth", "conv1_1.weight", "Mconv7_stage6_L2.bias", ("model0.", "model6_2.")),
        ("hand_pose_model.pth", "Mconv7_stage6.bias", "conv1_1.weight", ("model6.", "model1_0.")),
        ("facenet.pth", "conv5_3_CPM.bias", "conv1_1.weight", ("", "")),
    ],
)
def test_a_file_that_does_not_fit_names_its_tensors(
    file: str, missing: str, reshaped: str, blocks: tuple[str, str], folder: Path, tmp_path: Path
) -> None:
    for other in folder.iterdir():
        (tmp_path / other.name).symlink_to(other)
    tensors = torch.load(folder / file, weights_only=True)
    del tensors[missing]
    tensors |= {"one.more": torch.zeros(1), reshaped: torch.zeros(7)}
    (tmp_path / file).unlink()
    torch.save(tensors, tmp_path / file)
    with pytest.raises(WeightsMismatch) as caught:
        ANNOTATORS["openpose_cmu"].load(lambda part: tmp_path, CPU)
    message = str(caught.value)
    assert f"missing: {blocks[0]}{missing}" in message
    # As in controlnet_aux, only the file of the face must not have more tensors than its network.
    assert ("unexpected: one.more" in message) == (file == openpose_cmu.FACE_FILE)
    assert f"of another shape: {blocks[1]}{reshaped}" in message
    assert file in message and str(tmp_path) not in message


def test_extra_tensors_of_body_and_hand_are_left_out(
    folder: Path, tmp_path: Path, loaded: Callable[[str], Any]
) -> None:
    """controlnet_aux reads only the tensors that its networks have."""
    for file in folder.iterdir():
        extra = {} if file.name == openpose_cmu.FACE_FILE else {"one.more": torch.zeros(1)}
        torch.save(torch.load(file, weights_only=True) | extra, tmp_path / file.name)
    annotator: Any = ANNOTATORS["openpose_cmu"].load(lambda part: tmp_path, CPU)
    expected, got = (made.find.args[0].state_dict() for made in (loaded("openpose_cmu"), annotator))
    assert expected.keys() == got.keys() and all(torch.equal(got[name], expected[name]) for name in expected)


BODY = [
    (0.5, 0.2), (0.5, 0.35), (0.35, 0.36), (0.3, 0.48), (0.28, 0.6), (0.65, 0.36), (0.72, 0.48), (0.75, 0.6),
    (0.42, 0.62), (0.41, 0.78), (0.4, 0.93), (0.58, 0.62), (0.59, 0.78), (0.6, 0.93), (0.46, 0.17), (0.54, 0.17),
    (0.42, 0.19), (0.58, 0.19),
]  # fmt: skip
"""Shares of the picture."""
LIMBS = [
    (1, 2), (1, 5), (2, 3), (3, 4), (5, 6), (6, 7), (1, 8), (8, 9), (9, 10), (1, 11), (11, 12), (12, 13), (1, 0),
    (0, 14), (14, 16), (0, 15), (15, 17), (2, 16), (5, 17),
]  # fmt: skip
FIELDS = [12, 20, 14, 16, 22, 24, 0, 2, 4, 6, 8, 10, 28, 30, 34, 32, 36, 18, 26]
"""For each limb the first of the two maps that hold its direction."""


class Sees(torch.nn.Module):
    """Replaces a network: sees joints at the same places in every picture, and records its inputs."""

    def __init__(self, maps: int, *joints: tuple[float, float]) -> None:
        super().__init__()
        self.one = torch.nn.Parameter(torch.zeros(1))
        self.maps, self.spots = maps, joints
        self.seen: list[torch.Tensor] = []

    def heat(self, batch: torch.Tensor) -> torch.Tensor:
        self.seen.append(batch)
        height, width = batch.shape[2] // 8, batch.shape[3] // 8
        rows, columns = torch.arange(height)[:, None] + 0.5, torch.arange(width) + 0.5
        maps = torch.zeros(1, self.maps, height, width)
        for number, (x, y) in enumerate(self.spots):
            maps[0, number] = torch.exp(-((columns - x * width) ** 2 + (rows - y * height) ** 2) / 2)
        return maps

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        return self.heat(batch)


class SeesBody(Sees):
    def forward(self, batch: torch.Tensor) -> Any:
        heat = self.heat(batch)
        fields = torch.zeros(1, 38, *heat.shape[2:])
        for (start, end), field in zip(LIMBS, FIELDS, strict=True):
            along = torch.tensor(BODY[end]) - torch.tensor(BODY[start])
            along = along * torch.tensor([batch.shape[3], batch.shape[2]])
            fields[0, field : field + 2] = (along / along.norm())[:, None, None]
        return fields, heat


class SeesFace(Sees):
    def forward(self, batch: torch.Tensor) -> Any:
        return [self.heat(batch)]


FINGERS = [(0.2 + 0.03 * i, 0.3 + 0.02 * i) for i in range(21)]
FACE = [(0.2 + 0.6 * (i % 10) / 9, 0.2 + 0.6 * (i // 10) / 6) for i in range(70)]


@cache
def annotator(short_side: int = 512) -> PoseAnnotator:
    body, hand, face = SeesBody(19, *BODY), Sees(22, *FINGERS), SeesFace(71, *FACE, (0.5, 0.5))
    add_hands = partial(openpose_cmu.add_hands, hand, short_side=short_side)
    add_face = partial(openpose_cmu.add_face, face, short_side=short_side)
    find = partial(openpose_cmu.find_bodies, body, short_side=short_side)
    return PoseAnnotator(find, {"hands": add_hands, "face": add_face})


def off(part: tuple[Joint, ...] | None, wanted: list[tuple[float, float]]) -> float:
    """The largest distance of a joint from its expected place, in pixels."""
    assert part and len(part) == len(wanted) and all(part)
    return float(np.abs(np.array(part) - np.array(wanted)).max())


@pytest.mark.parametrize(
    ("size", "short_side"),
    [((512, 512), 512), ((96, 144), 128), ((1000, 700), 128)],
    ids=["equal", "enlarged", "shrunk"],
)
def test_joints_land_where_the_networks_see_them(size: tuple[int, int], short_side: int) -> None:
    (person,) = annotator(short_side).poses(Image.new("RGB", size), "all")
    body = [(x * size[0], y * size[1]) for x, y in BODY]
    cell = 8 * max(size) / 184  # of the body network, in the picture's pixels
    assert off(person.body, body) < cell
    # Hands lie a third of the forearm beyond the wrist, in a square of one and a half of it.
    for hand, (elbow, wrist) in ((person.right_hand, (3, 4)), (person.left_hand, (6, 7))):
        assert hand
        forearm = np.array(body[wrist]) - np.array(body[elbow])
        expected = np.array(body[wrist]) + forearm / 3
        middle = np.array([joint for joint in hand if joint]).mean(axis=0)
        assert np.abs(middle - expected).max() < np.linalg.norm(forearm)
    assert person.face and off(person.face[34:36], [(x * size[0], y * size[1]) for x, y in BODY[:1] * 2]) < 4 * cell


def test_a_strip_is_padded_and_nobody_is_found_in_the_padding(recwarn: pytest.WarningsRecorder) -> None:
    """controlnet_aux's class fails on maps one cell wide."""
    for size, parts in (
        ((64, 2048), "all"),
        ((2048, 64), "all"),
        ((200, 1000), "all"),
        ((64, 64), "body"),
        ((2048, 2048), "body"),
    ):
        people = annotator(128).poses(Image.new("RGB", size), parts)
        for x, y in (joint for person in people for joint in person.joints()):
            assert 0 <= x < size[0] and 0 <= y < size[1]
        assert draw_poses(people, size, parts).size == size
    assert warned(recwarn) == []


def test_bodies_and_hands_equal_controlnet_aux() -> None:
    # Its sides are multiples of 64, to which controlnet_aux rounds. So nothing is resized, and poses can be equal.
    photo = Image.fromarray(data.astronaut()[:384, :256]).resize((128, 192))
    find, more = annotator(128).find, annotator(128).more
    detector = OpenposeDetector(
        openpose_cmu._estimator(openpose_cmu.Body, find.args[0]),
        openpose_cmu._estimator(openpose_cmu.Hand, more["hands"].args[0]),
        None,
    )
    seen = find.args[0].seen
    (person,) = annotator(128).poses(photo, "body_hands")
    shown = seen[-1]
    (pose,) = detector.detect_poses(np.array(photo), include_hand=True)
    assert torch.equal(seen[-1], shown), "the network gets another picture"
    for part, theirs in zip(
        (person.body, person.left_hand, person.right_hand),
        (pose.body.keypoints, pose.left_hand, pose.right_hand),
        strict=True,
    ):
        assert part and len(part) == len(theirs)
        for joint, keypoint in zip(part, theirs, strict=True):
            assert joint and np.allclose(joint, (keypoint.x * photo.width, keypoint.y * photo.height), atol=1e-4)


def test_unseen_joints_are_none_and_the_others_keep_their_numbers() -> None:
    right_arm = (2, 3, 4)
    person = Pose(tuple(None if i in right_arm else (x * 512, y * 512) for i, (x, y) in enumerate(BODY)))
    picture = Image.new("RGB", (512, 512))
    hands = openpose_cmu.add_hands(Sees(22, *FINGERS[:20]), picture, person)
    assert hands.left_hand and hands.left_hand[20] is None and all(hands.left_hand[:20])
    face = openpose_cmu.add_face(SeesFace(71, *FACE[:30]), picture, person).face
    assert face and all(face[:30]) and not any(face[30:])
    assert openpose_cmu.add_hands(Sees(22), picture, person) == person
    assert openpose_cmu.add_face(SeesFace(71), picture, person) == person


def test_without_arms_or_a_nose_no_hand_or_face_is_searched() -> None:
    network, nobody = Sees(22), Pose((None,) * 18)
    for add_part in (openpose_cmu.add_hands, openpose_cmu.add_face):
        assert add_part(network, Image.new("RGB", (512, 512)), nobody) == nobody
    assert network.seen == []
