"""A bundle's manifest, weights/<bundle>.toml: the files it is made of, what they are for, and the bundle's defaults.

Reading is strict. A misspelt key would otherwise be a silent default, and a file name that leaves the bundle's folder
would be written there by the download.
"""

import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

WEIGHTS = Path(__file__).resolve().parent.parent / "weights"
"""Folder of the manifests, the locks, and one folder of files per bundle."""

_KINDS = {
    str: "a string",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    list: "a list",
    dict: "a table",
}
_BUNDLE_NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")
_PART_NAME = re.compile(r"[a-z0-9][a-z0-9_]*(/[a-z0-9][a-z0-9_]*)?")
_REPO = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
# No component starts with a dot: that shuts out "..", and leaves dotted names to the download's own staging folder.
_FILE_NAME = re.compile(r"[A-Za-z0-9_][\w.-]*(/[A-Za-z0-9_][\w.-]*)*", re.ASCII)


class ManifestError(ValueError):
    """A manifest that cannot be used. The message names the file, the key, and what belongs there."""


@dataclass(frozen=True)
class Defaults:
    """What a request gets where it leaves the input out."""

    resolution: int
    """Length of the picture's short side in pixels: the size that the base model was trained at."""
    num_inference_steps: int
    guidance_scale: float
    scheduler: str


@dataclass(frozen=True)
class Limits:
    """What one request may ask for at most."""

    pixels: int
    """width × height × num_outputs."""


@dataclass(frozen=True)
class ConditionerEntry:
    """A conditioner that the bundle has. Its ControlNet is the part controlnet/<conditioner>."""

    annotator: str
    """A kind in controlnet.annotators.ANNOTATORS."""


@dataclass(frozen=True)
class Part:
    """A folder of files that are loaded together: one model, one tokenizer, one annotator."""

    name: str
    """Also the folder below weights/<bundle>/."""
    files: tuple[str, ...]
    """Relative to the part's folder, on disk and on the hub alike."""
    licence: str
    purpose: str
    repo: str = ""
    """owner/name on the hub; empty in an embedded bundle, whose files are in git."""
    revision: str = ""
    """A branch, tag or commit of the repo. The lock pins it to a commit."""
    folder: str = ""
    """Folder inside the repo that holds the files; empty: its root."""

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
    """One weights bundle, as its manifest describes it."""

    name: str
    title: str
    summary: str
    needs: dict[str, str]
    """For a reader: memory and disk."""
    safety_checker: str
    """Name of the part that flags pictures, or "none", and then safety_note says why."""
    safety_note: str
    embedded: bool
    """The files are in git: there is nothing to download."""
    defaults: Defaults
    limits: Limits
    conditioners: dict[str, ConditionerEntry]
    parts: tuple[Part, ...]
    made: dict[str, Any]
    """How an embedded bundle was made (commit, seed, steps, hardware, data), free-form."""

    @property
    def paths(self) -> tuple[str, ...]:
        """Every file of the bundle relative to its folder, in the manifest's order."""
        return tuple(path for part in self.parts for path in part.paths)

    @classmethod
    def read(cls, path: Path) -> "Manifest":
        """Read weights/<bundle>.toml. Raises ManifestError for whatever it does not understand."""
        where = f"{path.parent.name}/{path.name}"
        try:
            values = tomllib.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            known = ", ".join(bundle_names(path.parent)) or "none"
            raise ManifestError(f"There is no bundle named {path.stem!r}. Bundles with a manifest: {known}.") from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ManifestError(f"{where}: not readable as TOML: {error}.") from error
        manifest = _read_manifest(_Table(values, where))
        if manifest.name != path.stem:
            raise ManifestError(f"{where}: name: expected {path.stem!r}, the file's own name, got {manifest.name!r}.")
        return manifest


def bundle_names(root: Path = WEIGHTS) -> list[str]:
    """Names of the bundles that have a manifest in `root`, sorted."""
    return sorted(path.stem for path in root.glob("*.toml"))


class _Table:
    """A TOML table that is emptied key by key; what is left at the end is a key that nobody knows."""

    def __init__(self, values: dict[str, Any], where: str, prefix: str = "") -> None:
        self._values = dict(values)
        self._where = where
        self._prefix = prefix

    def error(self, key: str, problem: str) -> ManifestError:
        return ManifestError(f"{self._where}: {self._prefix}{key}: {problem}.")

    def take(self, key: str, kind: type, default: Any = None) -> Any:
        """The value of `key`, which must be a `kind`. A key that is absent and has no default is an error."""
        value = self._values.pop(key, default)
        if value is None:
            raise self.error(key, f"missing, expected {_KINDS[kind]}")
        if kind is float and type(value) is int:
            return float(value)
        if type(value) is not kind:  # not isinstance: true would pass as the integer 1
            raise self.error(key, f"expected {_KINDS[kind]}, got {value!r}")
        return value

    def text(self, key: str, default: str | None = None) -> str:
        """A string; one without a default must not be empty."""
        value = self.take(key, str, default)
        if default is None and not value.strip():
            raise self.error(key, "expected some text, got an empty string")
        return value

    def name(self, key: str, pattern: re.Pattern[str], like: str, default: str | None = None) -> str:
        """A string that `pattern` matches as a whole."""
        value = self.take(key, str, default)
        if value != default and not pattern.fullmatch(value):
            raise self.error(key, f"expected a name like {like!r}, got {value!r}")
        return value

    def number(self, key: str, lowest: int, kind: type = int) -> Any:
        """A number of that kind, at least `lowest`."""
        value = self.take(key, kind)
        if not value >= lowest:
            raise self.error(key, f"expected a number of at least {lowest}, got {value!r}")
        return value

    def table(self, key: str, default: dict[str, Any] | None = None) -> "_Table":
        return _Table(self.take(key, dict, default), self._where, f"{self._prefix}{key}.")

    def tables(self, key: str) -> Iterator["_Table"]:
        """The tables of an array, each with its number, counted from 1, in its errors."""
        for number, values in enumerate(self.take(key, list), start=1):
            if type(values) is not dict:
                raise self.error(key, f"expected tables, got {values!r}")
            yield _Table(values, self._where, f"{self._prefix}{key}[{number}].")

    def left(self) -> list[str]:
        return list(self._values)

    def rest(self) -> dict[str, Any]:
        """Whatever is left, taken as it is."""
        values, self._values = self._values, {}
        return values

    def close(self) -> None:
        if self._values:
            raise self.error(min(self._values), "unknown key")


def _read_manifest(table: _Table) -> Manifest:
    embedded = table.take("embedded", bool, False)
    parts = _read_parts(table, embedded)
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
        conditioners=_read_conditioners(table.table("conditioners")),
        parts=parts,
        made=table.table("made", default={}).rest(),
    )
    _check_names(table, manifest)
    table.close()
    return manifest


def _check_names(table: _Table, manifest: Manifest) -> None:
    """Hold that every part which another entry relies on is there."""
    names = {part.name for part in manifest.parts}
    for conditioner in manifest.conditioners:
        if f"controlnet/{conditioner}" not in names:
            raise table.error(f"conditioners.{conditioner}", f"there is no part named 'controlnet/{conditioner}'")
    if manifest.safety_checker == "none":
        if not manifest.safety_note.strip():
            raise table.error("safety_note", "missing, expected the reason why the bundle has no safety checker")
    elif manifest.safety_checker not in names:
        raise table.error("safety_checker", f"expected a part's name or 'none', got {manifest.safety_checker!r}")


def _read_needs(table: _Table) -> dict[str, str]:
    needs = {"memory": table.text("memory"), "disk": table.text("disk")}
    table.close()
    return needs


def _read_defaults(table: _Table) -> Defaults:
    defaults = Defaults(
        resolution=table.number("resolution", 1),
        num_inference_steps=table.number("num_inference_steps", 1),
        guidance_scale=table.number("guidance_scale", 0, float),
        scheduler=table.text("scheduler"),
    )
    table.close()
    return defaults


def _read_limits(table: _Table) -> Limits:
    limits = Limits(pixels=table.number("pixels", 1))
    table.close()
    return limits


def _read_conditioners(table: _Table) -> dict[str, ConditionerEntry]:
    entries = {}
    for conditioner in table.left():
        entry = table.table(conditioner)
        entries[conditioner] = ConditionerEntry(annotator=entry.text("annotator"))
        entry.close()
    return entries


def _read_parts(table: _Table, embedded: bool) -> tuple[Part, ...]:
    parts: list[Part] = []
    seen: set[str] = set()
    revisions: dict[str, str] = {}
    for entry in table.tables("parts"):
        part = _read_part(entry, embedded)
        if any(part.name == other.name for other in parts):
            raise entry.error("name", f"there already is a part named {part.name!r}")
        if twice := [path for path in part.paths if path in seen or part.paths.count(path) > 1]:
            raise entry.error("files", f"{twice[0]!r} is named twice")
        if revisions.setdefault(part.repo, part.revision) != part.revision:
            raise entry.error("revision", f"expected {revisions[part.repo]!r} as for the other parts of {part.repo}")
        seen.update(part.paths)
        parts.append(part)
    return tuple(parts)


def _read_part(entry: _Table, embedded: bool) -> Part:
    name = entry.name("name", _PART_NAME, "controlnet/canny")
    files = entry.take("files", list)
    if not files:
        raise entry.error("files", "expected at least one file name")
    for file in files:
        if not isinstance(file, str) or not _FILE_NAME.fullmatch(file):
            raise entry.error("files", f"expected a file name inside the part's folder, got {file!r}")
    part = Part(name, tuple(files), licence=entry.text("licence"), purpose=entry.text("purpose"))
    if not embedded:  # in an embedded bundle these three are unknown keys
        part = replace(
            part,
            repo=entry.name("repo", _REPO, "owner/name"),
            revision=entry.text("revision"),
            folder=entry.name("folder", _FILE_NAME, "unet", default=""),
        )
    entry.close()
    return part
