"""What one tab of the browser holds: entered values, pictures, and the files of its last answer."""

import secrets
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from playground.form import Form
from playground.pictures import File, drawn, open_upload

Json = dict[str, Any]
EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
PICTURES = ("doodle.png", "house.png", "person.png", "room.png", "things.png", "coffee.jpg", "cat.jpg", "astronaut.jpg")
"""Of the examples, those that a request can begin with."""
START = {
    "prompt": "a red house with a blue roof next to a green tree on grass under a blue sky",
    "conditioner": "scribble",
    "structure": "scribble",
}
"""What is entered at the start, so that the first click paints."""


@dataclass(frozen=True)
class Made:
    """The answer to a request."""

    inputs: Json
    maps: tuple[File, ...]
    pictures: tuple[File, ...]
    others: tuple[File, ...]
    """Such as poses.json."""
    metrics: Mapping[str, Any]

    @classmethod
    def of(cls, inputs: Json, form: Form, files: list[File], metrics: Mapping[str, Any]) -> "Made":
        """Sort the files of an answer. Control maps come before the pictures that were asked for."""
        images = [file for file in files if file.mime.startswith("image/")]
        others = [file for file in files if not file.mime.startswith("image/")]
        counts = [form.fields[name].default for name in ("num_outputs", "num_samples") if name in form.fields]
        count = int(next((inputs[name] for name in ("num_outputs", "num_samples") if name in inputs), *counts or [1]))
        count = 0 if inputs.get("map_only") else count - int(metrics.get("withheld", 0))
        maps = max(0, len(images) - count)
        return cls(inputs, tuple(images[:maps]), tuple(images[maps:]), tuple(others), metrics)

    def files(self) -> dict[str, File]:
        """All files by a name to download them under."""
        named: dict[str, File] = {}
        for stem, files in (("map", self.maps), ("picture", self.pictures), ("poses", self.others)):
            for index, file in enumerate(files, 1):
                named[f"{stem}{f'-{index}' if len(files) > 1 else ''}{file.suffix}"] = file
        return named


class Tab:
    """The state of a tab. Its token is the secret under which the browser reaches its files."""

    def __init__(self, form: Form, bundle: str = "") -> None:
        """`bundle` is that of the server, "" if it is not known."""
        self.form, self.bundle = form, bundle
        self.token = secrets.token_urlsafe(16)
        self.values: Json = {name: value for name, value in START.items() if name in form.fields}
        for name in ("conditioner", "structure"):
            if name in form.fields and self.values[name] not in form.fields[name].choices:
                del self.values[name]
        self.draw_seed()
        self.uploads: dict[str, File] = {}
        """Files as they came, by the input that they are for."""
        self.pictures: dict[str, File] = {}
        """What is sent for each picture."""
        self.map: Made | None = None
        self.made: Made | None = None
        self._earlier: deque[File] = deque(maxlen=16)
        """Files that were replaced, for a browser that is about to fetch them."""

    def inputs(self) -> Json:
        """The input of a request as it stands. It has a seed, so that what comes of it can be made again."""
        pictures = {name: file.data_url for name, file in self.pictures.items()}
        seed = {"seed": self.seed} if "seed" in self.form.fields else {}
        return self.form.inputs(seed | self.values | pictures)

    def draw_seed(self) -> None:
        """Draw the seed that is sent if none is entered."""
        self.seed = secrets.randbelow(2**32)

    def take_upload(self, name: str, content: bytes) -> None:
        """Take a file for the input `name`. Raises NoPicture."""
        self.uploads[name] = self.pictures[name] = open_upload(content)

    def take_drawing(self, name: str, layer: bytes | None, sheet: bool) -> None:
        """Take what was drawn for the input `name`, on a sheet of paper or over its file. None: all was undone.

        Raises NoPicture.
        """
        field = self.form.fields[name]
        upload = self.uploads.get(name)
        if before := self.pictures.get(name):
            self._earlier.append(before)
        if layer is not None:
            self.pictures[name] = drawn(None if sheet else upload, layer, field.is_mask and upload is None)
        elif upload:
            self.pictures[name] = upload
        else:
            self.pictures.pop(name, None)

    def remove(self, name: str) -> None:
        """Leave out the picture `name`."""
        self.uploads.pop(name, None)
        self.pictures.pop(name, None)

    def take_answer(self, made: Made, map_alone: bool) -> None:
        """Keep an answer: its maps, and its pictures unless only a map was asked for."""
        for before in (self.map, self.made):
            self._earlier.extend(before.files().values() if before else ())
        if made.maps:
            self.map = replace(made, pictures=(), others=made.others if map_alone else ())
        if not map_alone:
            self.made = made

    def files(self) -> dict[str, File]:
        """Every file that the browser may fetch, by its SHA-256."""
        answers = [made for made in (self.map, self.made) if made]
        kept = [file for made in answers for file in made.files().values()]
        pictures = (*self.pictures.values(), *self.uploads.values())
        return {file.digest: file for file in (*self._earlier, *kept, *pictures)}
