"""A bundle's lock, weights/<bundle>.lock: the commit that each repo is taken from, and what each file must be.

The lock is TOML with one line per repo and one line per file, in the manifest's order: a diff of two locks reads well.
"""

import json
import os
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from controlnet.weights.manifest import Manifest, Part

_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


class WeightsError(RuntimeError):
    """Weights that are absent or wrong, or that could not be fetched. The message says how to repair it."""


@dataclass(frozen=True)
class LockedRepo:
    """The commit that a revision was when the lock was written."""

    repo: str
    revision: str
    commit: str
    """40 hexadecimal digits."""


@dataclass(frozen=True)
class LockedFile:
    """What one file of the bundle must be."""

    path: str
    """Relative to the bundle's folder, with forward slashes."""
    size: int
    """Bytes."""
    sha256: str
    """64 hexadecimal digits."""


@dataclass(frozen=True)
class Lock:
    """Everything that a bundle's files are held to."""

    bundle: str
    repos: tuple[LockedRepo, ...]
    files: tuple[LockedFile, ...]

    def file(self, path: str) -> LockedFile:
        """The row of a file. Raises KeyError where there is none, which `faults` rules out."""
        return {file.path: file for file in self.files}[path]

    def commit(self, part: Part) -> str:
        """The commit that a part's files come from. Raises KeyError where it has none, which `faults` rules out."""
        return {(repo.repo, repo.revision): repo.commit for repo in self.repos}[part.repo, part.revision]

    def faults(self, manifest: Manifest) -> list[str]:
        """Where the lock and the manifest disagree: the manifest was edited since. Empty where they agree."""
        wanted = {(part.repo, part.revision) for part in manifest.parts if part.repo}
        there = {(repo.repo, repo.revision) for repo in self.repos}
        paths = {file.path for file in self.files}
        faults = [f"no commit for {repo} at {revision}" for repo, revision in sorted(wanted - there)]
        faults += [f"a needless commit for {repo} at {revision}" for repo, revision in sorted(there - wanted)]
        faults += [f"no line for {path}" for path in manifest.paths if path not in paths]
        faults += [f"a needless line for {path}" for path in sorted(paths - set(manifest.paths))]
        return faults

    def text(self) -> str:
        """The lock file's content. The same lock always gives the same text."""
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
        """Write the lock so that at no moment half a lock is in its place."""
        part = path.with_name(f".{path.name}.part")
        part.write_text(self.text(), encoding="utf-8")
        os.replace(part, path)

    @classmethod
    def read(cls, path: Path) -> "Lock":
        """Read a lock. Raises WeightsError where it is not one."""
        where = f"{path.parent.name}/{path.name}"
        try:
            values = tomllib.loads(path.read_text(encoding="utf-8"))
            lock = cls(
                bundle=values.pop("bundle"),
                repos=tuple(LockedRepo(**row) for row in values.pop("repos")),
                files=tuple(LockedFile(**row) for row in values.pop("files")),
            )
        except (ValueError, KeyError, TypeError) as error:  # not TOML, a key missing, a key too many
            problem = f"{where} is not a lock ({error})"
            raise WeightsError(f"{problem}. Write it anew: script/lock-weights {path.stem}") from error
        if values or not _is_sound(lock, path.stem):
            raise WeightsError(f"{where} is damaged. Write it anew: script/lock-weights {path.stem}")
        return lock


def lock_path(manifest: Manifest, root: Path) -> Path:
    return root / f"{manifest.name}.lock"


def read_lock(manifest: Manifest, root: Path) -> Lock | None:
    """The bundle's lock, or None where there is none. Raises WeightsError where it does not fit the manifest."""
    path = lock_path(manifest, root)
    if not path.exists():
        return None
    lock = Lock.read(path)
    if faults := lock.faults(manifest):
        listed = "; ".join(faults)
        raise WeightsError(
            f"{root.name}/{path.name} was written for another state of the manifest. It has {listed}."
            f" Write it anew: script/lock-weights {manifest.name}"
        )
    return lock


def _row(**values: str | int) -> str:
    # JSON's strings and numbers are TOML's too.
    return "  { " + ", ".join(f"{key} = {json.dumps(value)}" for key, value in values.items()) + " },"


def _is_sound(lock: Lock, name: str) -> bool:
    """Whether every value of a lock has the form that it must have."""

    def matches(pattern: re.Pattern[str], value: Any) -> bool:
        return isinstance(value, str) and pattern.fullmatch(value) is not None

    names = [value for repo in lock.repos for value in (repo.repo, repo.revision)] + [file.path for file in lock.files]
    return (
        lock.bundle == name
        and all(isinstance(value, str) for value in names)
        and all(matches(_COMMIT, repo.commit) for repo in lock.repos)
        and all(type(file.size) is int and file.size >= 0 and matches(_SHA256, file.sha256) for file in lock.files)
        and len({file.path for file in lock.files}) == len(lock.files)
    )
