"""DWPose: what its two networks see and what their outputs mean, against crafted inputs with known answers."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from annotator_weights import write_onnx
from PIL import Image
from skimage import data

from controlnet.maps.annotators import ANNOTATORS, openpose_dwpose
from controlnet.maps.annotators.skeletons import PEOPLE, PoseAnnotator, draw_poses
from controlnet.maps.annotators.whole_body import CELLS, JOINTS, VALUES, Crop, letterbox, people_in, whole_pose
from controlnet.models.loading import WeightsMismatch
from controlnet.request.pose import Pose, poses_to_json, read_poses

CPU = torch.device("cpu")
PHOTO = Image.fromarray(data.astronaut())
GRIDS = {8: 0, 16: 6400, 32: 8000}
"""For each stride the number of its first cell, in YOLOX's order."""


# ---- the detector


def test_a_picture_is_letterboxed_at_the_top_left_in_blue_green_red() -> None:
    picture = np.zeros((100, 200, 3), np.uint8)
    picture[:] = (10, 20, 30)
    seen, scale = letterbox(picture)
    assert (seen.shape, seen.dtype, scale) == ((1, 3, 640, 640), np.float32, 3.2)
    assert (seen[0, :, :320] == np.array((30, 20, 10)).reshape(3, 1, 1)).all()
    assert (seen[0, :, 320:] == 114).all(), "below the picture it is grey"
    tall, scale = letterbox(np.zeros((2560, 64, 3), np.uint8))
    assert scale == 0.25 and (tall[0, :, :, :16] == 0).all() and (tall[0, :, :, 16:] == 114).all()


def cells(*people: tuple[int, int, int, tuple[float, float, float, float], float]) -> np.ndarray:
    """YOLOX's output that is empty but for people: stride, row and column of a cell, box in 640 pixels, score."""
    made = np.zeros((CELLS, VALUES), np.float32)
    for stride, row, column, (left, top, right, bottom), score in people:
        centre = (left + right) / 2 / stride - column, (top + bottom) / 2 / stride - row
        size = np.log((right - left) / stride), np.log((bottom - top) / stride)
        number = GRIDS[stride] + row * (640 // stride) + column
        made[number, :6] = (*centre, *size, score, 1.0)
    return made


@pytest.mark.parametrize(("stride", "row", "column"), [(8, 0, 79), (8, 79, 3), (16, 39, 1), (32, 0, 0), (32, 19, 18)])
def test_boxes_are_read_from_the_cells_of_every_stride(stride: int, row: int, column: int) -> None:
    found = people_in(cells((stride, row, column, (100, 120, 260, 440), 0.9)), scale=2.0)
    assert found == pytest.approx(np.array([[50, 60, 130, 220]]), abs=1e-3)


def test_only_sure_people_are_kept_the_surest_first_and_each_once() -> None:
    one, other = (100.0, 100.0, 200.0, 300.0), (300.0, 100.0, 400.0, 300.0)
    shifted = (110.0, 105.0, 210.0, 305.0)  # overlaps the first by four fifths
    beside = (160.0, 100.0, 260.0, 300.0)  # overlaps it by a quarter
    made = cells(
        (8, 1, 1, one, 0.6), (8, 1, 2, shifted, 0.5), (16, 1, 1, other, 0.9), (32, 1, 1, beside, 0.35),
        (8, 5, 5, (500.0, 500.0, 600.0, 600.0), 0.29),
    )  # fmt: skip
    assert people_in(made, 1.0) == pytest.approx(np.array([other, one, beside]), abs=1e-2)
    made[GRIDS[16] + 40 + 1, 5:7] = (0.1, 1.0)  # a thing of the second class is no person
    assert people_in(made, 1.0) == pytest.approx(np.array([one, beside]), abs=1e-2)
    assert people_in(cells((8, 1, 1, (100, 100, 103, 300), 0.9)), 1.0).shape == (0, 4), "too narrow for a pose"
    assert people_in(cells(), 1.0).shape == (0, 4)


# ---- the pose network


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ((100, 100, 244, 292), (82, 76, 180, 240)),  # of the crop's own aspect ratio: a quarter more on each side
        ((100, 100, 120, 292), (20, 76, 180, 240)),  # narrower: wider crop around the same centre
        ((100, 100, 244, 110), (82, -15, 180, 240)),  # lower
    ],
)
def test_a_crop_is_a_quarter_larger_than_the_box_and_3_to_4(box: tuple, expected: tuple) -> None:
    crop = Crop.around(np.array(box, np.float32))
    assert (crop.left, crop.top, crop.scale * 288, crop.scale * 384) == pytest.approx(expected)


def test_a_crop_shows_the_picture_normalized_with_black_beyond_it() -> None:
    rows, columns = np.mgrid[:400, :300]
    picture = np.stack([columns % 256, rows % 256, np.full_like(rows, 77)], axis=2).astype(np.uint8)
    seen = Crop(left=-10.0, top=20.0, scale=0.5).pixels(picture)
    assert (seen.shape, seen.dtype) == ((1, 3, 384, 288), np.float32)
    mean, deviation = np.array((123.675, 116.28, 103.53)), np.array((58.395, 57.12, 57.375))
    values = seen[0].transpose(1, 2, 0) * deviation + mean
    assert values[100, 120] == pytest.approx((50, 70, 77), abs=1e-3), "x = -10 + 120 / 2, y = 20 + 100 / 2, RGB"
    assert values[101, 121] == pytest.approx((50.5, 70.5, 77), abs=0.6), "between pixels"
    assert values[100, :19] == pytest.approx(np.zeros((19, 3)), abs=1e-3), "left of the picture"


def vectors(**joints: tuple[float, float, float, float]) -> tuple[np.ndarray, np.ndarray]:
    """SimCC's vectors in which joint number n (as "n7") has its maxima at (bin of x, bin of y, height, height)."""
    across, down = np.full((JOINTS, 576), -0.5, np.float32), np.full((JOINTS, 768), -0.5, np.float32)
    for name, (x, y, high, higher) in joints.items():
        across[int(name[1:]), int(x)], down[int(name[1:]), int(y)] = high, higher
    return across, down


def test_joints_are_the_maxima_put_back_into_the_picture_with_the_smaller_score() -> None:
    crop = Crop(left=10.0, top=-20.0, scale=1.5)
    joints, scores = crop.joints(*vectors(n0=(0, 0, 0.9, 0.4), n7=(575, 767, 0.2, 0.8), n132=(101, 200, 0.7, 0.7)))
    assert joints[[0, 7, 132]] == pytest.approx(np.array([(10, -20), (441.25, 555.25), (85.75, 130)]))
    assert scores[[0, 7, 132, 1]] == pytest.approx([0.4, 0.2, 0.7, -0.5])


def test_joints_become_openposes_body_hands_and_face_without_feet() -> None:
    joints = np.stack([np.arange(JOINTS), np.arange(JOINTS) + 1000], axis=1).astype(float)
    pose = whole_pose(joints, np.full(JOINTS, 0.3))
    names = [joint and joint[0] for joint in pose.body]
    assert names == [0, 5.5, 6, 8, 10, 5, 7, 9, 12, 14, 16, 11, 13, 15, 2, 1, 4, 3], "the neck is between 5 and 6"
    assert [joint and joint[0] for joint in pose.face or ()] == [*range(23, 91), 2, 1], "and the right and left eye"
    assert [joint and joint[0] for joint in pose.left_hand or ()] == [*range(91, 112)]
    assert [joint and joint[0] for joint in pose.right_hand or ()] == [*range(112, 133)]
    assert not {*range(17, 23)} & {joint[0] for joint in pose.joints()}, "a foot"
    assert all(joint[1] == joint[0] + 1000 for joint in pose.joints())


def test_unsure_joints_are_left_out_and_parts_without_any_are_none() -> None:
    scores = np.full(JOINTS, 0.29)
    scores[[0, 5, 95]] = 0.31
    pose = whole_pose(np.ones((JOINTS, 2)), scores)
    assert [number for number, joint in enumerate(pose.body) if joint] == [0, 5], "no neck with one shoulder"
    assert pose.left_hand and [number for number, joint in enumerate(pose.left_hand) if joint] == [4]
    assert pose.right_hand is None and pose.face is None, "eyes alone are no face"


# ---- both, in ONNX Runtime


def test_the_annotator_finds_what_the_networks_show(tmp_path: Path, loaded: Callable[[str], Any]) -> None:
    """A photo of 512 × 512 is seen at 1.25. The person's box is 288 × 384 of its pixels with the margin."""
    box = (100.0, 50.0, 100 + 288 / 1.25 * 1.25, 50 + 384 / 1.25 * 1.25)
    write_onnx(tmp_path / "yolox_l.onnx", "images", (1, 3, 640, 640), {"output": tensor(cells((8, 9, 9, box, 0.9)))})
    crop = Crop.around(np.array(box) / 1.25)
    across, down = vectors(n0=(100, 200, 0.5, 0.5), n91=(300, 400, 0.9, 0.9), n23=(10, 20, 0.9, 0.3))
    shape, outputs = ("batch", 3, 384, 288), {"simcc_x": tensor(across), "simcc_y": tensor(down)}
    write_onnx(tmp_path / "dw-ll_ucoco_384.onnx", "input", shape, outputs)
    annotator: Any = ANNOTATORS["openpose_dwpose"].load(lambda part: tmp_path, CPU)
    (person,) = annotator.poses(PHOTO, "all")
    nose = (crop.left + 50 * crop.scale, crop.top + 100 * crop.scale)
    assert person.body[0] == pytest.approx(nose) and not any(person.body[1:])
    assert person.left_hand[0] == pytest.approx((crop.left + 150 * crop.scale, crop.top + 200 * crop.scale))
    assert person.face[0] == pytest.approx((crop.left + 5 * crop.scale, crop.top + 10 * crop.scale))
    assert person.right_hand is None
    write_onnx(tmp_path / "yolox_l.onnx", "images", (1, 3, 640, 640), {"output": tensor(cells())})
    nobody: Any = ANNOTATORS["openpose_dwpose"].load(lambda part: tmp_path, CPU)
    assert nobody.poses(PHOTO, "all") == [] and not np.array(nobody(PHOTO)).any()


def tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array)[None]


def test_parts_are_found_and_drawn_as_pose_parts_says(loaded: Callable[[str], PoseAnnotator]) -> None:
    annotator = loaded("openpose_dwpose")
    everything = annotator.poses(PHOTO, "all")
    assert len(everything) == 2 and all(p.left_hand and p.right_hand and p.face for p in everything)
    for choice, has in (("body", ""), ("body_hands", "hands"), ("body_face", "face"), ("all", "hands face")):
        people = annotator.poses(PHOTO, choice)
        assert people == [p.only(has.split()) for p in everything]
        assert all(bool(p.left_hand) == bool(p.right_hand) == ("hands" in has) for p in people)
        assert all(bool(p.face) == ("face" in has) for p in people)
        drawn = annotator(PHOTO, pose_parts=choice)
        assert drawn.tobytes() == draw_poses(everything, PHOTO.size, choice).tobytes()
        assert drawn.info[PEOPLE] == (tuple(people), PHOTO.size)
    assert annotator.poses(PHOTO) == annotator.poses(PHOTO, "body")


def test_its_json_is_read_back_with_hands_and_faces(loaded: Callable[[str], PoseAnnotator]) -> None:
    people = loaded("openpose_dwpose").poses(PHOTO, "all")
    again = read_poses(poses_to_json(people, PHOTO.size)).on(PHOTO.size, PHOTO.size)
    for ours, theirs in zip(people, again, strict=True):
        for part in ("body", "left_hand", "right_hand", "face"):
            assert np.array(getattr(theirs, part)) == pytest.approx(np.array(getattr(ours, part)), abs=0.006)
    assert draw_poses(again, PHOTO.size, "all").tobytes() != draw_poses(again, PHOTO.size, "body").tobytes()


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_start_when_it_is_loaded_and_not_in_a_request(
    folder_of: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    loads = [running()]
    annotator = openpose_dwpose.load(folder_of("annotator/openpose_dwpose"), CPU)
    loads.append(running())
    assert loads[1] == loads[0] + 2 * (threads - 1), "two sessions, of which the caller is one thread"
    for _ in range(3):
        annotator(PHOTO)
        assert running() == loads[1]


def running() -> int:
    """How many threads this process has, those of libraries included."""
    return len(os.listdir("/proc/self/task"))


# ---- files that are others


@pytest.mark.parametrize("file", ["yolox_l.onnx", "dw-ll_ucoco_384.onnx"])
def test_files_with_other_networks_are_refused(file: str, tmp_path: Path, folder_of: Callable[[str], Path]) -> None:
    for name in ("yolox_l.onnx", "dw-ll_ucoco_384.onnx"):
        (tmp_path / name).write_bytes((folder_of("annotator/openpose_dwpose") / name).read_bytes())
    ANNOTATORS["openpose_dwpose"].load(lambda part: tmp_path, CPU)
    whole = (tmp_path / file).read_bytes()
    for content in (b"", whole[:-100], b"no network"):
        (tmp_path / file).write_bytes(content)
        with pytest.raises(WeightsMismatch, match=rf"^{file} "):
            ANNOTATORS["openpose_dwpose"].load(lambda part: tmp_path, CPU)
    write_onnx(tmp_path / file, "images", (1, 3, 416, 416), {"output": torch.zeros(1, CELLS, VALUES)})
    with pytest.raises(WeightsMismatch, match=rf"^{file} has inputs of the shapes \[\(3, 416, 416\)\]: expected"):
        ANNOTATORS["openpose_dwpose"].load(lambda part: tmp_path, CPU)
    shape = (1, 3, 640, 640) if file.startswith("yolox") else ("batch", 3, 384, 288)
    write_onnx(tmp_path / file, "images", shape, {"output": torch.zeros(1, 3549, 85)})
    with pytest.raises(WeightsMismatch, match=rf"^{file} has outputs of the shapes \[\(3549, 85\)\]: expected"):
        ANNOTATORS["openpose_dwpose"].load(lambda part: tmp_path, CPU)


def test_only_keeps_what_is_named() -> None:
    hand, face = ((1.0, 1.0),) * 21, ((2.0, 2.0),) * 70
    whole = Pose(((0.0, 0.0),) * 18, hand, hand, face)
    assert whole.only(()) == Pose(whole.body) and whole.only(("hands", "face")) == whole
    assert whole.only(("face",)) == Pose(whole.body, face=face)
