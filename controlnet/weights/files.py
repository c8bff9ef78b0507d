"""Check that a bundle's files are present and right. Works with files and hashes only, and imports no models.

`check` compares presence and size in milliseconds, so it runs before every start. `verify` reads every byte. Both
collect all faults and raise once, with the commands that repair them. download.py fetches files. Parts of annotators
that are not chosen are ignored (Manifest.options). A bundle that extends another is checked with that one's files.
"""

import hashlib
from collections.abc import Iterable
from pathlib import Path

from controlnet.settings import Settings
from controlnet.weights.lockfile import Lock, WeightsError, read_lock
from controlnet.weights.manifest import WEIGHTS, Manifest, choose_bundle

TENSOR_FILES = (".safetensors", ".bin", ".pth", ".pt")
"""Suffixes of the files that hold tensors of PyTorch."""


def check_chosen(settings: Settings, root: Path = WEIGHTS) -> None:
    """Raise ManifestError or WeightsError if the bundle that the settings choose cannot be opened.

    That takes milliseconds, and importing what opens a bundle takes many seconds. If absent files are fetched when it
    is opened, only its manifest is read.
    """
    manifest = Manifest.read(
        root / f"{choose_bundle(settings.bundle, root)[0]}.toml", settings.annotators, settings.reference
    )
    if not settings.download:
        check(manifest, root)


def check(manifest: Manifest, root: Path = WEIGHTS) -> None:
    """Raise WeightsError with all faults unless every needed file is present and has the locked size.

    Without a lock, an empty file is the only one whose size is known to be wrong.
    """
    layers = manifest.manifests
    _raise_faults(manifest, root, [(layer, _size_faults(layer, root, read_lock(layer, root))) for layer in layers])


def verify(manifest: Manifest, root: Path = WEIGHTS) -> None:
    """Raise WeightsError with all faults unless every needed file has the locked size and sha256."""
    faults = []
    for layer in manifest.manifests:
        lock = read_lock(layer, root)
        if lock is None:
            raise WeightsError(
                f"{layer.name} has no lock to verify its files against. Write one: script/lock-weights {layer.name}"
            )
        faults.append((layer, _content_faults(layer, root, lock)))
    _raise_faults(manifest, root, faults)


def _content_faults(manifest: Manifest, root: Path, lock: Lock) -> dict[str, str]:
    faults = _size_faults(manifest, root, lock)
    for path in manifest.needed_paths:
        if path not in faults:
            expected, got = lock.file(path).sha256, sha256(root / manifest.name / path)
            if got != expected:
                faults[path] = f"wrong content, expected sha256 {expected}, got {got}"
    return faults


def sha256(path: Path) -> str:
    """The file's sha256, as 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def size_fault(path: Path, expected: int | None) -> str | None:
    """What is wrong with a file's presence or its size in bytes, or None. `expected` is None if the size is unknown."""
    wanted = "" if expected is None else f", expected {expected} bytes"
    if not path.exists():
        return f"missing{wanted}"
    if not path.is_file():
        return f"not a file{wanted}"
    got = path.stat().st_size
    if expected is None:
        return None if got else "empty"
    if got == expected:
        return None
    return f"too {'short' if got < expected else 'long'}{wanted}, got {got}"


def repair_command(manifest: Manifest) -> str:
    """The command that repairs the files in the bundle's own folder."""
    if manifest.embedded:
        return f"git checkout HEAD -- weights/{manifest.name}"
    if not any(part.repo for part in manifest.parts):
        if "sha256" not in manifest.made:
            return f"put the files into weights/{manifest.name} again, which are not on the hub"
        nets = [part.name.partition("/")[2] for part in manifest.parts if part.name.startswith("controlnet/")]
        options = f"--name {manifest.name} --replace" + (f" --conditioner {nets[0]}" if nets else "")
        return f"script/import-checkpoint FILE {options}, with the file that it was made from"
    chosen = "".join(f"{variable}={word} " for variable, word in manifest.choices().items())
    return f"{chosen}script/download-weights {manifest.name}"


def _size_faults(manifest: Manifest, root: Path, lock: Lock | None) -> dict[str, str]:
    def fault(path: str) -> str | None:
        return size_fault(root / manifest.name / path, lock.file(path).size if lock else None)

    return _only_faults((path, fault(path)) for path in manifest.needed_paths)


def _only_faults(findings: Iterable[tuple[str, str | None]]) -> dict[str, str]:
    return {path: fault for path, fault in findings if fault is not None}


def _raise_faults(manifest: Manifest, root: Path, layers: list[tuple[Manifest, dict[str, str]]]) -> None:
    """Raise WeightsError if a layer of the manifest has a fault."""
    found = [(layer, faults) for layer, faults in layers if faults]
    if not found:
        return
    # Listed in the manifests' order.
    lines = [
        f"  {root.name}/{layer.name}/{path}: {faults[path]}"
        for layer, faults in found
        for path in layer.paths
        if path in faults
    ]
    count = "1 file is" if len(lines) == 1 else f"{len(lines)} files are"
    heading = f"The weights of {manifest.name} cannot be used: {count} missing or wrong."
    raise WeightsError("\n".join([heading, *lines, *(f"Repair: {repair_command(layer)}" for layer, _ in found)]))
