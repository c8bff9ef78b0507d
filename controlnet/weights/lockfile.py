"""A bundle's lock, weights/<bundle>.lock: the commit of each repo, and the size and sha256 of each file.

The lock is TOML with one line per repo and one line per file, in the manifest's order, so a diff of two locks is short.
"""

import json
import os
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from controlnet.weights.manifest import Manifest, Part

COMMIT = re.compile(r"[0-9a-f]{40}")
SHA256 = re.compile(r"[0-9a-f]{64}")


class WeightsError(RuntimeError):
    """Weights are missing or wrong, or could not be fetched. The message says how to repair it."""


@dataclass(frozen=True)
class LockedRepo:
    """The commit that a revision pointed to when the lock was written."""

    repo: str
    revision: str
    commit: str
    """40 hexadecimal digits."""


@dataclass(frozen=True)
class LockedFile:
    """The required size and hash of one file."""

    path: str
    """Relative to the bundle's folder, with forward slashes."""
    size: int
    """Bytes."""
    sha256: str
    """64 hexadecimal digits."""


@dataclass(frozen=True)
class Lock:
    """The commits and files that a bundle is pinned to."""

    bundle: str
    repos: tuple[LockedRepo, ...]
    files: tuple[LockedFile, ...]

    def file(self, path: str) -> LockedFile:
        """The row of a file. Raises KeyError if there is none; read_lock excludes that."""
        return {file.path: file for file in self.files}[path]

    def commit(self, part: Part) -> str:
        """The commit of a part's files. Raises KeyError if there is none; read_lock excludes that."""
        return {(repo.repo, repo.revision): repo.commit for repo in self.repos}[part.repo, part.revision]

    def mismatches(self, manifest: Manifest) -> list[str]:
        """Differences from the manifest, which may have been edited since. Empty if the lock fits it.

        What no option needs now may be absent, so a lock from before there was that option still fits.
        """
        wanted = {(part.repo, part.revision) for part in manifest.needed_parts if part.repo}
        known = {(part.repo, part.revision) for part in manifest.parts if part.repo}
        locked = {(repo.repo, repo.revision) for repo in self.repos}
        paths = {file.path for file in self.files}
        found = [f"no commit for {repo} at {revision}" for repo, revision in sorted(wanted - locked)]
        found += [f"an unexpected commit for {repo} at {revision}" for repo, revision in sorted(locked - known)]
        found += [f"no line for {path}" for path in manifest.needed_paths if path not in paths]
        found += [f"an unexpected line for {path}" for path in sorted(paths - set(manifest.paths))]
        return found

    def text(self) -> str:
        """The content of the lock file. The same lock always gives the same text."""
        repos = [_row(repo=r.repo, revision=r.revision, commit=r.commit) for r in self.repos]
        files = [_row(path=f.path, size=f.size, sha256=f.sha256) for f in self.files]
        return "\n".join([
            f"# Written by script/lock-weights {self.bundle}, not to be edited: what every file of the bundle must be.",
            f"bundle = {json.dumps(self.bundle)}",
            "repos = [", *repos, "]",
            "files = [", *files, "]",
            "",
        ])  # fmt: skip

    def write(self, path: Path) -> None:
        """Write the lock atomically: the file at `path` is never half written."""
        part = path.with_name(f".{path.name}.part")
        part.write_text(self.text(), encoding="utf-8")
        os.replace(part, path)

    @classmethod
    def read(cls, path: Path) -> "Lock":
        """Read a lock. Raises WeightsError if the file is not a valid lock."""
        name = f"{path.parent.name}/{path.name}"
        try:
            values = tomllib.loads(path.read_text(encoding="utf-8"))
            lock = cls(
                bundle=values.pop("bundle"),
                repos=tuple(LockedRepo(**row) for row in values.pop("repos")),
                files=tuple(LockedFile(**row) for row in values.pop("files")),
            )
        except (ValueError, KeyError, TypeError) as error:  # not TOML, a key missing, a key too many
            problem = f"{name} is not a valid lock ({error})"
            raise WeightsError(f"{problem}. Write it again: script/lock-weights {path.stem}") from error
        if values or not _is_valid(lock, path.stem):
            raise WeightsError(f"{name} is damaged. Write it again: script/lock-weights {path.stem}")
        return lock


def lock_path(manifest: Manifest, root: Path) -> Path:
    return root / f"{manifest.name}.lock"


def read_lock(manifest: Manifest, root: Path) -> Lock | None:
    """The bundle's lock, or None if there is none. Raises WeightsError if it does not fit the manifest."""
    path = lock_path(manifest, root)
    if not path.exists():
        return None
    lock = Lock.read(path)
    if mismatches := lock.mismatches(manifest):
        listed = "; ".join(mismatches)
        raise WeightsError(
            f"{root.name}/{path.name} does not fit the manifest, which may have been edited since. It has {listed}."
            f" Write it again: script/lock-weights {manifest.name}"
        )
    return lock


def _row(**values: str | int) -> str:
    # JSON strings and numbers are also valid TOML.
    return "  { " + ", ".join(f"{key} = {json.dumps(value)}" for key, value in values.items()) + " },"


def _is_valid(lock: Lock, name: str) -> bool:
    """Whether every value of a lock has the right type and form."""

    def matches(pattern: re.Pattern[str], value: Any) -> bool:
        return isinstance(value, str) and pattern.fullmatch(value) is not None

    names = [value for repo in lock.repos for value in (repo.repo, repo.revision)] + [file.path for file in lock.files]
    return (
        lock.bundle == name
        and all(isinstance(value, str) for value in names)
        and all(matches(COMMIT, repo.commit) for repo in lock.repos)
        and all(type(file.size) is int and file.size >= 0 and matches(SHA256, file.sha256) for file in lock.files)
        and len({file.path for file in lock.files}) == len(lock.files)
    )
