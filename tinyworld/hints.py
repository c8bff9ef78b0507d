"""The control maps that each ControlNet is trained on, drawn from the renderer's truth or by the bundle's annotators.

They follow the conventions of the real annotators (controlnet/maps/annotators/): a map made for Stable Diffusion means
the same to the tiny bundle.
"""

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from PIL import Image

from controlnet.maps.annotators import tiny
from controlnet.maps.annotators.canny import draw_canny
from controlnet.maps.annotators.hed import safe_levels
from controlnet.maps.annotators.lineart_standard import draw_lineart_standard
from controlnet.maps.annotators.skeletons import draw_skeletons
from controlnet.maps.annotators.tile import draw_tile
from controlnet.maps.annotators.tiny_network import TinyVisionModel
from controlnet.maps.annotators.upernet import segmentation_map
from controlnet.maps.annotators.xdog import xdog_strokes
from tinyworld.dataset import SEEN, Dataset, Sample
from tinyworld.doodles import doodle, pen
from tinyworld.things import article
from tinyworld.truth import CLASSES
from tinyworld.vision import soft_outlines

Random = np.random.Generator
FromTruth = Callable[[Sample, Random], "np.ndarray | Masked"]
FromPicture = Callable[[TinyVisionModel, Image.Image], Image.Image]
SEEN_SHARE = 0.3
"""Share of the control maps that the bundle's annotator draws from the picture. The others are drawn from the truth."""
JOINT_LOSS = 0.1
"""Share of joints left out in half of the skeletons, since detectors miss some."""


@dataclass(frozen=True)
class Masked:
    """A control map of which a part is to be painted, and the prompt for that part, or None for the scene's caption."""

    control_map: np.ndarray
    prompt: str | None


@dataclass(frozen=True)
class Hint:
    """How one ControlNet's control maps are drawn: (n, n) or (n, n, 3), 0 to 255, for pictures of side n."""

    from_truth: FromTruth
    from_picture: FromPicture | None = None
    people_only: bool = False
    """True if only scenes with people teach anything. Nine tenths of the scenes are then taken from those."""
    weight: int = 1
    """How many batches its net gets for each batch of another net."""


def control_maps(
    hint: Hint,
    network: TinyVisionModel | None,
    dataset: Dataset,
    rows: torch.Tensor,
    generator: torch.Generator,
) -> tuple[torch.Tensor, list[str | None]]:
    """Control maps of these rows, (B, 3, n, n) float32, 0 to 1, and -1 in inpaint's holes; and for each the prompt that
    replaces the scene's caption, if any."""
    seeds = torch.randint(2**31, (len(rows),), generator=generator).tolist()
    maps, prompts = [], []
    for row, seed in zip(rows.tolist(), seeds, strict=True):
        sample, rng = dataset.sample(row), np.random.default_rng(seed)
        prompt = None
        if network is not None and hint.from_picture is not None and rng.random() < SEEN_SHARE:
            drawn = np.asarray(hint.from_picture(network, Image.fromarray(sample.picture)))
        else:
            drawn = hint.from_truth(sample, rng)
            if isinstance(drawn, Masked):
                drawn, prompt = drawn.control_map, drawn.prompt
        maps.append(drawn if drawn.ndim == 3 else np.repeat(drawn[..., None], 3, axis=2))
        prompts.append(prompt)
    return torch.from_numpy(np.stack(maps)).permute(0, 3, 1, 2).float() / 255, prompts


def draw_from_truth(hint: Hint, sample: Sample, seed: int = 0) -> Image.Image:
    """The control map drawn from the truth of the sample: RGB, of its size. Not for masked ones."""
    drawn = hint.from_truth(sample, np.random.default_rng(seed))
    assert isinstance(drawn, np.ndarray)
    return Image.fromarray(drawn).convert("RGB")


def rows_with_people(dataset: Dataset) -> torch.Tensor:
    """Rows whose picture shows at least half of the joints of one person."""
    return torch.from_numpy(np.flatnonzero(((dataset.people[..., 2] > 0).sum(2) >= 9).any(1)))


def canny_map(sample: Sample, rng: Random) -> np.ndarray:
    """Canny with random thresholds, as ControlNet was trained, and often with the annotator's 100 and 200."""
    low, high = (100, 200) if rng.random() < 0.4 else sorted(rng.uniform(40, 250, 2))
    return np.asarray(draw_canny(Image.fromarray(sample.picture), low, high))


def scribble_map(sample: Sample, rng: Random) -> np.ndarray:
    """A third of the time XDoG strokes of the picture, else a doodle of it (doodles.py)."""
    if rng.random() < 1 / 3:
        return xdog_strokes(cv2.cvtColor(sample.picture, cv2.COLOR_RGB2GRAY))
    return doodle(sample.outlines, rng)


def hed_map(sample: Sample, rng: Random) -> np.ndarray:
    """Soft outlines: three quarters quantised, as the soft edges of ControlNet 1.1 were, the rest unchanged."""
    edges = soft_outlines(sample.outlines, sample.size / SEEN)
    return safe_levels(edges) if rng.random() < 0.75 else np.rint(edges * 255).astype(np.uint8)


def straight_map(sample: Sample, rng: Random) -> np.ndarray:
    """Half a pixel to one and a half at the size at which the annotator sees pictures: its maps are enlarged."""
    widest = round(1.5 * sample.size / SEEN)
    return cv2.dilate(sample.straight, pen(int(rng.integers(1, widest + 1))))


def lineart_map(sample: Sample, rng: Random) -> np.ndarray:
    """Two thirds drawn by the annotator from the picture, the rest lines of a fine pen along the outlines."""
    if rng.random() < 2 / 3:
        return np.asarray(draw_lineart_standard(Image.fromarray(sample.picture)))
    width = rng.uniform(0.5, 1.0) * sample.size / SEEN
    soft = cv2.GaussianBlur(sample.outlines.astype(np.float32), (0, 0), width)
    return (soft * (255 / max(float(soft.max()), 1))).astype(np.uint8)


def tile_map(sample: Sample, rng: Random) -> np.ndarray:
    """The picture itself, as the annotator shows it by default, or with few details or none: a factor of up to 16."""
    factor = rng.choice((1, 8, float(rng.uniform(1, 16))), p=(0.4, 0.3, 0.3))
    return np.asarray(draw_tile(Image.fromarray(sample.picture), factor))


def inpaint_map(sample: Sample, rng: Random) -> Masked:
    """The picture as int16, with -255 in the holes. The net gets that as -1, which no colour has.

    The holes are those of a user: over one thing, to put another in its place; all around, to paint beyond the edges;
    or anywhere.
    """
    holes, prompt, kind = np.zeros((sample.size,) * 2, np.uint8), None, rng.random()
    named = [(box, words) for box, words in zip(sample.boxes, sample.words.things, strict=False) if box.any()]
    if kind < 0.45 and named:
        box, words = named[rng.integers(len(named))]
        _cut(holes, *_grown(box, rng), rng)
        prompt = f"{article(words)} {words}" if rng.random() < 0.6 else None
    elif kind < 0.7:
        holes[:] = 1
        left, top, right, bottom = (rng.random(4) < 0.5) * rng.uniform(0.05, 0.4, 4) * sample.size
        holes[int(top) : sample.size - int(bottom), int(left) : sample.size - int(right)] = 0
    else:
        for _ in range(rng.integers(1, 4)):
            middle, extent = rng.integers(0, sample.size, 2), rng.uniform(1 / 16, 3 / 4, 2) * sample.size
            _cut(holes, middle, extent, rng)
    return Masked(np.where(holes[..., None] > 0, np.int16(-255), sample.picture.astype(np.int16)), prompt)


def _grown(box: np.ndarray, rng: Random) -> tuple[np.ndarray, np.ndarray]:
    """Middle and extent of a hole over the box, each side of it moved outwards by up to a quarter of the box. A third
    of the holes are much larger, since what a user puts in a thing's place need not have its form."""
    corners = box.reshape(2, 2).astype(float)
    extent, widest = corners[1] - corners[0], 0.25 if rng.random() < 2 / 3 else 1.0
    corners += rng.uniform(0.02, widest, (2, 2)) * extent * [[-1], [1]]
    return corners.mean(0), corners[1] - corners[0]


def _cut(holes: np.ndarray, middle: np.ndarray, extent: np.ndarray, rng: Random) -> None:
    """Cut a rectangle or an ellipse, which is larger so that it covers as much."""
    (x, y), (width, height) = middle.astype(int).tolist(), (extent / 2).astype(int).tolist()
    if rng.random() < 0.5:
        axes = int(width * 1.25), int(height * 1.25)
        cv2.ellipse(holes, (x, y), axes, float(rng.uniform(-15, 15)), 0, 360, 1, -1)
    else:
        cv2.rectangle(holes, (x - width, y - height), (x + width, y + height), 1, -1)


def normal_colours(sample: Sample, rng: Random) -> np.ndarray:
    """Normals in the colours of normal_bae.normal_map."""
    return ((sample.normals / np.float32(127) + 1) / 2 * 255).clip(0, 255).astype(np.uint8)


def class_colours(sample: Sample, rng: Random) -> np.ndarray:
    return np.asarray(segmentation_map(np.array([number for _, number in CLASSES])[sample.classes]))


def skeletons(sample: Sample, rng: Random) -> np.ndarray:
    """The joints in view. In half of the pictures they are shifted a little and some are missing."""
    people = sample.people.copy()
    if rng.random() < 0.5:
        people[..., :2] += rng.normal(0, 0.6 * sample.size / SEEN, people[..., :2].shape)
        people[..., 2] *= rng.random(people.shape[:2]) >= JOINT_LOSS
    joints = [[(float(x), float(y)) if seen else None for x, y, seen in person] for person in people]
    return np.asarray(draw_skeletons(joints, (sample.size,) * 2))


HINTS: dict[str, Hint] = {
    "canny": Hint(canny_map),
    "scribble": Hint(scribble_map, weight=3),
    "hed": Hint(hed_map, tiny.draw_hed),
    "mlsd": Hint(straight_map, tiny.draw_mlsd),
    "depth": Hint(lambda sample, rng: sample.nearness, tiny.draw_depth),
    "normal": Hint(normal_colours, tiny.draw_normal),
    "seg": Hint(class_colours, tiny.draw_seg, weight=2),
    "openpose": Hint(skeletons, tiny.draw_openpose, people_only=True, weight=3),
    "lineart": Hint(lineart_map),
    "tile": Hint(tile_map),
    "inpaint": Hint(inpaint_map, weight=4),
}
