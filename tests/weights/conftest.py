"""The small bundle's hub, folder and manifest, for all tests of the weights."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.hub import Hub
from support.small_bundle import CONFIG, HED, MANIFEST, MODEL, point_at

from controlnet.weights.manifest import Manifest


@pytest.fixture(name="hub")
def hub_fixture(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with Hub() as hub:
        hub.publish("someone/base", {"unet/config.json": CONFIG, "unet/model.safetensors": MODEL, "README.md": b"hi"})
        hub.publish("someone/annotators", {"hed.pth": HED, "other.pth": b"unwanted"})
        point_at(hub, monkeypatch)
        yield hub


@pytest.fixture(name="root")
def root_fixture(tmp_path: Path) -> Path:
    root = tmp_path / "weights"
    root.mkdir()
    (root / "small.toml").write_text(MANIFEST)
    return root


@pytest.fixture(name="manifest")
def manifest_fixture(root: Path) -> Manifest:
    return Manifest.read(root / "small.toml")
