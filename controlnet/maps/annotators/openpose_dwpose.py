"""People's bodies, hands and faces by DWPose, through ONNX Runtime (whole_body.py has the papers and the geometry).

The files are tagged Apache-2.0. They were trained on COCO-WholeBody, whose annotations are for non-commercial research
only, so a bundle has this annotator as a choice and never by default. ONNX Runtime computes on the CPU, also where
there is a GPU: its package for GPUs would replace this one, and is far larger.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from controlnet.models.loading import WeightsMismatch
from controlnet.request.pose import MOST_PEOPLE, Pose

from .skeletons import PoseAnnotator
from .whole_body import (
    BINS,
    CELLS,
    DETECTOR_SIDE,
    JOINTS,
    POSE_HEIGHT,
    POSE_WIDTH,
    VALUES,
    Crop,
    letterbox,
    people_in,
    whole_pose,
)

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

DETECTOR_FILE, POSE_FILE = "yolox_l.onnx", "dw-ll_ucoco_384.onnx"
DETECTOR_SHAPES = [(3, DETECTOR_SIDE, DETECTOR_SIDE)], [(CELLS, VALUES)]
POSE_SHAPES = [(3, POSE_HEIGHT, POSE_WIDTH)], [(JOINTS, BINS * POSE_WIDTH), (JOINTS, BINS * POSE_HEIGHT)]
"""The shapes of a network's inputs and outputs, without the first dimension, which counts pictures."""


def load(folder: Path, device: torch.device) -> PoseAnnotator:
    """Raises WeightsMismatch if a file holds no network, or one with other inputs or outputs."""
    detector = open_network(folder / DETECTOR_FILE, *DETECTOR_SHAPES)
    poser = open_network(folder / POSE_FILE, *POSE_SHAPES)
    return PoseAnnotator(partial(find_people, detector, poser), whole=True)


def open_network(file: Path, inputs: Sequence[tuple[int, ...]], outputs: Sequence[tuple[int, ...]]) -> Any:
    """A session of ONNX Runtime with as many threads as PyTorch. They start here, and none starts in a request."""
    import onnxruntime  # here, because only bundles that use this annotator need it

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.inter_op_num_threads = 1
    # Otherwise its idle threads would take the cores from PyTorch's, as OpenMP's would (OMP_WAIT_POLICY).
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its classes of errors have no base but this
        raise WeightsMismatch(f"{file.name} does not hold a network that ONNX Runtime can run.") from error
    for what, got, expected in (("inputs", session.get_inputs(), inputs), ("outputs", session.get_outputs(), outputs)):
        shapes = [tuple(each.shape[1:]) for each in got]
        if len(shapes) != len(expected) or not all(map(_fits, shapes, expected)):
            raise WeightsMismatch(f"{file.name} has {what} of the shapes {shapes}: expected {list(expected)}.")
    return session


def find_people(detector: "InferenceSession", poser: "InferenceSession", image: Image.Image) -> list[Pose]:
    """RGB picture -> the people in it with hands and faces, in its pixels; at most MOST_PEOPLE, the surest.

    Nobody if the detector finds nobody. (The authors' code then takes the whole picture for a person.)
    """
    picture = np.asarray(image.convert("RGB"))
    seen, scale = letterbox(picture)
    (cells,) = _run(detector, seen)
    people = []
    for box in people_in(cells, scale)[:MOST_PEOPLE]:
        crop = Crop.around(box)
        across, down = _run(poser, crop.pixels(picture))
        people.append(whole_pose(*crop.joints(across, down)))
    return people


def _run(session: "InferenceSession", pixels: np.ndarray) -> list[np.ndarray]:
    """The network's outputs for one picture."""
    outputs: Any = session.run(None, {session.get_inputs()[0].name: pixels})
    return [output[0] for output in outputs]


def _fits(got: Sequence[int | str | None], expected: tuple[int, ...]) -> bool:
    """Whether two shapes agree. A side that a file does not fix is a name or None in it."""
    sides = zip(got, expected, strict=False)
    return len(got) == len(expected) and all(side == known for side, known in sides if isinstance(side, int))
