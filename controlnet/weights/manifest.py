"""A bundle's manifest, weights/<bundle>.toml: its files, their purpose, and the bundle's defaults and limits.

Reading is strict: a misspelt key must not silently become a default, and a file name must not lead a download out of
the bundle's folder. No model is imported here, so scripts can choose a bundle before they start anything heavy.
"""

import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from controlnet.weights.toml_table import ManifestError, Table

WEIGHTS = Path(__file__).resolve().parents[2] / "weights"
"""Folder of the manifests, the locks, and one folder of files per bundle."""
BUNDLE = "CONTROLNET_BUNDLE"
"""Environment variable: the bundle's name."""
_PREFERRED, _FALLBACK = "sd15", "tiny"  # the bundle if BUNDLE is not set: see choose_bundle

_BUNDLE_NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")
_PART_NAME = re.compile(r"[a-z0-9][a-z0-9_]*(/[a-z0-9][a-z0-9_]*)?")
_REPO = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
# No component starts with a dot: that excludes "..", and the download's staging folder has a dotted name.
_FILE_NAME = re.compile(r"[A-Za-z0-9_][\w.-]*(/[A-Za-z0-9_][\w.-]*)*", re.ASCII)


def option_variable(option: str) -> str:
    """The environment variable that is 1 to switch an option on: CONTROLNET_OPENPOSE_CMU for openpose_cmu."""
    return f"CONTROLNET_{option.upper()}"


@dataclass(frozen=True)
class Defaults:
    """The values of inputs that a request leaves out."""

    resolution: int
    """Length of the picture's short side in pixels: the size at which the base model was trained."""
    num_inference_steps: int
    guidance_scale: float
    scheduler: str
    control_mode: str = "balanced"
    """A key of controlnet.request.modes.CONTROL_MODES."""


@dataclass(frozen=True)
class Fast:
    """How the bundle paints in few steps, if a request says go_fast."""

    part: str
    """The part with the LoRA that makes it possible."""
    num_inference_steps: int
    """Unless a request names another number from `steps`."""
    guidance_scale: float
    """Unless a request names another number from `guidance`."""
    scheduler: str
    """The only one that works."""
    steps: tuple[int, int]
    """The least and the most that work."""
    guidance: tuple[float, float]
    """As `steps`, for guidance_scale."""


@dataclass(frozen=True)
class Limits:
    """Upper limits for one request."""

    pixels: int
    """width × height × num_outputs."""
    upscaled_pixels: int
    """The same after the pictures are enlarged (input upscale). Unless the manifest says it: as many as `pixels`."""


@dataclass(frozen=True)
class ConditionerEntry:
    """A conditioner of the bundle. Its ControlNet is the part controlnet/<conditioner>."""

    annotator: str
    """Name of the AnnotatorKind that draws its control map: a key of controlnet.maps.annotators.ANNOTATORS."""
    option: str = ""
    """Another key, used instead if the environment switches it on (option_variable). Empty if there is none."""


@dataclass(frozen=True)
class Part:
    """A folder of files that are loaded together: one model, one tokenizer, one annotator."""

    name: str
    """Also its folder below weights/<bundle>/."""
    files: tuple[str, ...]
    """Relative to the part's folder, both on disk and on the hub."""
    licence: str
    purpose: str
    repo: str = ""
    """owner/name on the hub; empty in an embedded bundle, whose files are in git."""
    revision: str = ""
    """A branch, tag or commit of the repo. The lock pins it to a commit."""
    folder: str = ""
    """Folder of the files inside the repo; empty for its root."""
    option: str = ""
    """The only option that needs the part. While it is off, the part is not fetched and may be missing."""

    @property
    def paths(self) -> tuple[str, ...]:
        """The files relative to the bundle's folder, with forward slashes: "unet/config.json"."""
        return tuple(f"{self.name}/{file}" for file in self.files)

    @property
    def repo_paths(self) -> tuple[str, ...]:
        """The files relative to the repo's root, in the order of `paths`."""
        return tuple(f"{self.folder}/{file}" if self.folder else file for file in self.files)


@dataclass(frozen=True)
class Manifest:
    """A weights bundle as its manifest describes it."""

    name: str
    title: str
    summary: str
    needs: dict[str, str]
    """Memory and disk, as text for a reader."""
    safety_checker: str
    """Name of the part that flags pictures, or "none"; safety_note then gives the reason."""
    safety_note: str
    embedded: bool
    """The files are in git: there is nothing to download."""
    defaults: Defaults
    limits: Limits
    conditioners: dict[str, ConditionerEntry]
    parts: tuple[Part, ...]
    made: dict[str, Any]
    """How an embedded bundle was made (commit, seed, steps, hardware, data). Its keys are free."""
    options: frozenset[str]
    """The options that are on."""
    fast: Fast | None = None
    """How to paint in few steps. None if the bundle cannot."""
    cpu_threads: int | None = None
    """With how many threads the bundle is fastest without a GPU. None leaves it to PyTorch: one per core."""

    @property
    def paths(self) -> tuple[str, ...]:
        """All files of the bundle relative to its folder, in the manifest's order, including those of all options."""
        return tuple(path for part in self.parts for path in part.paths)

    @property
    def needed_parts(self) -> tuple[Part, ...]:
        """All parts except those of options that are off, in the manifest's order."""
        return tuple(part for part in self.parts if not part.option or part.option in self.options)

    @property
    def needed_paths(self) -> tuple[str, ...]:
        """The files of the needed parts, like `paths`."""
        return tuple(path for part in self.needed_parts for path in part.paths)

    def annotator(self, conditioner: str) -> str:
        """Name of the AnnotatorKind that draws the conditioner's map: its option if that is on."""
        entry = self.conditioners[conditioner]
        return entry.option if entry.option in self.options else entry.annotator

    @classmethod
    def read(cls, path: Path, environ: Mapping[str, str] = os.environ) -> "Manifest":
        """Read weights/<bundle>.toml. `environ` switches options on (option_variable).

        Raises ManifestError for anything missing, misspelt or of the wrong type.
        """
        source = f"{path.parent.name}/{path.name}"
        try:
            values = tomllib.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            known = ", ".join(bundle_names(path.parent)) or "none"
            raise ManifestError(f"There is no bundle named {path.stem!r}. Bundles with a manifest: {known}.") from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ManifestError(f"{source}: not readable as TOML: {error}.") from error
        manifest = _read_manifest(Table(values, source), environ)
        if manifest.name != path.stem:
            raise ManifestError(f"{source}: name: expected {path.stem!r}, as the file is named, got {manifest.name!r}.")
        return manifest


def bundle_names(root: Path = WEIGHTS) -> list[str]:
    """Names of the bundles that have a manifest in `root`, sorted."""
    return sorted(path.stem for path in root.glob("*.toml"))


def choose_bundle(environ: Mapping[str, str], root: Path = WEIGHTS) -> tuple[str, str]:
    """The bundle's name, and the reason in one line, which is empty if the environment names the bundle.

    Otherwise it is sd15 if any of its files is on disk, and tiny if not. One file is enough: setup() then reports what
    is missing or wrong, instead of silently using tiny.
    """
    if named := environ.get(BUNDLE):
        return named, ""
    preferred = Manifest.read(root / f"{_PREFERRED}.toml")
    if any((root / _PREFERRED / path).exists() for path in preferred.paths):
        return _PREFERRED, f"the {_PREFERRED} weights are there"
    return _FALLBACK, f"no {_PREFERRED} weights: script/download-weights {_PREFERRED}"


def _read_manifest(table: Table, environ: Mapping[str, str]) -> Manifest:
    embedded = table.take("embedded", bool, False)
    parts = _read_parts(table, embedded)
    conditioners = _read_conditioners(table.table("conditioners"))
    options = {entry.option for entry in conditioners.values() if entry.option}
    manifest = Manifest(
        name=table.name("name", _BUNDLE_NAME, "sd15"),
        title=table.text("title"),
        summary=table.text("summary"),
        needs=_read_needs(table.table("needs")),
        safety_checker=table.text("safety_checker"),
        safety_note=table.text("safety_note", default=""),
        embedded=embedded,
        defaults=_read_defaults(table.table("defaults")),
        limits=_read_limits(table.table("limits")),
        conditioners=conditioners,
        parts=parts,
        made=table.table("made", default={}).take_rest(),
        options=frozenset(option for option in options if environ.get(option_variable(option)) == "1"),
        fast=_read_fast(table.table("fast")) if "fast" in table.remaining_keys() else None,
        cpu_threads=table.number("cpu_threads", 1) if "cpu_threads" in table.remaining_keys() else None,
    )
    _check_names(table, manifest)
    table.close()
    return manifest


def _check_names(table: Table, manifest: Manifest) -> None:
    """Raise ManifestError unless every part and option that another entry names exists."""
    names = {part.name for part in manifest.parts if not part.option}
    options = {entry.option for entry in manifest.conditioners.values()}
    for number, part in enumerate(manifest.parts, start=1):
        if part.option and part.option not in options:
            raise table.error(f"parts[{number}].option", f"no conditioner has the option {part.option!r}")
    for conditioner in manifest.conditioners:
        if f"controlnet/{conditioner}" not in names:
            raise table.error(f"conditioners.{conditioner}", f"there is no part named 'controlnet/{conditioner}'")
    if manifest.fast and manifest.fast.part not in names:
        raise table.error("fast.part", f"there is no part named {manifest.fast.part!r}")
    if manifest.safety_checker == "none":
        if not manifest.safety_note.strip():
            raise table.error("safety_note", "missing, expected the reason for having no safety checker")
    elif manifest.safety_checker not in names:
        raise table.error("safety_checker", f"expected a part's name or 'none', got {manifest.safety_checker!r}")


def _read_needs(table: Table) -> dict[str, str]:
    needs = {"memory": table.text("memory"), "disk": table.text("disk")}
    table.close()
    return needs


def _read_defaults(table: Table) -> Defaults:
    defaults = Defaults(
        resolution=table.number("resolution", 1),
        num_inference_steps=table.number("num_inference_steps", 1),
        guidance_scale=table.number("guidance_scale", 0, float),
        scheduler=table.text("scheduler"),
        control_mode=table.text("control_mode", "balanced"),
    )
    table.close()
    return defaults


def _read_fast(table: Table) -> Fast:
    steps, guidance = table.take("steps", list), table.take("guidance", list)
    for key, pair in (("steps", steps), ("guidance", guidance)):
        if len(pair) != 2 or not all(isinstance(value, int | float) for value in pair) or pair[0] > pair[1]:
            raise table.error(key, f"expected the least and the most, such as [2, 8], got {pair}")
    fast = Fast(
        part=table.name("part", _PART_NAME, "lora/fast"),
        num_inference_steps=table.number("num_inference_steps", 1),
        guidance_scale=table.number("guidance_scale", 0, float),
        scheduler=table.text("scheduler"),
        steps=(steps[0], steps[1]),
        guidance=(guidance[0], guidance[1]),
    )
    table.close()
    return fast


def _read_limits(table: Table) -> Limits:
    pixels = table.number("pixels", 1)
    upscaled = table.number("upscaled_pixels", 1) if "upscaled_pixels" in table.remaining_keys() else pixels
    limits = Limits(pixels, upscaled)
    table.close()
    return limits


def _read_conditioners(table: Table) -> dict[str, ConditionerEntry]:
    entries = {}
    for conditioner in table.remaining_keys():
        entry = table.table(conditioner)
        option = entry.name("option", _BUNDLE_NAME, "openpose_cmu", default="")
        entries[conditioner] = ConditionerEntry(entry.text("annotator"), option)
        entry.close()
    return entries


def _read_parts(table: Table, embedded: bool) -> tuple[Part, ...]:
    parts: list[Part] = []
    seen: set[str] = set()
    revisions: dict[str, str] = {}
    for entry in table.tables("parts"):
        part = _read_part(entry, embedded)
        if any(part.name == other.name for other in parts):
            raise entry.error("name", f"another part is already named {part.name!r}")
        if twice := [path for path in part.paths if path in seen or part.paths.count(path) > 1]:
            raise entry.error("files", f"{twice[0]!r} is named twice")
        if revisions.setdefault(part.repo, part.revision) != part.revision:
            raise entry.error("revision", f"expected {revisions[part.repo]!r} as for the other parts of {part.repo}")
        seen.update(part.paths)
        parts.append(part)
    return tuple(parts)


def _read_part(entry: Table, embedded: bool) -> Part:
    name = entry.name("name", _PART_NAME, "controlnet/canny")
    files = entry.take("files", list)
    if not files:
        raise entry.error("files", "expected at least one file name")
    for file in files:
        if not isinstance(file, str) or not _FILE_NAME.fullmatch(file):
            raise entry.error("files", f"expected a file name inside the part's folder, got {file!r}")
    part = Part(name, tuple(files), licence=entry.text("licence"), purpose=entry.text("purpose"))
    if not embedded:  # these four keys are unknown in an embedded bundle
        part = replace(
            part,
            repo=entry.name("repo", _REPO, "owner/name"),
            revision=entry.text("revision"),
            folder=entry.name("folder", _FILE_NAME, "unet", default=""),
            option=entry.name("option", _BUNDLE_NAME, "openpose_cmu", default=""),
        )
    entry.close()
    return part
