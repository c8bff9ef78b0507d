"""The parts of a bundle: folders of files that are loaded together, as its manifest lists them."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from controlnet.weights.toml_table import Table

REFERENCE = "reference"
"""The option of the parts that reference pictures need."""
BUNDLE_NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")
_PART_NAME = re.compile(r"[a-z0-9][a-z0-9_]*(/[a-z0-9][a-z0-9_]*)?")
_REPO = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
# No component starts with a dot: that excludes "..", and the download's staging folder has a dotted name.
_FILE_NAME = re.compile(r"[A-Za-z0-9_][\w.-]*(/[A-Za-z0-9_][\w.-]*)*", re.ASCII)


@dataclass(frozen=True)
class Part:
    """A folder of files that are loaded together: one model, one tokenizer, one annotator."""

    name: str
    """Also its folder below weights/<bundle>/."""
    bundle: str
    """The bundle whose folder has the files: the one that lists the part, or the one that it extends."""
    files: tuple[str, ...]
    """Relative to the part's folder, both on disk and on the hub."""
    licence: str
    purpose: str
    repo: str = ""
    """owner/name on the hub; empty if the files come from elsewhere: from git, or from a file that was imported."""
    revision: str = ""
    """A branch, tag or commit of the repo. The lock pins it to a commit."""
    folder: str = ""
    """Folder of the files inside the repo; empty for its root."""
    option: str = ""
    """The only annotator that needs the part, or REFERENCE. While that is not chosen, the part is not fetched and may
    be missing."""

    @property
    def paths(self) -> tuple[str, ...]:
        """The files relative to the bundle's folder, with forward slashes: "unet/config.json"."""
        return tuple(f"{self.name}/{file}" for file in self.files)

    @property
    def repo_paths(self) -> tuple[str, ...]:
        """The files relative to the repo's root, in the order of `paths`."""
        return tuple(f"{self.folder}/{file}" if self.folder else file for file in self.files)


def read_parts(table: Table, bundle: str, embedded: bool, extends: bool) -> tuple[Part, ...]:
    """The parts that the manifest of `bundle` lists. Raises ManifestError.

    An embedded bundle has no repos. One that extends another may leave them out, for files that were imported.
    """
    parts: list[Part] = []
    seen: set[str] = set()
    revisions: dict[str, str] = {}
    for entry in table.tables("parts"):
        part = _read_part(entry, bundle, embedded or (extends and "repo" not in entry.remaining_keys()))
        if any(part.name == other.name for other in parts):
            raise entry.error("name", f"another part is already named {part.name!r}")
        if twice := [path for path in part.paths if path in seen or part.paths.count(path) > 1]:
            raise entry.error("files", f"{twice[0]!r} is named twice")
        if revisions.setdefault(part.repo, part.revision) != part.revision:
            raise entry.error("revision", f"expected {revisions[part.repo]!r} as for the other parts of {part.repo}")
        seen.update(part.paths)
        parts.append(part)
    return tuple(parts)


def replaced(parts: Sequence[Part], own: Sequence[Part]) -> tuple[Part, ...]:
    """`parts` with those of `own` in the places of those with the same names, and the rest of `own` after them."""
    by_name = {part.name: part for part in own}
    known = {part.name for part in parts}
    return (*(by_name.get(part.name, part) for part in parts), *(part for part in own if part.name not in known))


def _read_part(entry: Table, bundle: str, local: bool) -> Part:
    name = entry.name("name", _PART_NAME, "controlnet/canny")
    files = entry.take("files", list)
    if not files:
        raise entry.error("files", "expected at least one file name")
    for file in files:
        if not isinstance(file, str) or not _FILE_NAME.fullmatch(file):
            raise entry.error("files", f"expected a file name inside the part's folder, got {file!r}")
    part = Part(name, bundle, tuple(files), licence=entry.text("licence"), purpose=entry.text("purpose"))
    if not local:  # these four keys are unknown in a part whose files are not on the hub
        part = replace(
            part,
            repo=entry.name("repo", _REPO, "owner/name"),
            revision=entry.text("revision"),
            folder=entry.name("folder", _FILE_NAME, "unet", default=""),
            option=entry.name("option", BUNDLE_NAME, "openpose_cmu", default=""),
        )
    entry.close()
    return part
