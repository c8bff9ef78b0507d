"""What makes the pictures of a batch: an actor of Ray with the bundle loaded once."""

import io
import json
import os
import time
from collections.abc import Callable
from contextlib import redirect_stderr
from typing import Any

from controlnet.api.sent import FETCHED
from controlnet.batch.folder import DONE, FAILED, PICTURES, URI, Folder, FolderError, read_file
from controlnet.settings import Settings
from controlnet.temporary import MOST_BYTES
from controlnet.transient import Transient


class Worker:
    """Makes the pictures of one job after another."""

    def __init__(self, bundle: str, out: str, files: frozenset[str], stopped: Callable[[], bool]) -> None:
        """`files` are the names of the inputs that are files. Once `stopped` says so, jobs are left for another run."""
        from controlnet.api.opened import OpenModel  # only here: it imports torch, which the driver needs not

        self.folder, self.files, self.stopped = Folder(out), files, stopped
        self.model = OpenModel(Settings.read(bundle=bundle))

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Make the files of a job and then its record, unless the record is there. Returns how it ended."""
        name = row["name"]
        if self.folder.has(f"{DONE}/{name}.json"):  # by an actor that was killed before it could say so
            status = "succeeded"
        elif self.stopped():
            status = "left"
        else:
            status = self._make(name, json.loads(row["inputs"]))
        return {"name": name, "status": status, "worker": os.getpid()}

    def _make(self, name: str, inputs: dict[str, Any]) -> str:
        started, final = time.perf_counter(), True
        seed = inputs.get("seed")
        record: dict[str, Any] = {"status": "succeeded", "error": None, "files": []}
        record["seed"] = seed if isinstance(seed, int) else None
        said = io.StringIO()
        try:
            with redirect_stderr(said):
                pictures = self.model.make(inputs | self._fetched(inputs))
            files = {f"{PICTURES}/{name}-{file}": content for file, content in pictures.files().items()}
            for file, content in files.items():
                self.folder.write(file, content)
            record |= {"files": list(files), "seed": pictures.seed, "metrics": pictures.metrics}
        except Exception as error:  # whatever it is, it must not end the batch
            record |= {"status": "failed", "error": str(error)} | ({"log": said.getvalue()} if said.getvalue() else {})
            final = isinstance(error, ValueError) and not isinstance(error, Transient)
        record["seconds"] = round(time.perf_counter() - started, 4)
        self.folder.write(f"{DONE if final else FAILED}/{name}.json", json.dumps(record).encode())
        return record["status"]

    def _fetched(self, inputs: dict[str, Any]) -> dict[str, bytes]:
        """The content of the pictures that lie elsewhere."""
        fetched = {}
        for name in self.files & inputs.keys():
            place = inputs[name]
            if isinstance(place, str) and URI.match(place) and not FETCHED.match(place):
                try:
                    fetched[name] = read_file(place, MOST_BYTES)
                except FolderError as error:
                    raise type(error)(f"{name}: {error}") from None
        return fetched
