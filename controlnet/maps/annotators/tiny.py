"""The tiny bundle's six annotators, which share one small network (tiny_network.py)."""

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

from . import TINY_SHORT_SIDE, Annotator
from .depth_anything import depth_map
from .hed import levels_of
from .network import as_batch, device_of, private_pixels, restore_soft
from .normal_bae import normal_map
from .skeletons import PoseAnnotator, draw_poses
from .tiny_network import NECK_UNIT, STRIDE, Seen, TinyVisionModel
from .upernet import label_map, segmentation_map

LINE_THRESHOLD = 0.5
"""Smallest probability of a line's pixel."""
SHORTEST_LINE = 6
"""Pixels in one piece. A smaller piece is a speck, not a line."""
JOINT_THRESHOLD = 0.15
"""Smallest height of a peak that counts as a joint. In 40 held-out scenes it finds 84% of the joints; 0.3 finds 67%."""
LEAST_JOINTS = 4
"""A person has at least this many joints, the neck included."""
NECK = 1
REACH = 12.0
"""Largest distance, in pixels, between a person's neck and the place where a joint of that person points."""


def load(draw: str, folder: Path, device: torch.device) -> Annotator:
    """`draw` is a key of DRAWINGS. Raises WeightsMismatch if the tensors in the file do not fit the network."""
    network = _load_network(folder, device)
    if draw in FINDERS:
        return PoseAnnotator(partial(FINDERS[draw], network))
    return partial(DRAWINGS[draw], network)


@lru_cache(maxsize=1)
def _load_network(folder: Path, device: torch.device) -> TinyVisionModel:
    """Loaded once for the six annotators that share it. Nothing writes to it."""
    return load_pretrained(TinyVisionModel, folder, device)


def see(network: TinyVisionModel, image: Image.Image, short_side: int = TINY_SHORT_SIDE) -> Seen:
    """The network's output for an RGB picture of any size. The network sees it at its private resolution: a short side
    of about short_side pixels, and both sides multiples of 16."""
    pixels = as_batch(private_pixels(image, short_side, STRIDE), device_of(network)) / 255
    with torch.inference_mode():
        return network(pixels)


def draw_hed(
    network: TinyVisionModel, image: Image.Image, short_side: int = TINY_SHORT_SIDE, hed_safe: bool = True
) -> Image.Image:
    """RGB picture -> its edges, in ControlNet 1.1's three "safe" strengths if hed_safe."""
    strength = see(network, image, short_side).outlines.sigmoid()[0, 0].cpu().numpy()
    return Image.fromarray(levels_of(restore_soft(strength, image.size), hed_safe)).convert("RGB")


def draw_mlsd(
    network: TinyVisionModel,
    image: Image.Image,
    short_side: int = TINY_SHORT_SIDE,
    mlsd_score_threshold: float = LINE_THRESHOLD,
    mlsd_distance_threshold: float = SHORTEST_LINE,
) -> Image.Image:
    """RGB picture -> its straight lines, 255 on 0. They are one pixel wide at a short side of short_side, and scale.

    mlsd_score_threshold is the smallest probability of a line, 0 to 1. mlsd_distance_threshold is its smallest length,
    0 to 20 of the network's pixels.
    """
    seen = see(network, image, short_side)
    lines = thin_lines(seen.straight, mlsd_score_threshold, mlsd_distance_threshold).astype(np.float32)
    # Not by nearest neighbour, which would lose lines when it reduces a map.
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

    Pixels below `probability` and pieces of fewer than `length` pixels are dropped.
    """
    likely = (logits[0, 0].sigmoid() > probability).cpu().numpy()
    thin = skeletonize(likely)
    _, pieces, stats, _ = cv2.connectedComponentsWithStats(thin.astype(np.uint8), connectivity=8)
    kept = np.array(stats[:, cv2.CC_STAT_AREA] >= length)
    kept[0] = False  # the background
    return kept[np.asarray(pieces, np.int64)]


def find_people(seen: Seen) -> list[np.ndarray]:
    """People in the first picture of `seen`: float32 [18, 3] each, x and y in its pixels and a score, 0 to 1.

    All three numbers are 0 for a joint that was not found. Every neck starts a person. Every other joint belongs to the
    person whose neck it points to. This is bottom-up grouping by offsets as in G. Papandreou et al., "PersonLab", ECCV
    2018.
    """
    joints, spots, scores = _peaks(seen.joints[0].sigmoid())
    columns, rows = spots.T
    offsets = seen.to_neck[0, :, rows, columns].T.cpu().numpy() * NECK_UNIT
    pixels = 2.0 * spots + 1  # the middle of a cell; the joints' maps are half as large as the picture
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
    """Heat maps (18, h, w), 0 to 1 -> of each local maximum its joint (n), x and y in cells (n, 2) and height (n)."""
    # A slope makes one of equal neighbours the highest: a joint on the border of two cells must not count twice.
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
FINDERS: dict[str, Callable[[TinyVisionModel, Image.Image], list[Pose]]] = {"openpose": find_poses}
"""For the drawings that show poses, the functions that find them, so that they can be returned too."""
