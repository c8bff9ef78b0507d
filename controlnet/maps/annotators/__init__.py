"""Annotators draw a control map from a picture; ANNOTATORS is the one list of them.

An annotator takes an RGB picture of 64 to 2048 pixels a side and returns an RGB control map of the same size. It leaves
its input untouched, and the same picture and knobs always give the same map. Knobs are what a user may set: keyword
arguments that the annotator's kind declares (controlnet/request/knobs.py has all of them), with defaults of its own.

Each kind has the module of its name. The tiny bundle's kinds share one network and the module tiny.py. A module is
imported only when one of its kinds is loaded, so reading this list imports neither torch nor a library with networks.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from controlnet.request.knobs import KnobValue
from controlnet.request.pose import FOUND_PARTS, POSE_PARTS

if TYPE_CHECKING:
    import torch

Annotator = Callable[..., Image.Image]
"""annotator(picture, **knobs) -> its control map."""

SHORT_SIDE = "short_side"
"""The knob that every annotator with a private resolution has: the picture's short side there, in pixels."""
TRAINED_SHORT_SIDE = 512
"""Pixels. The ControlNet 1.1 annotators run at this size, and their line widths are meant for it."""
TINY_SHORT_SIDE = 128
"""Pixels. The size that the tiny bundle's network was trained at."""


Fault = Callable[[Mapping[str, KnobValue]], str | None]
"""fault(knobs): a sentence that says why the annotator cannot draw with these knobs; None if it can."""


def _no_fault(knobs: Mapping[str, KnobValue]) -> None:
    """Any values that the inputs' ranges allow can be used."""


@dataclass(frozen=True)
class AnnotatorKind:
    name: str
    """Also the name of its module in this package, except for the tiny ones."""
    help: str
    """One line: what the map shows and what draws it."""
    parts: tuple[str, ...]
    """The parts of a weights bundle that it needs."""
    load: "Callable[[Callable[[str], Path], torch.device], Annotator]"
    """load(folder_of, device): opens the kind's parts, found through folder_of(part name), on the device.

    Raises WeightsMismatch (controlnet/models/loading.py) if a file's tensors are not the network's.
    """
    knobs: tuple[str, ...] = ()
    """The keyword arguments that the loaded annotator takes."""
    fault: Fault = _no_fault
    own_side: int | None = None
    """Short side in pixels of the pictures that its network was trained on. None if it has no network."""


@dataclass(frozen=True)
class LoadedAnnotator:
    """An annotator with its kind, which knows its knobs."""

    kind: AnnotatorKind
    draw: Annotator
    line_width: float = 1.0
    """How wide the lines of skeletons are for the conditioner's net, as a multiple of OpenPose's own."""

    def __call__(self, image: Image.Image, /, **knobs: Any) -> Image.Image:
        return self.draw(image, **knobs)


def knobs_of(annotator: Annotator) -> tuple[str, ...]:
    """The knobs that an annotator declares; a plain function has none."""
    return annotator.kind.knobs if isinstance(annotator, LoadedAnnotator) else ()


def line_width_of(annotator: Annotator) -> float:
    """LoadedAnnotator.line_width; a plain function draws lines of OpenPose's width."""
    return annotator.line_width if isinstance(annotator, LoadedAnnotator) else LoadedAnnotator.line_width


def own_side_of(annotator: Annotator) -> int | None:
    """The short side in pixels that an annotator's network was trained at; None if it has no network."""
    return annotator.kind.own_side if isinstance(annotator, LoadedAnnotator) else None


def _kind(name: str, help: str, *parts: str, knobs: tuple[str, ...] = (), fault: Fault = _no_fault) -> AnnotatorKind:
    def load(folder_of: Callable[[str], Path], device: "torch.device") -> Annotator:
        module = import_module(f"{__name__}.{name}")
        return module.load(*(folder_of(part) for part in parts), device=device)

    return AnnotatorKind(name, help, parts, load, knobs, fault, TRAINED_SHORT_SIDE if parts else None)


def _tiny_kind(
    draws: str, help: str, knobs: tuple[str, ...] = (SHORT_SIDE,), fault: Fault = _no_fault
) -> AnnotatorKind:
    part = "annotator/tiny"

    def load(folder_of: Callable[[str], Path], device: "torch.device") -> Annotator:
        return import_module(f"{__name__}.tiny").load(draws, folder_of(part), device)

    help = f"{help}, by the tiny bundle's own network."
    return AnnotatorKind(f"tiny_{draws}", help, (part,), load, knobs, fault, TINY_SHORT_SIDE)


def _canny_fault(knobs: Mapping[str, KnobValue]) -> str | None:
    return import_module(f"{__name__}.canny").fault(**knobs)


def _bodies_only(knobs: Mapping[str, KnobValue]) -> str | None:
    """The fault of a kind that finds people's bodies without hands and faces."""
    if not (lacking := POSE_PARTS[str(knobs.get("pose_parts", FOUND_PARTS))]):
        return None
    return (
        f"The annotator in use finds people's bodies and no {' or '.join(lacking)}: leave pose_parts at body, send a "
        "pose with these parts, or run the bundle sd15 with CONTROLNET_OPENPOSE=dwpose or cmu."
    )


PRIVATE = (SHORT_SIDE,)
POSE = ("pose_parts",)
HED = ("hed_safe",)
MLSD = ("mlsd_score_threshold", "mlsd_distance_threshold")

ANNOTATORS: dict[str, AnnotatorKind] = {
    kind.name: kind
    for kind in (
        _kind(
            "canny",
            "Hard edges, one pixel wide, by OpenCV's Canny detector.",
            knobs=("low_threshold", "high_threshold"),
            fault=_canny_fault,
        ),
        _kind("xdog", "Rough strokes by thresholded difference of Gaussians; a doodle is used as it is."),
        _kind(
            "hed",
            "Soft edges by HED, quantised unless hed_safe is off.",
            "annotator/hed",
            knobs=PRIVATE + HED,
        ),
        _kind(
            "hed_scribble",
            "Rough strokes along HED's edges; a doodle is used as it is.",
            "annotator/hed",
            knobs=PRIVATE,
        ),
        _kind("mlsd", "Straight lines by M-LSD.", "annotator/mlsd", knobs=PRIVATE + MLSD),
        _kind(
            "normal_bae",
            "How surfaces face, by BAE: blue the camera, red left, green up.",
            "annotator/normal_bae",
            knobs=PRIVATE,
        ),
        _kind(
            "depth_anything",
            "Depth by Depth Anything: near is white.",
            "annotator/depth_anything",
            knobs=PRIVATE,
        ),
        _kind(
            "upernet",
            "What is where, by UPerNet, in the colours of ADE20K's 150 classes.",
            "annotator/upernet",
            knobs=PRIVATE,
        ),
        # Its models' processors cut people out and scale them to fixed sizes, so it has no private short side.
        _kind(
            "openpose",
            "People's skeletons in OpenPose's colours, by RT-DETR and ViTPose.",
            "annotator/person_detector",
            "annotator/vitpose",
            knobs=POSE,
            fault=_bodies_only,
        ),
        _kind(
            "openpose_dwpose",
            "Skeletons with hands and faces, by DWPose.",
            "annotator/openpose_dwpose",
            knobs=POSE,
        ),
        _kind(
            "openpose_cmu",
            "Skeletons with hands and faces, by OpenPose's own networks.",
            "annotator/openpose_cmu",
            knobs=POSE,
        ),
        _kind(
            "lineart",
            "Lines as a hand draws them, by Informative Drawings.",
            "annotator/lineart",
            knobs=PRIVATE,
        ),
        _kind("lineart_standard", "Lines as a soft pen draws them, by difference of Gaussians.", knobs=PRIVATE),
        _kind("lineart_anime", "Lines as in anime, by Anime2Sketch.", "annotator/lineart_anime", knobs=PRIVATE),
        _kind(
            "shuffle",
            "The picture's colours and textures, moved about by a smooth random flow.",
            knobs=("shuffle_seed",),
        ),
        _kind("tile", "The picture itself, or with tile_factor without its details.", knobs=("tile_factor",)),
        _kind("raw", "The picture itself."),
        _tiny_kind("hed", "Soft edges, quantised unless hed_safe is off", PRIVATE + HED),
        _tiny_kind("mlsd", "Straight lines", PRIVATE + MLSD),
        _tiny_kind("depth", "Depth: near is white"),
        _tiny_kind("openpose", "People's skeletons in OpenPose's colours", POSE, _bodies_only),
        _tiny_kind("seg", "What is where, in the colours of ADE20K's classes"),
        _tiny_kind("normal", "How surfaces face: blue the camera, red left, green up"),
    )
}
