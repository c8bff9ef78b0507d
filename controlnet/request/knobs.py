"""The knobs: inputs that set how an annotator draws. Each goes to those annotators of a request that take it."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields

KnobValue = bool | int | float | str


@dataclass(frozen=True)
class Knobs:
    """The one list of knobs, by the name of their input. None means that the annotator's own default is used."""

    low_threshold: int | None = None
    """canny: gradient strength, 0–255, above which a pixel continues an edge."""
    high_threshold: int | None = None
    """canny: gradient strength, 0–255, above which an edge begins."""
    hed_safe: bool | None = None
    """hed: whether edge strengths are quantised to three levels, ControlNet 1.1's "safe" form."""
    mlsd_score_threshold: float | None = None
    """mlsd: least score of a line, 0–1."""
    mlsd_distance_threshold: float | None = None
    """mlsd: least length of a line, 0–20 pixels of the network's output."""
    shuffle_seed: int | None = None
    """shuffle: seed of the random flow, 0 to 2³² − 1."""
    tile_factor: float | None = None
    """tile: by how much the picture is reduced before it is enlarged again, 1–16."""
    pose_parts: str | None = None
    """openpose: which parts of people are found and drawn, a key of controlnet.request.pose.POSE_PARTS."""

    def sent(self) -> Mapping[str, KnobValue]:
        """The knobs that are set, by name."""
        return {name: value for name, value in asdict(self).items() if value is not None}


KNOBS = tuple(field.name for field in fields(Knobs))
"""Names of the inputs that are knobs."""
