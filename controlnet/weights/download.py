"""Download a bundle's files from the hub, and write its lock.

A file is fetched into a staging folder inside the bundle's folder, checked there, and moved into place only if it is
right. So every file in place was either verified or there before. The staging folder is on the same file system as the
files in place, so the move is a rename. After a kill or Ctrl-C, the next run keeps whole files and begins the one that
it was in again.
"""

import fcntl
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from controlnet.weights.files import TENSOR_FILES, check, repair_command, sha256
from controlnet.weights.hub import RemoteFile, fetch, repo_files
from controlnet.weights.lockfile import Lock, LockedFile, LockedRepo, WeightsError, lock_path, read_lock
from controlnet.weights.manifest import WEIGHTS, Manifest
from controlnet.weights.published import read_published

STAGING = ".download"
"""Folder in the bundle's folder for files not yet verified. The next run empties what a killed one left there."""
_LISTED = 10
"""How many of a repo's weight files an error lists."""


def download(
    manifest: Manifest,
    root: Path = WEIGHTS,
    *,
    require_lock: bool = False,
    progress: bool = True,
    say: Callable[[str], None] = lambda text: None,
) -> None:
    """Download and verify the files that the bundle needs. Write a lock of all its files first if there is none.

    Files come from the locked commits and must have the locked hashes. Right files are not fetched again, wrong files
    are replaced. A new lock is described to `say`; `require_lock` forbids to write one. What is not on the hub
    (embedded and imported files) is only checked. The bundle that it extends comes first. Raises WeightsError.
    """
    for layer in manifest.manifests:
        _download(layer, root, require_lock, progress, say)


def _download(manifest: Manifest, root: Path, require_lock: bool, progress: bool, say: Callable[[str], None]) -> None:
    """The same for the files of one folder."""
    if manifest.embedded:
        return check(manifest, root)
    pinned = read_lock(manifest, root)
    if pinned is None and require_lock:
        raise WeightsError(
            f"{manifest.name} has no lock to verify its files against, so nothing is downloaded."
            f" Run script/lock-weights {manifest.name} in a checkout and commit weights/{manifest.name}.lock."
        )
    folder = root / manifest.name
    with _must_be_writable(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with _exclusive_use(folder, manifest):
        shutil.rmtree(folder / STAGING, ignore_errors=True)
        if pinned is None:
            pinned = _lock_on_hub(manifest, root, folder, progress)
            pinned.write(lock_path(manifest, root))
            say(f"{manifest.name} had no lock, so it was locked first. {describe(pinned, manifest, root)}")
        to_fetch = [file for file in _needed_files(manifest, pinned) if file.fault(folder / file.path)]
        if to_fetch:
            with _must_be_writable(folder), tempfile.TemporaryFile(dir=folder):
                pass
        _check_space(to_fetch, folder)
        for number, file in enumerate(to_fetch, 1):
            if progress:
                count = f"{number} of {len(to_fetch)}"
                print(f"{manifest.name}: {file.path}, {file.size / 1e6:.1f} MB ({count})", file=sys.stderr)
            _move(_stage(file, folder, progress), folder / file.path)
        shutil.rmtree(folder / STAGING, ignore_errors=True)
    check(manifest, root)  # for files that are not on the hub


def lock(manifest: Manifest, root: Path = WEIGHTS, *, progress: bool = True) -> Lock:
    """Write the bundle's lock: from the hub's current files, and for files that are not on the hub from those on disk.

    Only files whose sha256 the hub does not list are fetched for it; they are small. The bundle that it extends keeps
    its own lock. Returns the lock.
    """
    manifest = manifest.manifests[-1]
    if not any(part.repo for part in manifest.parts):
        written = Lock(manifest.name, (), _files_on_disk(manifest, root))
    else:
        with tempfile.TemporaryDirectory() as folder:
            written = _lock_on_hub(manifest, root, Path(folder), progress)
    written.write(lock_path(manifest, root))
    return written


def describe(lock: Lock, manifest: Manifest, root: Path) -> str:
    """A new lock in words: its size, and which of its files nobody here knew beforehand."""
    manifest = manifest.manifests[-1]
    size, count = sum(file.size for file in lock.files) / 1e9, len(lock.files)
    text = f"{manifest.name}: {count} files, {size:.2f} GB, locked in {root.name}/{lock_path(manifest, root).name}."
    count = sum(len(part.paths) for part in manifest.parts if part.repo)
    if not count:
        return text
    published = read_published(manifest, root)
    unknown = published.unknown(manifest)
    if len(unknown) == count:
        return f"{text}\nNo hash was known beforehand: all are locked as the hub has them now."
    text += f"\n{count - len(unknown)} files have the hash that {published.name} lists."
    if len(unknown) == 1:
        text += " 1 was not known beforehand, and is locked as the hub has it now:"
    elif unknown:
        text += f" {len(unknown)} were not known beforehand, and are locked as the hub has them now:"
    return "\n".join([text, *(f"  {path}" for path in unknown)])


def _lock_on_hub(manifest: Manifest, root: Path, folder: Path, progress: bool) -> Lock:
    """The lock of the hub's current files, compared with what is known beforehand. Stages the small ones in `folder`.

    Raises WeightsError if a file is not as known.
    """
    published = read_published(manifest, root)
    files = _files_on_hub(manifest)
    published.compare(files, manifest)
    files = [file if file.sha256 else replace(file, sha256=sha256(_stage(file, folder, progress))) for file in files]
    published.compare(files, manifest)
    commits = {file.repo: file.commit for file in files}
    sources = sorted({(part.repo, part.revision) for part in manifest.parts if part.repo})
    rows = {file.path: LockedFile(file.path, file.size, file.sha256 or "") for file in files}
    rows |= {row.path: row for row in _files_on_disk(manifest, root)}
    return Lock(
        manifest.name,
        tuple(LockedRepo(repo, revision, commits[repo]) for repo, revision in sources),
        tuple(rows[path] for path in manifest.paths),
    )


def _needed_files(manifest: Manifest, pinned: Lock) -> list[RemoteFile]:
    return [
        RemoteFile(path, part.repo, pinned.commit(part), repo_path, pinned.file(path).size, pinned.file(path).sha256)
        for part in manifest.needed_parts
        if part.repo
        for path, repo_path in zip(part.paths, part.repo_paths, strict=True)
    ]


def _files_on_hub(manifest: Manifest) -> list[RemoteFile]:
    """The files of the manifest at the current commits of its revisions, one commit per repo."""
    sources = sorted({(part.repo, part.revision) for part in manifest.parts if part.repo})
    listings = {source: repo_files(*source) for source in sources}
    files, missing, present = [], [], {}
    for part in (part for part in manifest.parts if part.repo):
        listing = listings[part.repo, part.revision]
        for path, repo_path in zip(part.paths, part.repo_paths, strict=True):
            if repo_path in listing:
                files.append(replace(listing[repo_path], path=path))
            else:
                missing.append(f"  {part.repo} at {part.revision}: no file {repo_path}")
                has = f"  {part.repo} at {part.revision} has {_weight_files(listing, part.folder)}"
                present.setdefault(part.repo, has)
    if missing:
        named = f"weights/{manifest.name}.toml"
        heading = f"{named} names files that are not on the hub:"
        advice = f"Name files that are there in {named}, and run the same command again."
        raise WeightsError("\n".join([heading, *missing, *present.values(), advice]))
    return files


def _weight_files(listing: Iterable[str], folder: str) -> str:
    """The repo's files of tensors in words, at most _LISTED of them, those in `folder` first."""
    names = [name for name in listing if name.endswith((*TENSOR_FILES, ".onnx"))]
    names.sort(key=lambda name: (not name.startswith(f"{folder}/"), name))
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return f"these weight files: {', '.join(names[:_LISTED])}{more}" if names else "no weight files"


def _stage(file: RemoteFile, folder: Path, progress: bool) -> Path:
    """Fetch one file into the staging folder, unless it is there already, and check it. Returns where it is."""
    fault = None
    for again in (False, True):
        staged = fetch(file, folder / STAGING / file.commit, again=again, progress=progress)
        fault = file.fault(staged)
        if fault is None:
            return staged
        staged.unlink()
    raise WeightsError(
        f"{file.path}: {fault}. It was fetched twice from {file.repo} at {file.commit}, the second time from scratch,"
        " and thrown away both times. A file that was in its place before is unchanged. A proxy or a mirror probably"
        " alters the file; if not, the lock is wrong: write it again with script/lock-weights."
    )


def _move(staged: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with staged.open("rb") as file:
        os.fsync(file.fileno())  # otherwise a power cut could leave the new name without the bytes
    os.replace(staged, target)


def _check_space(files: list[RemoteFile], folder: Path) -> None:
    """Raise WeightsError if the disk is too small for the files."""
    needed, free = sum(file.size for file in files), shutil.disk_usage(folder).free
    if needed > free:
        raise WeightsError(
            f"{folder.name} needs {needed / 1e9:.1f} GB more on disk, but only {free / 1e9:.1f} GB are free."
            " Free some space and run the same command again."
        )


def _files_on_disk(manifest: Manifest, root: Path) -> tuple[LockedFile, ...]:
    """The rows of a lock for the files that are not on the hub. Raises WeightsError if one is missing."""
    folder, paths = root / manifest.name, [path for part in manifest.parts if not part.repo for path in part.paths]
    if missing := [path for path in paths if not (folder / path).is_file()]:
        raise WeightsError(
            f"{manifest.name} cannot be locked without its files; missing: {', '.join(missing)}."
            f" Repair: {repair_command(manifest)}"
        )
    return tuple(LockedFile(path, (folder / path).stat().st_size, sha256(folder / path)) for path in paths)


@contextmanager
def _must_be_writable(folder: Path) -> Iterator[None]:
    """Turn an OSError into a WeightsError that says what to do, as in a container with a read-only root."""
    try:
        yield
    except OSError as error:
        raise WeightsError(
            f"{folder.name} must be downloaded to {folder}, but it cannot be written to ({error.strerror})."
            f" Mount a folder there that user {os.getuid()} can write to, or fetch them before building the image:"
            f" script/download-weights {folder.name}."
        ) from None


@contextmanager
def _exclusive_use(folder: Path, manifest: Manifest) -> Iterator[None]:
    """Refuse a second download into the folder. The operating system drops the claim when the process ends."""
    claim = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(claim, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise WeightsError(f"Another download of {manifest.name} is running. Wait until it ends.") from None
    finally:
        os.close(claim)


def make_present(manifest: Manifest, root: Path, in_container: bool) -> None:
    """Check a bundle's files, and in the container fetch what is absent. Raises WeightsError."""
    layers = [layer for layer in manifest.manifests if not layer.embedded]
    if in_container and (unlocked := [layer.name for layer in layers if read_lock(layer, root) is None]):
        raise WeightsError(
            f"The container starts with locked weights only, and {unlocked[0]} has no lock: run script/lock-weights "
            f"{unlocked[0]} and build it again."
        )
    try:
        check(manifest, root)
    except WeightsError:
        if not layers or not in_container:
            raise
        download(manifest, root, require_lock=True)
        check(manifest, root)
