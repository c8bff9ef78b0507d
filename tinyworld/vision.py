"""Trains the small vision networks: the one that draws the tiny bundle's control maps, and the one that scores."""

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F

from controlnet.maps.annotators.tiny_network import JOINTS, NECK_UNIT, Seen, TinyVisionModel
from tinyworld.dataset import SEEN, Sample, Scenes
from tinyworld.feed import SEED
from tinyworld.stages import Plan, begin_as, half, train_stage
from tinyworld.truth import CLASSES, OPENPOSE_JOINTS

COARSE = SEEN // 2
"""Side of the joints' maps."""
NECK = OPENPOSE_JOINTS.index("neck")
LINE_WEIGHT = 3.0
"""A pixel on a line counts this many times as much as another one, since lines are thin."""
JOINT_WEIGHT = 10.0
"""A cell on a joint counts this many times as much as an empty one."""
JOINTS_PART = 100.0
"""What the joints' part of the loss is multiplied by. It is a mean over cells of which hardly any has a joint: with 10,
the network put necks on noses and knees on ankles, where it sees something, instead of where the joints are."""
PEOPLE_SHARE = 0.8
"""Share of a batch that is drawn from scenes with people, which are a quarter of all scenes."""
BUMP = 1.0
"""Standard deviation, in pixels of the joints' maps, of the bump on a joint."""


def make_vision() -> TinyVisionModel:
    return TinyVisionModel(classes=tuple(number for _, number in CLASSES))


def train_vision(
    name: str,
    scenes: Scenes,
    rows: range,
    plan: Plan,
    device: torch.device,
    folder: Path,
    earlier: Path | None = None,
) -> TinyVisionModel:
    """Train one network on the scenes of `rows`. Another name and other rows give an independent network. `earlier` is
    the folder of a network from which it continues."""
    torch.manual_seed(SEED + len(name) + rows.start)
    network = begin_as(make_vision(), earlier).to(device, memory_format=torch.channels_last)
    with_people = [row for row in rows if scenes.seen.people[row, ..., 2].any()] or list(rows)

    def loss_of(drawn: tuple[torch.Tensor, dict[str, torch.Tensor]]) -> torch.Tensor:
        pictures, wanted = drawn
        with half(device):
            seen = network(pictures.to(memory_format=torch.channels_last))
        return vision_loss(seen, wanted)

    draw = DrawSeen(scenes, torch.tensor(rows), torch.tensor(with_people))
    trained = train_stage(name, plan, {"network": network}, draw, loss_of, device, folder)["network"]
    assert isinstance(trained, TinyVisionModel)
    return trained


@dataclass(frozen=True)
class DrawSeen:
    """Draws pictures and what there is to see in them."""

    scenes: Scenes
    rows: torch.Tensor
    with_people: torch.Tensor

    def __call__(self, generator: torch.Generator, batch: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        chosen = [
            rows[torch.randint(len(rows), (batch,), generator=generator)] for rows in (self.with_people, self.rows)
        ]
        drawn = torch.where(torch.rand(batch, generator=generator) < PEOPLE_SHARE, *chosen).tolist()
        flips = torch.randint(2, (batch,), generator=generator).tolist()
        samples = [self.scenes.seen.sample(row, bool(flip)) for row, flip in zip(drawn, flips, strict=True)]
        pictures = torch.from_numpy(np.stack([sample.picture for sample in samples])).permute(0, 3, 1, 2).float() / 255
        return vary(pictures, generator), targets(samples)


def vary(pictures: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Vary light, tint, contrast and grain of pictures, (B, 3, H, W), 0 to 1: the network must also read generated
    pictures and photographs."""
    batch = len(pictures)

    def draw(low: float, high: float, channels: int = 1) -> torch.Tensor:
        return torch.rand((batch, channels, 1, 1), generator=generator) * (high - low) + low

    mean = pictures.mean((1, 2, 3), keepdim=True)
    varied = (pictures - mean) * draw(0.7, 1.2) + mean * draw(0.8, 1.2)
    varied = varied * draw(0.9, 1.1, 3)
    soft = F.avg_pool2d(F.pad(varied, (1, 1, 1, 1), mode="replicate"), 3, 1)
    varied = torch.lerp(varied, soft, draw(0.0, 1.0) * (draw(0, 1) < 0.5))
    return (varied + torch.randn(varied.shape, generator=generator) * draw(0.0, 0.04)).clamp(0, 1)


def targets(samples: list[Sample]) -> dict[str, torch.Tensor]:
    """What a network should see in the samples' pictures, by the names of Seen's fields, and where joints are."""

    def stack(arrays: list[np.ndarray]) -> torch.Tensor:
        return torch.from_numpy(np.stack(arrays)).float()

    bodies = [_body_maps(sample.people) for sample in samples]
    return {
        "outlines": stack([soft_outlines(sample.outlines) for sample in samples])[:, None],
        "edges": stack([soft_outlines(_canny(sample.picture)) for sample in samples])[:, None],
        "straight": stack([soft_outlines(sample.straight) for sample in samples])[:, None],
        "nearness": stack([sample.nearness for sample in samples])[:, None] / 255,
        "normals": stack([sample.normals for sample in samples]).permute(0, 3, 1, 2) / 127,
        "classes": stack([sample.classes for sample in samples]).long(),
        "joints": stack([maps[0] for maps in bodies]),
        "to_neck": stack([maps[1] for maps in bodies]),
        "near_joint": stack([maps[2] for maps in bodies])[:, None],
    }


def soft_outlines(outlines: np.ndarray, unit: float = 1.0) -> np.ndarray:
    """Outlines, uint8 0 or 255 -> 1 on a line, about a half next to it, 0 elsewhere: as soft as HED's edges.

    `unit` is the width of a line: pixels for each pixel that the network sees.
    """
    lines = cv2.dilate(outlines, np.ones((round(unit),) * 2, np.uint8))
    blurred = cv2.GaussianBlur(lines.astype(np.float32) / 255, (0, 0), 0.8 * unit)
    return np.minimum(2 * blurred, 1)


def _canny(picture: np.ndarray) -> np.ndarray:
    return cv2.Canny(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY), 100, 200)


def _body_maps(people: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Joints (people, 18, 3) -> bumps (18, c, c), offsets to the neck (2, c, c), places where offsets count (c, c)."""
    bumps = np.zeros((JOINTS, COARSE, COARSE), np.float32)
    offsets = np.zeros((2, COARSE, COARSE), np.float32)
    closest = np.full((COARSE, COARSE), 2.0, np.float32)
    rows, columns = np.mgrid[:COARSE, :COARSE].astype(np.float32) * 2 + 1  # the middle of a cell, in pixels
    for person in people:
        neck = person[NECK, :2]
        for joint, (x, y, visible) in enumerate(person):
            if not visible:
                continue
            away = np.hypot(columns - x, rows - y) / 2
            bumps[joint] = np.maximum(bumps[joint], np.exp(-((away / BUMP) ** 2) / 2))
            near = away < closest
            closest[near] = away[near]
            offsets[0][near] = (neck[0] - columns[near]) / NECK_UNIT
            offsets[1][near] = (neck[1] - rows[near]) / NECK_UNIT
    return bumps, offsets, (closest < 2.0).astype(np.float32)


def vision_loss(seen: Seen, wanted: dict[str, torch.Tensor]) -> torch.Tensor:
    """Sum of the losses of everything that is seen, weighted to make all parts about equally large."""
    lines = sum(_line_loss(getattr(seen, name), wanted[name]) for name in ("outlines", "edges", "straight"))
    nearness = F.l1_loss(seen.nearness, wanted["nearness"])
    steps = sum((seen.nearness.diff(dim=a) - wanted["nearness"].diff(dim=a)).abs().mean() for a in (-1, -2))
    normals = 1 - (seen.normals * wanted["normals"]).sum(1).mean()
    classes = F.cross_entropy(seen.classes, wanted["classes"])
    # Not the squared error of the probabilities: near 0, where all of them begin, it has no slope.
    joints = _line_loss(seen.joints, wanted["joints"], JOINT_WEIGHT)
    counted = wanted["near_joint"].sum().clamp(min=1)
    offsets = (F.smooth_l1_loss(seen.to_neck, wanted["to_neck"], reduction="none") * wanted["near_joint"]).sum()
    return lines + 2 * nearness + 2 * steps + normals + classes + JOINTS_PART * joints + offsets / counted


def _line_loss(logits: torch.Tensor, wanted: torch.Tensor, most: float = LINE_WEIGHT) -> torch.Tensor:
    weight = 1 + (most - 1) * wanted
    return F.binary_cross_entropy_with_logits(logits, wanted, weight=weight)
