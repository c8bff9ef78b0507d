"""A loaded bundle as a function from a request to pictures."""

import difflib
import gc
import inspect
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from controlnet.api.declared import declared_predict
from controlnet.api.made import FileKind, Pictures
from controlnet.api.sent import as_file, lora_as_text
from controlnet.api.signature import Signature
from controlnet.api.turns import Turns
from controlnet.bundle import open_bundle
from controlnet.errors import plain_errors
from controlnet.log import silence
from controlnet.model import Model
from controlnet.request.inputs import InputError, file_inputs
from controlnet.request.loras import LORA_INPUTS
from controlnet.request.reading import read_request
from controlnet.settings import Settings
from controlnet.temporary import home


class Closed(RuntimeError):
    """The model was closed before the request."""


class OpenModel(Signature):
    """A loaded bundle. Call it with the inputs of a request: model(prompt, image, conditioner="depth", …) -> Pictures.

    It may be called from any thread; one request is made at a time. close() frees its memory, and so does leaving a
    `with` block.
    """

    def __init__(self, settings: Settings, *, log: bool = False) -> None:
        """Load the bundle: see controlnet.open_model."""
        self._predict = declared_predict()
        self._log = log
        self._turns = Turns()
        with silence(not log):
            self._model: Model | None = Model(open_bundle(settings))
        manifest = self._model.bundle.manifest
        self.bundle: str = manifest.name
        """The bundle's name."""
        self.device: str = self._model.bundle.device.type
        """Where it computes: "cuda" or "cpu"."""
        self.conditioners: tuple[str, ...] = tuple(manifest.conditioners)
        """The names of the conditioners that the bundle has."""

    def make(self, inputs: Mapping[str, Any]) -> Pictures:
        """The pictures of a request whose inputs are in a mapping, such as a line of JSON. Like calling the model.

        Raises InputError for a name that is no input, Closed after close(), and Unavailable for a call within a call or
        after a fork in the middle of one.
        """
        self._check_names(inputs)
        with self._turns.turn(), silence(not self._log), plain_errors():
            if self._model is None:
                raise Closed("The model is closed: open it again with open_model().")
            with tempfile.TemporaryDirectory(prefix="call-", dir=home()) as folder:
                return self._make(self._model, self._with_files(inputs, Path(folder)))

    def close(self) -> None:
        """Free the memory of the model, after the request that is being made. A closed model cannot be called."""
        with self._turns.turn():
            self._model = None
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()

    def __enter__(self) -> "OpenModel":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __repr__(self) -> str:
        state = f"on {self.device}" if self._model else "closed"
        return f"<{type(self).__name__} of the bundle {self.bundle}, {state}>"

    def _check_names(self, inputs: Mapping[str, Any]) -> None:
        known = [name for name in inspect.signature(self._predict).parameters if name != "self"]
        faults = []
        for name in inputs:
            if name not in known:
                close = difflib.get_close_matches(str(name), known, 1)
                faults.append(f"There is no input {name!r}{f'; did you mean {close[0]}?' if close else '.'}")
        if faults:
            raise InputError(" ".join(faults))

    def _with_files(self, inputs: Mapping[str, Any], folder: Path) -> dict[str, Any]:
        """The inputs, with a file for each picture, and a data: URI for each LoRA that is a path."""
        files = {
            name: as_file(name, inputs[name], folder)
            for name in file_inputs(self._predict)
            if inputs.get(name) is not None
        }
        loras = {name: lora_as_text(name, inputs[name]) for name, _ in LORA_INPUTS if inputs.get(name) is not None}
        return dict(inputs) | files | loras

    def _make(self, model: Model, inputs: dict[str, Any]) -> Pictures:
        """The way of a request in predict.py, up to writing files."""
        metrics: dict[str, Any] = {}

        def record(name: str, value: Any) -> None:
            group, dot, inner = name.partition(".")
            if dot:  # "timing.decode": Cog's server groups them in the same way
                metrics.setdefault(group, {})[inner] = value
            else:
                metrics[name] = value

        request = read_request(self._predict, inputs, model.bundle)
        answer = model.answer(request, record)
        kind = FileKind(request.output_format, request.output_quality)
        return Pictures(answer.pictures, answer.maps, answer.poses, metrics, kind)
