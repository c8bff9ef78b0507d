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
from transformers import CLIPTextModel, CLIPTokenizer, PreTrainedModel

from controlnet import schedulers
from controlnet.annotators import ANNOTATORS, Annotator
from controlnet.choice import choose_bundle
from controlnet.download import download
from controlnet.manifest import WEIGHTS, Manifest
from controlnet.weights import WeightsError, check

DOWNLOAD = "CONTROLNET_DOWNLOAD"
"""Environment variable: set to 1 (as in the container), setup() fetches weights that are absent, if they are locked."""
VAES = {"AutoencoderKL": AutoencoderKL, "AutoencoderTiny": AutoencoderTiny}


class BundleError(RuntimeError):
    """A weight file that does not fit the model it is for; the message names the part and the keys."""


class Bundle:
    """The parts of one bundle, opened on one device in one dtype."""

    def __init__(self, manifest: Manifest, root: Path, device: torch.device, dtype: torch.dtype) -> None:
        self.manifest = manifest
        self.root = root
        self.device = device
        self.dtype = dtype

    def folder(self, part: str) -> Path:
        """Where the files of a part are."""
        return self.root / self.manifest.name / part

    def base(self) -> dict[str, Any]:
        """Tokenizer, text encoder, UNet, VAE and scheduler, under the names that diffusers' pipelines give them."""
        return {
            "tokenizer": CLIPTokenizer.from_pretrained(self.folder("tokenizer"), local_files_only=True),
            "text_encoder": self.model(CLIPTextModel, "text_encoder"),
            "unet": self.model(UNet2DConditionModel, "unet"),
            "vae": self.model(VAES[self._class_name("vae")], "vae"),
            "scheduler": self._scheduler(),
        }

    def controlnets(self) -> dict[str, ControlNetModel]:
        """Every ControlNet of the bundle, by conditioner."""
        return {name: self.model(ControlNetModel, f"controlnet/{name}") for name in self.manifest.conditioners}

    def annotators(self) -> dict[str, Annotator]:
        """Every conditioner's annotator. Conditioners that use the same kind share one."""
        kinds = {entry.annotator for entry in self.manifest.conditioners.values()}
        loaded = {kind: ANNOTATORS[kind].load(self.folder, self.device) for kind in sorted(kinds)}
        return {name: loaded[entry.annotator] for name, entry in self.manifest.conditioners.items()}

    def model(self, kind: type, part: str) -> Any:
        """A diffusers or transformers model from its part's folder, in eval mode. Raises BundleError.

        The libraries fill in missing weights with random ones and drop unknown ones, with a warning at most: here
        either is an error.
        """
        variant = "fp16" if any(".fp16." in file for file in self._files(part)) else None
        options = {"variant": variant, "local_files_only": True, "output_loading_info": True}
        dtype = {"dtype" if issubclass(kind, PreTrainedModel) else "torch_dtype": self.dtype}
        loader: Any = kind
        model, report = loader.from_pretrained(self.folder(part), **options, **dtype)
        faults = {what: sorted(report[what]) for what in ("missing_keys", "unexpected_keys", "mismatched_keys")}
        if any(faults.values()):
            told = "; ".join(f"{what.replace('_', ' ')}: {_some(keys)}" for what, keys in faults.items() if keys)
            raise BundleError(f"{part} of {self.manifest.name} does not fit {kind.__name__}: {told}.")
        return model.to(self.device).eval().requires_grad_(False)

    def resolve(self, inputs: Mapping[str, Any]) -> SimpleNamespace:
        """The inputs of a request, with the bundle's defaults where one is None."""
        defaults = asdict(self.manifest.defaults)
        return SimpleNamespace(
            **{name: defaults.get(name) if value is None else value for name, value in inputs.items()}
        )

    def _files(self, part: str) -> tuple[str, ...]:
        return next(entry.files for entry in self.manifest.parts if entry.name == part)

    def _class_name(self, part: str) -> str:
        config: Any = AutoencoderKL.load_config(self.folder(part), local_files_only=True)
        return config["_class_name"]

    def _scheduler(self) -> Any:
        """Its class does not matter: each request builds the one it names from this one's configuration."""
        config: Any = schedulers.DDIMScheduler.load_config(self.folder("scheduler"), local_files_only=True)
        return schedulers.DDIMScheduler.from_config(config)


def open_bundle(environ: Mapping[str, str] = os.environ, root: Path = WEIGHTS) -> Bundle:
    """The bundle at work, its files checked for presence and size; on the GPU in fp16 where there is one.

    Raises WeightsError with every fault and the command that repairs them. Where CONTROLNET_DOWNLOAD is 1, absent
    weights are fetched first, and an unlocked manifest is refused.
    """
    name, reason = choose_bundle(environ, root)
    manifest = Manifest.read(root / f"{name}.toml")
    try:
        check(manifest, root)
    except WeightsError:
        if manifest.embedded or environ.get(DOWNLOAD) != "1":
            raise
        download(manifest, root, require_lock=True)
        check(manifest, root)
    cuda = torch.cuda.is_available()
    device, dtype = torch.device("cuda" if cuda else "cpu"), torch.float16 if cuda else torch.float32
    print(f"bundle: {name} on {device.type}{f' ({reason})' if reason else ''}", flush=True)
    return Bundle(manifest, root, device, dtype)


def _some(keys: list) -> str:
    return ", ".join(map(str, keys[:3])) + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")
