"""The tiny bundle's annotators: the maps and poses that they make from the output of their network."""

import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data
from support.scenes import small_dataset

from controlnet.maps.annotators import ANNOTATORS, Annotator, tiny, tiny_network
from controlnet.maps.annotators.network import quiet_controlnet_aux
from controlnet.maps.annotators.tiny_network import NECK_UNIT, STRIDE, Seen, TinyVisionModel
from controlnet.models.loading import WeightsMismatch
from tinyworld.vision import targets

with quiet_controlnet_aux():
    from controlnet_aux.util import ade_palette

ROOT = Path(__file__).parents[3]
SIZE = 64
JOINTS = 18


class Sees(torch.nn.Module):
    """Replaces the network: gives the same output for every picture. `config` is like the network's."""

    config: dict = {"classes": (0, 2, 12)}  # noqa: RUF012

    def __init__(self, **fields: torch.Tensor) -> None:
        super().__init__()
        self.nothing = torch.nn.Parameter(torch.zeros(1))
        self.seen = seen(**fields)

    def forward(self, pictures: torch.Tensor) -> Seen:
        assert pictures.shape[0] == 1 and pictures.max() <= 1 and pictures.shape[2] % STRIDE == 0
        return self.seen


def seen(**fields: torch.Tensor) -> Seen:
    """An output in which nothing is seen, except for the given fields."""
    empty = {name: torch.full((1, 1, SIZE, SIZE), -9.0) for name in ("outlines", "edges", "straight")}
    empty |= {"nearness": torch.zeros(1, 1, SIZE, SIZE), "normals": torch.zeros(1, 3, SIZE, SIZE)}
    empty |= {"classes": torch.zeros(1, 3, SIZE, SIZE), "joints": torch.full((1, JOINTS, SIZE // 2, SIZE // 2), -9.0)}
    return Seen(**(empty | {"to_neck": torch.zeros(1, 2, SIZE // 2, SIZE // 2)} | fields))


def draw(kind: str, size: tuple[int, int] = (SIZE, SIZE), **fields: torch.Tensor) -> np.ndarray:
    return np.array(tiny.DRAWINGS[kind](Sees(**fields), Image.new("RGB", size)))


@pytest.mark.parametrize("rows", [16, 37, 128])
def test_bands_predict_the_same_bits_from_few_rows(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    network = TinyVisionModel(widths=(8, 16), classes=(0, 2)).eval()
    pictures = torch.rand(2, 3, 2 * 128, 64, generator=torch.Generator().manual_seed(0))
    seen_rows = []
    with torch.inference_mode():
        whole = network(pictures)
        monkeypatch.setattr(tiny_network, "MOST_ROWS", rows)
        network.fine.register_forward_pre_hook(lambda layer, given: seen_rows.append(given[0].shape[2]))
        banded = network(pictures)
    for field in fields(Seen):
        assert torch.equal(getattr(banded, field.name), getattr(whole, field.name)), field.name
    assert max(seen_rows) <= rows + 2 and len(seen_rows) == -(-128 // rows)


def test_hed_has_three_levels_at_any_size() -> None:
    ramp = torch.linspace(-3, 3, SIZE).expand(1, 1, SIZE, SIZE)
    for size in ((SIZE, SIZE), (100, 80), (70, 300)):
        assert set(np.unique(draw("hed", size, outlines=ramp))) == {0, 127, 255}


@pytest.mark.parametrize("size", [(SIZE, SIZE), (150, 150), (40, 40)])
def test_mlsd_thins_lines_and_drops_specks(size: tuple[int, int]) -> None:
    logits = torch.full((1, 1, SIZE, SIZE), -9.0)
    logits[..., 20:23, 5:60] = 9
    logits[..., 50:52, 30:32] = 9
    drawn = draw("mlsd", size, straight=logits)[..., 0]
    scale = size[0] / SIZE
    assert set(np.unique(drawn)) == {0, 255}
    rows = np.flatnonzero(drawn[:, int(30 * scale)])
    assert abs(len(rows) - max(1, scale)) < 1 and abs(rows.mean() - 21 * scale) < 1.5
    assert not drawn[int(40 * scale) :].any(), "a speck is no line"


def test_mlsd_thresholds_are_a_probability_and_a_length() -> None:
    logits = torch.full((1, 1, SIZE, SIZE), -9.0)
    logits[..., 10, 5:60] = 1.0  # a probability of 0.73
    logits[..., 20, 5:60] = -1.0  # of 0.27
    logits[..., 30, 5:20] = 9.0

    def rows(**knobs: float) -> set[int]:
        drawn = tiny.draw_mlsd(Sees(straight=logits), Image.new("RGB", (SIZE, SIZE)), **knobs)
        return set(np.flatnonzero(np.array(drawn)[..., 0].any(1)))

    assert rows() == {10, 30}
    assert rows(mlsd_score_threshold=0.2) == {10, 20, 30}
    assert rows(mlsd_score_threshold=0.8) == {30}
    assert rows(mlsd_distance_threshold=20) == {10}


def test_the_network_sees_the_requested_short_side() -> None:
    shapes = []
    network = Sees()
    network.register_forward_pre_hook(lambda module, inputs: shapes.append(tuple(inputs[0].shape[2:])))
    for kind, drawing in tiny.DRAWINGS.items():
        drawing(network, Image.new("RGB", (96, 64)))
        drawing(network, Image.new("RGB", (96, 64)), short_side=256)
        assert shapes[-2:] == [(128, 192), (256, 384)], kind


def test_depth_is_white_at_near_places() -> None:
    near_below = torch.linspace(0.2, 0.7, SIZE)[:, None].expand(1, 1, SIZE, SIZE)
    drawn = draw("depth", nearness=near_below)
    assert drawn[0, 0, 0] == 0 and drawn[-1, 0, 0] == 255


def test_normals_are_red_left_green_up_and_blue_to_the_camera() -> None:
    for axis in range(3):
        normals = torch.zeros(1, 3, SIZE, SIZE)
        normals[:, axis] = 1
        assert draw("normal", normals=normals)[5, 5].tolist() == [255 if axis == c else 127 for c in range(3)]


def test_seg_has_the_ade20k_colours_of_the_configured_classes() -> None:
    logits = torch.zeros(1, 3, SIZE, SIZE)
    logits[:, 1, :20] = 5
    logits[:, 2, 40:] = 5
    drawn = draw("seg", (130, 90), classes=logits)
    palette = [tuple(colour) for colour in ade_palette()]
    assert {tuple(int(v) for v in colour) for colour in drawn.reshape(-1, 3)} == {palette[0], palette[2], palette[12]}
    assert tuple(int(v) for v in drawn[0, 0]) == palette[2] and tuple(int(v) for v in drawn[-1, 0]) == palette[12]


def as_seen(people: list[np.ndarray]) -> Seen:
    """The output that the network is trained to give for these people, in pixels of (64, 64)."""
    sample = small_dataset().sample(0)
    object.__setattr__(sample, "people", np.stack(people))
    wanted = targets([sample])
    logits = torch.logit(wanted["joints"].clamp(1e-4, 1 - 1e-4))
    return Seen(**{**vars(seen()), "joints": logits, "to_neck": wanted["to_neck"]})


def person(left: float) -> np.ndarray:
    """Joints in a zigzag around the neck, all visible."""
    joints = np.ones((JOINTS, 3), np.float32)
    joints[:, 0] = left + 8 * (np.arange(JOINTS) % 3)
    joints[:, 1] = 20 + 5 * np.arange(JOINTS)
    return joints


def test_two_people_are_separated_and_their_joints_in_place() -> None:
    wanted = [person(20), person(50)]
    found = sorted(tiny.find_people(as_seen(wanted)), key=lambda joints: joints[1, 0])
    assert len(found) == 2
    for got, expected in zip(found, wanted, strict=True):
        assert (got[:, 2] > 0.5).all()
        assert np.abs(got[:, :2] - expected[:, :2]).max() <= 1


def test_a_lost_joint_is_zero_and_without_a_neck_nobody_is_found() -> None:
    without_elbow, without_neck = person(30), person(30)
    without_elbow[3, 2] = without_neck[1, 2] = 0
    (found,) = tiny.find_people(as_seen([without_elbow]))
    assert found[3].tolist() == [0, 0, 0] and (np.delete(found, 3, axis=0)[:, 2] > 0.5).all()
    assert tiny.find_people(as_seen([without_neck])) == []


def test_a_joint_that_points_elsewhere_is_dropped() -> None:
    body = as_seen([person(30)])
    x, y, _ = person(30)[7]
    column, row = int(x / 2), int(y / 2)
    body.to_neck[0, :, row - 1 : row + 2, column - 1 : column + 2] += 20 / NECK_UNIT
    (found,) = tiny.find_people(body)
    assert found[7, 2] == 0 and found[6, 2] > 0.5


def test_openpose_groups_thousands_of_joints_quickly() -> None:
    """Comparing each joint with each neck in Python took 8 seconds."""
    generator = torch.Generator().manual_seed(0)
    crowd = seen(joints=torch.randn(1, JOINTS, 64, 64, generator=generator), to_neck=torch.zeros(1, 2, 64, 64))
    began = time.process_time()
    tiny.find_people(crowd)
    assert time.process_time() - began < 1


def test_openpose_poses_are_in_pixels_of_the_picture() -> None:
    body = as_seen([person(30)])
    network = Sees()
    blank = vars(seen(outlines=torch.zeros(1, 1, 128, 128)))
    network.seen = Seen(**(blank | {"joints": body.joints, "to_neck": body.to_neck}))
    small, large = (np.array(tiny.draw_openpose(network, Image.new("RGB", (side, side)))) for side in (128, 384))
    box = [np.argwhere(drawn.any(2)) for drawn in (small, large)]
    assert np.abs(box[0].min(0) * 3 - box[1].min(0)).max() < 10 and np.abs(box[0].max(0) * 3 - box[1].max(0)).max() < 10
    assert not draw("openpose").any()


def test_a_file_of_another_network_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "annotator/tiny"
    folder.mkdir(parents=True)
    TinyVisionModel(widths=(8, 8)).save_pretrained(folder)
    config = folder / "config.json"
    config.write_text(config.read_text().replace('"classes": [\n    0\n  ]', '"classes": [0, 1]'))
    with pytest.raises(WeightsMismatch, match="fine"):
        ANNOTATORS["tiny_hed"].load(lambda part: tmp_path / part, torch.device("cpu"))


def network_of(annotator: Callable) -> torch.nn.Module:
    return getattr(annotator, "find", annotator).args[0]


@pytest.mark.parametrize("kind", list(tiny.DRAWINGS))
def test_every_kind_draws_with_its_own_function(kind: str, loaded: Callable[[str], Annotator]) -> None:
    annotator = loaded(f"tiny_{kind}")
    picture = Image.fromarray(data.astronaut()).resize((96, 64))
    drawn = np.array(annotator(picture))
    assert np.array_equal(drawn, np.array(tiny.DRAWINGS[kind](network_of(annotator), picture)))
    assert len(np.unique(drawn)) > 1


def test_all_kinds_share_one_network(loaded: Callable[[str], Annotator]) -> None:
    assert len({id(network_of(loaded(f"tiny_{kind}"))) for kind in tiny.DRAWINGS}) == 1


def test_tiny_needs_neither_controlnet_aux_nor_timm() -> None:
    """Importing them takes over a second, which every prediction from the command line would wait for."""
    code = """
import sys
from PIL import Image
from controlnet.bundle import open_bundle
from controlnet.maps.annotators.skeletons import draw_poses
from controlnet.request.pose import Pose
from controlnet.settings import Settings
bundle = open_bundle(Settings(bundle="tiny"))
bundle.base()
bundle.controlnets()
for annotator in bundle.annotators().values():
    annotator(Image.new("RGB", (64, 64)))
draw_poses([Pose(((9.0, 9.0),) * 18, ((9.0, 9.0),) * 21, None, ((9.0, 9.0),) * 70)], (64, 64), "all")
print("imported:", *{"controlnet_aux", "timm", "matplotlib"} & set(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.splitlines()[-1] == "imported:"
