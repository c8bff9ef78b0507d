"""A bundle's manifest, weights/<bundle>.toml: its files, their purpose, and the bundle's defaults and limits.

Reading is strict: a misspelt key must not silently become a default, and a file name must not lead a download out of
the bundle's folder. No model is imported here, so scripts can choose a bundle before they start anything heavy.

A manifest may extend another: it lists only what differs, and shares the files of all other parts with that bundle.
"""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from controlnet.settings import Settings, variable_of
from controlnet.weights.entries import ConditionerEntry, chosen, read_entries
from controlnet.weights.parts import BUNDLE_NAME, REFERENCE, Part, read_parts, replaced
from controlnet.weights.tables import (
    Defaults,
    Fast,
    Limits,
    Reference,
    read_defaults,
    read_fast,
    read_limits,
    read_needs,
    read_reference,
)
from controlnet.weights.toml_table import ManifestError, Table

WEIGHTS = Path(__file__).resolve().parents[2] / "weights"
"""Folder of the manifests, the locks, and one folder of files per bundle."""
BUNDLE = "CONTROLNET_BUNDLE"
"""Environment variable: the bundle's name."""
_PREFERRED, _FALLBACK = "sd15", "tiny"  # the bundle if BUNDLE is not set: see choose_bundle


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
    family: str
    """The kind of models: a name of controlnet/families."""
    defaults: Defaults
    limits: Limits
    conditioners: dict[str, ConditionerEntry]
    parts: tuple[Part, ...]
    """With those of the bundle that it extends, except those that it replaces."""
    made: dict[str, Any]
    """How an embedded or imported bundle was made (commit, seed, steps, hardware, data). Its keys are free."""
    chosen: dict[str, str]
    """For each conditioner whose annotator is not its first, the word that chooses it."""
    fast: Fast | None = None
    """How to paint in few steps. None if the bundle cannot."""
    reference: Reference | None = None
    """How reference pictures act. None if the bundle takes none, or if they are switched off."""
    cpu_threads: int | None = None
    """With how many threads the bundle is fastest without a GPU. None leaves it to PyTorch: one per core."""
    base: "Manifest | None" = None
    """The bundle that it extends."""
    left_out: frozenset[str] = field(default=frozenset())
    """Names of parts that are not needed: those of a base that the bundle above it replaces."""

    @property
    def paths(self) -> tuple[str, ...]:
        """All files relative to their bundle's folder, in the manifest's order, also those of unused annotators."""
        return tuple(path for part in self.parts for path in part.paths)

    @property
    def options(self) -> frozenset[str]:
        """The annotators that the environment has chosen in the place of a conditioner's first."""
        return frozenset(self.annotator(conditioner) for conditioner in self.chosen)

    @property
    def needed_parts(self) -> tuple[Part, ...]:
        """All parts but those of options that are not chosen, and those left out; in the manifest's order."""
        options = self.options | ({REFERENCE} if self.reference else set())
        chosen = (part for part in self.parts if not part.option or part.option in options)
        return tuple(part for part in chosen if part.name not in self.left_out)

    @property
    def needed_paths(self) -> tuple[str, ...]:
        """The files of the needed parts, like `paths`."""
        return tuple(path for part in self.needed_parts for path in part.paths)

    @property
    def manifests(self) -> "tuple[Manifest, ...]":
        """The bundle as one manifest for each folder that has files of it, the base first.

        Each has the parts of one folder and a lock of its own; the base's without the parts that are replaced.
        """
        if self.base is None:
            return (self,)
        own = replace(self, parts=tuple(part for part in self.parts if part.bundle == self.name), base=None)
        left_out = frozenset(part.name for part in own.parts)
        return (replace(self.base, left_out=left_out, conditioners=self.conditioners, chosen=self.chosen), own)

    def part(self, name: str) -> Part:
        """The part of that name. Raises KeyError if there is none."""
        return {part.name: part for part in self.parts}[name]

    def annotator(self, conditioner: str) -> str:
        """Name of the AnnotatorKind that draws the conditioner's map: the chosen one, or else its first."""
        entry = self.conditioners[conditioner]
        return entry.annotators[self.chosen[conditioner]] if conditioner in self.chosen else entry.annotator

    def choices(self) -> dict[str, str]:
        """The environment variables that make parts needed which otherwise are not, with their values."""
        chosen = {variable_of(conditioner): word for conditioner, word in sorted(self.chosen.items())}
        optional = self.reference is not None and any(part.option == REFERENCE for part in self.parts)
        return chosen | ({Settings.variable("reference"): "1"} if optional else {})

    @classmethod
    def read(cls, path: Path, annotators: Mapping[str, str] | None = None, reference: bool | None = None) -> "Manifest":
        """Read weights/<bundle>.toml, and the one that it extends.

        `annotators` are the words that choose them, by conditioner; if it is None, it and `reference` are those of the
        environment's settings. Without a `reference` there, it is on if all files for it are in the bundle's folder.

        Raises ManifestError for anything missing, misspelt or of the wrong type.
        """
        if annotators is None:
            settings = Settings.read()
            annotators, reference = settings.annotators, settings.reference
        values = _read_toml(path)
        source = f"{path.parent.name}/{path.name}"
        base = None
        if "extends" in values:
            name = Table({"extends": values.pop("extends")}, source).name("extends", BUNDLE_NAME, "sd15")
            base_path = path.with_name(f"{name}.toml")
            inherited = _read_toml(base_path)
            if "extends" in inherited:
                raise ManifestError(f"{source}: extends: {name} extends {inherited['extends']}: extend that one.")
            base = cls.read(base_path, annotators, reference)
            values = _with_inherited(values, inherited)
        manifest = _read_manifest(Table(values, source), annotators, base)
        if manifest.name != path.stem:
            raise ManifestError(f"{source}: name: expected {path.stem!r}, as the file is named, got {manifest.name!r}.")
        return manifest if manifest._takes_references(path.parent, reference) else replace(manifest, reference=None)

    def _takes_references(self, root: Path, asked: bool | None) -> bool:
        if asked is not None or self.reference is None:
            return asked is not False
        parts = self.part(self.reference.adapter), self.part(self.reference.encoder)
        return all((root / part.bundle / path).exists() for part in parts for path in part.paths)


def bundle_names(root: Path = WEIGHTS) -> list[str]:
    """Names of the bundles that have a manifest in `root`, sorted."""
    return sorted(path.stem for path in root.glob("*.toml"))


def choose_bundle(named: str, root: Path = WEIGHTS) -> tuple[str, str]:
    """The bundle's name, and the reason in one line, which is empty if the bundle is `named` (Settings.bundle).

    Otherwise it is sd15 if any of its files is on disk, and tiny if not. One file is enough: setup() then reports what
    is missing or wrong, instead of silently using tiny. Raises ManifestError for what is no name, such as a path.
    """
    if named:
        if not BUNDLE_NAME.fullmatch(named):
            raise ManifestError(f"{BUNDLE}: expected the name of a bundle, such as {_PREFERRED}, got {named!r}.")
        return named, ""
    preferred = Manifest.read(root / f"{_PREFERRED}.toml")
    if any((root / _PREFERRED / path).exists() for path in preferred.paths):
        return _PREFERRED, f"the {_PREFERRED} weights are there"
    return _FALLBACK, f"no {_PREFERRED} weights: script/download-weights {_PREFERRED}"


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        known = ", ".join(bundle_names(path.parent)) or "none"
        raise ManifestError(f"There is no bundle named {path.stem!r}. Bundles with a manifest: {known}.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ManifestError(f"{path.parent.name}/{path.name}: not readable as TOML: {error}.") from error


_OPTIONAL_TABLES = ("fast", "reference")
"""A bundle that extends another one says `fast = false` if it has none."""
_INHERITED_TABLES = ("needs", "defaults", "limits", *_OPTIONAL_TABLES, "conditioners")
_NOT_INHERITED = ("name", "title", "summary", "embedded", "parts", "made")


def _with_inherited(values: Mapping[str, Any], inherited: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a manifest with those that it takes from the one that it extends. Its tables may be incomplete."""
    shared = {key: value for key, value in inherited.items() if key not in _NOT_INHERITED}
    merged = shared | dict(values)
    for key in _INHERITED_TABLES:
        if key in shared and type(merged[key]) is dict:
            merged[key] = shared[key] | merged[key]
    return {key: value for key, value in merged.items() if not (key in _OPTIONAL_TABLES and value is False)}


def _read_manifest(table: Table, annotators: Mapping[str, str], base: Manifest | None) -> Manifest:
    embedded = table.take("embedded", bool, False)
    name = table.name("name", BUNDLE_NAME, "sd15")
    own = read_parts(table, name, embedded, extends=base is not None)
    conditioners = read_entries(table.table("conditioners"))
    manifest = Manifest(
        name=name,
        title=table.text("title"),
        summary=table.text("summary"),
        needs=read_needs(table.table("needs")),
        safety_checker=table.text("safety_checker"),
        safety_note=table.text("safety_note", default=""),
        embedded=embedded,
        family=table.text("family", default="sd15"),
        defaults=read_defaults(table.table("defaults")),
        limits=read_limits(table.table("limits")),
        conditioners=conditioners,
        parts=replaced(base.parts, own) if base else own,
        made=table.table("made", default={}).take_rest(),
        fast=read_fast(table.table("fast")) if "fast" in table.remaining_keys() else None,
        reference=read_reference(table.table("reference")) if "reference" in table.remaining_keys() else None,
        chosen=chosen(conditioners, annotators),
        cpu_threads=table.number("cpu_threads", 1) if "cpu_threads" in table.remaining_keys() else None,
        base=base,
    )
    _check_names(table, manifest)
    table.close()
    return manifest


def _check_names(table: Table, manifest: Manifest) -> None:
    """Raise ManifestError unless every part and annotator that another entry names exists."""
    names = {part.name for part in manifest.parts if not part.option}
    options = {kind for entry in manifest.conditioners.values() for kind in entry.others.values()}
    own = {manifest.reference.adapter, manifest.reference.encoder} if manifest.reference else set()
    for number, part in enumerate(manifest.parts, start=1):
        if part.option == REFERENCE and part.name not in own:
            raise table.error(f"parts[{number}].option", "the table [reference] does not name this part")
        if part.option not in {"", REFERENCE, *options}:
            raise table.error(f"parts[{number}].option", f"no conditioner can choose the annotator {part.option!r}")
    if manifest.reference and (missing := own - {part.name for part in manifest.parts}):
        raise table.error("reference", f"there is no part named {min(missing)!r}")
    for conditioner, entry in manifest.conditioners.items():
        if entry.part not in names:
            raise table.error(f"conditioners.{conditioner}", f"there is no part named {entry.part!r}")
    if manifest.fast and manifest.fast.part not in names:
        raise table.error("fast.part", f"there is no part named {manifest.fast.part!r}")
    if manifest.safety_checker == "none":
        if not manifest.safety_note.strip():
            raise table.error("safety_note", "missing, expected the reason for having no safety checker")
    elif manifest.safety_checker not in names:
        raise table.error("safety_checker", f"expected a part's name or 'none', got {manifest.safety_checker!r}")
