"""A weights bundle as an object: which one is at work, are its files there, and its parts opened as models.

Every bundle loads through this code, the embedded tiny one and the full-size ones alike.
"""

import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, ControlNetModel, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer
from transformers.utils.logging import disable_progress_bar

from controlnet import schedulers
from controlnet.annotators import ANNOTATORS, Annotator, LoadedAnnotator
from controlnet.choice import choose_bundle
from controlnet.download import download
from controlnet.load_log import LoadLog
from controlnet.loading import load_pretrained, read_ahead
from controlnet.lockfile import read_lock
from controlnet.manifest import WEIGHTS, Manifest
from controlnet.nets import ControlNets
from controlnet.weights import WeightsError, check

DOWNLOAD = "CONTROLNET_DOWNLOAD"
"""Environment variable: set to 1 (as in the container), setup() fetches weights that are absent, if they are locked."""
VAES = {"AutoencoderKL": AutoencoderKL, "AutoencoderTiny": AutoencoderTiny}


class Bundle:
    """The parts of one bundle, opened on one device in one dtype."""

    def __init__(self, manifest: Manifest, root: Path, device: torch.device, dtype: torch.dtype) -> None:
        self.manifest = manifest
        self.root = root
        self.device = device
        self.dtype = dtype
        self.log = LoadLog(root)

    def folder(self, part: str) -> Path:
        """Where the files of a part are."""
        return self.root / self.manifest.name / part

    def base(self) -> dict[str, Any]:
        """Tokenizer, text encoder, UNet, VAE and scheduler, under the names that diffusers' pipelines give them."""
        self.read_ahead()
        return {
            "tokenizer": self._tokenizer(),
            "text_encoder": self.model(CLIPTextModel, "text_encoder"),
            "unet": self.model(UNet2DConditionModel, "unet"),
            "vae": self.model(VAES[self._class_name("vae")], "vae"),
            "scheduler": self._scheduler(),
        }

    def controlnets(self) -> ControlNets:
        """Every ControlNet of the bundle, by conditioner. On a CPU their numbers stay in the files until used."""
        mapped = self.device.type == "cpu"
        names = self.manifest.conditioners
        stored = {name: self.model(ControlNetModel, f"controlnet/{name}", mapped) for name in names}
        return ControlNets(stored, self.dtype)

    def annotators(self) -> dict[str, Annotator]:
        """Every conditioner's annotator. Conditioners that use the same kind share one."""
        kinds = {entry.annotator for entry in self.manifest.conditioners.values()}
        loaded = {kind: self._annotator(kind) for kind in sorted(kinds)}
        return {name: loaded[entry.annotator] for name, entry in self.manifest.conditioners.items()}

    def model(self, kind: type, part: str, mapped: bool = False) -> Any:
        """A part as a model of class `kind`. Raises WeightsMismatch where its tensors are not the model's.

        `mapped`: in the file's precision, its tensors left in the file, whatever the bundle's dtype.
        """
        with self.log(part, self.files(part), mapped):
            return load_pretrained(kind, self.folder(part), self.device, None if mapped else self.dtype)

    def read_ahead(self) -> None:
        """Have the files of all parts come from the disk from now on, in the manifest's order: the base first."""
        read_ahead(self.files())

    def files(self, *parts: str) -> list[Path]:
        """The files of parts; of all where none is named."""
        chosen = (part for part in self.manifest.parts if part.name in parts or not parts)
        return [self.root / self.manifest.name / path for part in chosen for path in part.paths]

    def resolve(self, inputs: Mapping[str, Any]) -> SimpleNamespace:
        """The inputs of a request, with the bundle's defaults where one is None."""
        defaults = asdict(self.manifest.defaults)
        return SimpleNamespace(
            **{name: defaults.get(name) if value is None else value for name, value in inputs.items()}
        )

    def _class_name(self, part: str) -> str:
        config: Any = AutoencoderKL.load_config(self.folder(part), local_files_only=True)
        return config["_class_name"]

    def _tokenizer(self) -> Any:
        with self.log("tokenizer", self.files("tokenizer")):
            return CLIPTokenizer.from_pretrained(self.folder("tokenizer"), local_files_only=True)

    def _scheduler(self) -> Any:
        """Its class does not matter: each request builds the one it names from this one's configuration."""
        with self.log("scheduler", self.files("scheduler")):
            config: Any = schedulers.DDIMScheduler.load_config(self.folder("scheduler"), local_files_only=True)
            return schedulers.DDIMScheduler.from_config(config)

    def _annotator(self, name: str) -> Annotator:
        kind = ANNOTATORS[name]
        if not kind.parts:
            return LoadedAnnotator(kind, kind.load(self.folder, self.device))
        with self.log(f"annotator {name}", self.files(*kind.parts)):
            return LoadedAnnotator(kind, kind.load(self.folder, self.device))


def open_bundle(environ: Mapping[str, str] = os.environ, root: Path = WEIGHTS) -> Bundle:
    """The bundle at work, its files checked for presence and size; on the GPU in fp16 where there is one.

    Raises WeightsError with every fault and the command that repairs them. Where CONTROLNET_DOWNLOAD is 1, absent
    weights are fetched first, and an unlocked manifest is refused.
    """
    name, reason = choose_bundle(environ, root)
    manifest = Manifest.read(root / f"{name}.toml")
    in_container = environ.get(DOWNLOAD) == "1"
    if in_container and not manifest.embedded and read_lock(manifest, root) is None:
        raise WeightsError(
            f"The container starts with locked weights only, and {name} has no lock: run script/lock-weights {name} "
            "and build it again."
        )
    try:
        check(manifest, root)
    except WeightsError:
        if manifest.embedded or not in_container:
            raise
        download(manifest, root, require_lock=True)
        check(manifest, root)
    cuda = torch.cuda.is_available()
    device, dtype = torch.device("cuda" if cuda else "cpu"), torch.float16 if cuda else torch.float32
    disable_progress_bar()  # of transformers' loading: one per model, in the log of every start
    print(f"bundle: {name} on {device.type}{f' ({reason})' if reason else ''}", flush=True)
    return Bundle(manifest, root, device, dtype)
