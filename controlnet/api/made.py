"""What a request gives in Python."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from controlnet.pictures.output import encode_pictures


@dataclass(frozen=True)
class FileKind:
    """How the pictures are written to files, as the request says."""

    output_format: str
    output_quality: int


class Pictures(list[Image.Image]):
    """The pictures of one request, in the order of their seeds: a list of PIL pictures in RGB, and what belongs to it.

    Each picture's `info["parameters"]` says how it was made. The list is empty for a request with map_only.
    """

    maps: list[Image.Image]
    """The control map of each control, RGB, if the request asks for them: return_control_map or map_only."""
    poses: str | None
    """OpenPose's JSON, if the request asks for it: return_pose_json."""
    metrics: dict[str, Any]
    """The metrics that the server's response has: seed, steps, size, the seconds of each phase, ignored inputs."""

    def __init__(
        self,
        pictures: list[Image.Image],
        maps: list[Image.Image],
        poses: str | None,
        metrics: dict[str, Any],
        kind: FileKind,
    ) -> None:
        super().__init__(pictures)
        self.maps, self.poses, self.metrics, self._kind = maps, poses, metrics, kind

    @property
    def seed(self) -> int | None:
        """The seed of the first picture, to make it again. None if only maps were made."""
        return self.metrics.get("seed")

    def files(self) -> dict[str, bytes]:
        """The files that the server would return, in their order: the content of each by its name.

        Their names are control_map.webp, poses.json, picture_0.webp, …, with the ending of the request's output_format.
        """
        return encode_pictures(self.maps, self, self._kind.output_format, self._kind.output_quality, self.poses)

    def save(self, folder: str | os.PathLike[str]) -> list[Path]:
        """Write files() into a folder, which is made if it is not there, over files of these names. Returns them."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        paths = {Path(folder) / name: content for name, content in self.files().items()}
        for path, content in paths.items():
            path.write_bytes(content)
        return list(paths)
