"""What is known beforehand about a bundle's files: weights/<bundle>.published, a file that a bundle may have.

It lists commits, sizes and hashes of the published files, from public listings of their repositories. The first lock is
compared with it, so a mirror or a proxy that serves other files is noticed even before there is a lock.
"""

import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from controlnet.weights.hub import RemoteFile
from controlnet.weights.lockfile import COMMIT, SHA256, WeightsError
from controlnet.weights.manifest import Manifest


@dataclass(frozen=True)
class PublishedFile:
    """What is known about one file of a repo at one commit."""

    repo: str
    file: str
    """Relative to the repo's root."""
    source: str
    """Where the figures were seen."""
    commit: str | None = None
    """None if it is not known."""
    size: int | None = None
    """Bytes; None if it is not known."""
    sha256: str | None = None
    """None if it is not known."""

    def fault(self, remote: RemoteFile) -> str | None:
        """How the hub's file differs, or None. A hash that the hub does not list is not compared."""
        pairs = [("commit", self.commit, remote.commit), ("size", self.size, remote.size)]
        pairs += [("sha256", self.sha256, remote.sha256)]
        faults = [
            f"expected {what} {expected} ({self.source}), got {got}"
            for what, expected, got in pairs
            if None not in (expected, got) and expected != got
        ]
        return "; ".join(faults) or None


@dataclass(frozen=True)
class Published:
    """All that is known beforehand about a bundle's files. Empty if the bundle has no such list."""

    name: str
    """Of the list's file, for errors."""
    files: tuple[PublishedFile, ...] = ()

    def compare(self, remotes: Iterable[RemoteFile], manifest: Manifest) -> None:
        """Raise WeightsError, which names every file that differs."""
        rows = {(row.repo, row.file): row for row in self.files}
        lines = []
        for remote in remotes:
            row = rows.get((remote.repo, remote.repo_path))
            if row and (fault := row.fault(remote)):
                lines.append(f"  {remote.path} ({remote.repo}): {fault}")
        if lines:
            raise WeightsError("\n".join([
                f"{self.name} lists what the files of {manifest.name} are, and the hub has others:", *lines,
                "Nothing was locked. If HF_ENDPOINT or a proxy is set, unset it and try again. If not, compare with the"
                f" repository's page: if it agrees with the hub, correct the file's line in {self.name}.",
            ]))  # fmt: skip

    def unknown(self, manifest: Manifest) -> list[str]:
        """Those of the manifest's paths whose hash is not known beforehand."""
        known = {(row.repo, row.file) for row in self.files if row.sha256}
        return [
            path
            for part in manifest.parts
            if part.repo
            for path, repo_path in zip(part.paths, part.repo_paths, strict=True)
            if (part.repo, repo_path) not in known
        ]


def read_published(manifest: Manifest, root: Path) -> Published:
    """The bundle's list. Raises WeightsError if it is not valid."""
    path = root / f"{manifest.name}.published"
    name = f"{root.name}/{path.name}"
    if not path.exists():
        return Published(name)
    try:
        rows = tuple(PublishedFile(**row) for row in tomllib.loads(path.read_text(encoding="utf-8"))["files"])
        for row in rows:
            if not COMMIT.fullmatch(row.commit or "0" * 40) or not SHA256.fullmatch(row.sha256 or "0" * 64):
                raise ValueError(f"a commit or a sha256 of {row.file} that is none")
    except (ValueError, KeyError, TypeError) as error:  # not TOML, a key missing, a key too many
        raise WeightsError(f"{name} is not valid ({error}). Restore it: git checkout HEAD -- {name}") from error
    return Published(name, rows)
