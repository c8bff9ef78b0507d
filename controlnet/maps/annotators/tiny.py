"""The tiny bundle's annotators: six control maps from one small network (tiny_network.py), which all of them share."""

from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from skimage.morphology import skeletonize

from controlnet.models.loading import load_pretrained
from controlnet.request.pose import Pose

from . import Annotator
from .depth_anything import depth_map
from .hed import safe_levels
from .mlsd import check_thresholds
from .network import as_batch, device_of, private_pixels, restore_soft
from .normal_bae import normal_map
from .skeletons import PoseAnnotator, draw_poses
from .tiny_network import NECK_UNIT, STRIDE, Seen, TinyVisionModel
from .upernet import label_map, segmentation_map

TINY_SHORT_SIDE = 128
"""Pixels: the network was trained on pictures of this size."""
LINE_THRESHOLD = 0.5
"""Least probability of a pixel of a line."""
SHORTEST_LINE = 6
"""Pixels: fewer in one piece are a speck and no line."""
JOINT_THRESHOLD = 0.15
"""Least height of a peak that counts as a joint: of 40 held-out scenes 84% of the joints are found, 67% at 0.3."""
LEAST_JOINTS = 4
"""A neck with fewer joints, itself included, is nobody."""
NECK = 1
REACH = 12.0
"""Pixels between a neck and where a joint's offset says that it is, beyond which the joint is not of that person."""


def load(draw: str, folder: Path, device: torch.device) -> Annotator:
    """`draw` is a key of DRAWINGS. Raises WeightsMismatch where the file's tensors are not the network's."""
    network = _load_network(folder, device)
    if draw == "openpose":  # the one whose findings can be asked for, too
        return PoseAnnotator(partial(find_poses, network))
    return partial(DRAWINGS[draw], network)


@lru_cache(maxsize=1)
def _load_network(folder: Path, device: torch.device) -> TinyVisionModel:
    """Loaded once for the six that share it; nothing writes to it."""
    return load_pretrained(TinyVisionModel, folder, device)


def see(network: TinyVisionModel, image: Image.Image, short_side: int = TINY_SHORT_SIDE) -> Seen:
    """What the network sees in an RGB picture of any size, at its private one: short side about short_side, in pixels,
    and sides of 16n."""
    pixels = as_batch(private_pixels(image, short_side, STRIDE), device_of(network)) / 255
    with torch.inference_mode():
        return network(pixels)


def draw_hed(network: TinyVisionModel, image: Image.Image, short_side: int = TINY_SHORT_SIDE) -> Image.Image:
    """RGB picture -> its edges in ControlNet 1.1's three "safe" strengths."""
    strength = see(network, image, short_side).outlines.sigmoid()[0, 0].cpu().numpy()
    return Image.fromarray(safe_levels(restore_soft(strength, image.size))).convert("RGB")


def draw_mlsd(
    network: TinyVisionModel,
    image: Image.Image,
    short_side: int = TINY_SHORT_SIDE,
    mlsd_score_threshold: float = LINE_THRESHOLD,
    mlsd_distance_threshold: float = SHORTEST_LINE,
) -> Image.Image:
    """RGB picture -> its straight lines, 255 on 0, one pixel wide where the short side is short_side and in proportion.

    mlsd_score_threshold is the least probability of a line, 0 to 1, and mlsd_distance_threshold its least length, 0 to
    20 of the network's pixels. Raises AnnotatorError beyond them.
    """
    check_thresholds(mlsd_score_threshold, mlsd_distance_threshold)
    seen = see(network, image, short_side)
    lines = thin_lines(seen.straight, mlsd_score_threshold, mlsd_distance_threshold).astype(np.float32)
    # Not by nearest neighbour, which would lose lines in making a map smaller.
    drawn = np.where(restore_soft(lines, image.size) > 0.4, 255, 0).astype(np.uint8)
    return Image.fromarray(drawn).convert("RGB")


def draw_depth(network: TinyVisionModel, image: Image.Image, short_side: int = TINY_SHORT_SIDE) -> Image.Image:
    """RGB picture -> its depth in grey, near white."""
    return depth_map(see(network, image, short_side).nearness[0, 0].cpu().numpy(), image.size)


def draw_normal(network: TinyVisionModel, image: Image.Image, short_side: int = TINY_SHORT_SIDE) -> Image.Image:
    """RGB picture -> its normals as colours: blue faces the camera, red left, green up."""
    return normal_map(see(network, image, short_side).normals[0].permute(1, 2, 0).cpu().numpy(), image.size)


def draw_seg(network: TinyVisionModel, image: Image.Image, short_side: int = TINY_SHORT_SIDE) -> Image.Image:
    """RGB picture -> its classes in ADE20K's colours."""
    labels = label_map(see(network, image, short_side).classes, image.size)
    return segmentation_map(np.array(network.config["classes"])[labels])


def draw_openpose(network: TinyVisionModel, image: Image.Image, short_side: int = TINY_SHORT_SIDE) -> Image.Image:
    """RGB picture -> the skeletons of the people in it, on black."""
    return draw_poses(find_poses(network, image, short_side), image.size)


def find_poses(network: TinyVisionModel, image: Image.Image, short_side: int = TINY_SHORT_SIDE) -> list[Pose]:
    """RGB picture -> the bodies of the people in it, in its pixels."""
    seen = see(network, image, short_side)
    height, width = seen.outlines.shape[-2:]
    across, down = image.width / width, image.height / height
    return [
        Pose(tuple((float(x * across), float(y * down)) if score else None for x, y, score in person))
        for person in find_people(seen)
    ]


def thin_lines(logits: torch.Tensor, probability: float = LINE_THRESHOLD, length: float = SHORTEST_LINE) -> np.ndarray:
    """Logits of lines (1, 1, height, width) -> bool [height, width], lines one pixel wide.

    Pixels below `probability` and pieces of fewer than `length` pixels are left out.
    """
    likely = (logits[0, 0].sigmoid() > probability).cpu().numpy()
    thin = skeletonize(likely)
    _, pieces, stats, _ = cv2.connectedComponentsWithStats(thin.astype(np.uint8), connectivity=8)
    kept = np.array(stats[:, cv2.CC_STAT_AREA] >= length)
    kept[0] = False  # what is no line
    return kept[np.asarray(pieces, np.int64)]


def find_people(seen: Seen) -> list[np.ndarray]:
    """People in the first picture of `seen`: float32 [18, 3] each, x and y in its pixels and a score, 0 to 1.

    All three are 0 for a joint that was not found. Every neck starts a person, and every other joint goes to the one to
    whose neck it points, grouping from below by offsets as G. Papandreou et al., "PersonLab", ECCV 2018.
    """
    joints, spots, scores = _peaks(seen.joints[0].sigmoid())
    columns, rows = spots.T
    offsets = seen.to_neck[0, :, rows, columns].T.cpu().numpy() * NECK_UNIT
    pixels = 2.0 * spots + 1  # the middle of a cell of the joints' maps, which are half as large
    is_neck = joints == NECK
    necks = pixels[is_neck]
    if not len(necks):
        return []
    people = np.zeros((len(necks), seen.joints.shape[1], 3), np.float32)
    people[:, NECK] = np.column_stack([necks, scores[is_neck]])
    for i in np.flatnonzero(~is_neck):
        away = np.hypot(*(pixels[i] + offsets[i] - necks).T)
        person = people[away.argmin()]
        if away.min() <= REACH and scores[i] > person[joints[i], 2]:
            person[joints[i]] = *pixels[i], scores[i]
    return [person for person in people if np.count_nonzero(person[:, 2]) >= LEAST_JOINTS]


def _peaks(heat: torch.Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Heat (18, h, w), 0 to 1 -> which joint, x and y in cells (n, 2), and height of each local maximum."""
    # Of equal neighbours one has to be the highest: a joint on the border of two cells is one joint.
    heat = heat - torch.linspace(0, 1e-3, heat[0].numel(), device=heat.device).view(heat.shape[1:])
    highest = F.max_pool2d(heat[None], 3, 1, 1)[0]
    found = ((heat == highest) & (heat > JOINT_THRESHOLD)).nonzero()
    scores = heat[tuple(found.T)]
    found, scores = found.cpu().numpy(), scores.cpu().numpy()
    return found[:, 0], found[:, :0:-1].copy(), scores


DRAWINGS: dict[str, Callable[[TinyVisionModel, Image.Image], Image.Image]] = {
    "hed": draw_hed,
    "mlsd": draw_mlsd,
    "depth": draw_depth,
    "openpose": draw_openpose,
    "seg": draw_seg,
    "normal": draw_normal,
}
