"""The bundle for tests of the weights: three small files in two repos of a stand-in hub."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub import constants, file_download
from huggingface_hub.utils import _http

from controlnet.weights import hub as hub_module
from controlnet.weights.download import download
from controlnet.weights.manifest import Manifest
from support.hub import Hub

MANIFEST = """
name = "small"
title = "A small bundle"
summary = "For tests."
needs = { memory = "1 GB", disk = "1 MB" }
safety_checker = "none"
safety_note = "It draws nothing."
[defaults]
resolution = 64
num_inference_steps = 2
guidance_scale = 4
scheduler = "DDIM"
[limits]
pixels = 4096
[conditioners]
[[parts]]
name = "unet"
repo = "someone/base"
revision = "main"
folder = "unet"
files = ["config.json", "model.safetensors"]
licence = "MIT"
purpose = "Denoising network"
[[parts]]
name = "annotator/hed"
repo = "someone/annotators"
revision = "main"
files = ["hed.pth"]
licence = "MIT"
purpose = "Draws soft edges"
"""
CONFIG = json.dumps({"channels": [4, 8]}).encode()
MODEL = bytes(range(256)) * 1200
HED = bytes(reversed(range(256))) * 300
CONTENT = {"unet/config.json": CONFIG, "unet/model.safetensors": MODEL, "annotator/hed/hed.pth": HED}


def point_at(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """Set what HF_ENDPOINT and HF_HUB_DISABLE_XET set in a new process, and do not wait between tries."""
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(hub_module, "_WAITS", (0, 0, 0))
    monkeypatch.setattr(_http, "time", SimpleNamespace(sleep=lambda seconds: None))
    monkeypatch.setattr(file_download, "time", SimpleNamespace(sleep=lambda seconds: None))


def on_disk(root: Path) -> dict[str, bytes]:
    """The content of every file below the bundle's folder, by its path."""
    folder = root / "small"
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def fetch(manifest: Manifest, root: Path) -> None:
    download(manifest, root, progress=False)
