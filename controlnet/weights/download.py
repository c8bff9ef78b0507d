"""Download a bundle's files from the hub, and write its lock.

A file is fetched into a staging folder inside the bundle's folder, checked there, and moved into place only if it is
right. So every file in place was either verified or there before. The staging folder is on the same file system as the
files in place, so the move is a rename.
"""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from tqdm import tqdm

from controlnet.weights.files import TENSOR_FILES, check, repair_command, sha256
from controlnet.weights.hub import RemoteFile, Stopped, Transfer, fetch, repo_files
from controlnet.weights.lockfile import Lock, LockedFile, LockedRepo, WeightsError, lock_path, read_lock
from controlnet.weights.manifest import WEIGHTS, Manifest
from controlnet.weights.published import read_published

STAGING = ".download"
"""Folder in the bundle's folder for files not yet verified. It is kept after a failure: the next run resumes there."""
_WORKERS = 8
_LISTED = 10
"""How many of a repo's weight files an error lists."""

T = TypeVar("T")
U = TypeVar("U")


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
    (embedded and imported files) is only checked. The bundle that it extends comes first. Raises WeightsError; the next
    run resumes.
    """
    for layer in manifest.layers:
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
    with _exclusive_use(folder, manifest), _transfer(manifest, progress) as transfer:
        if pinned is None:
            pinned = _lock_on_hub(manifest, root, folder, transfer)
            pinned.write(lock_path(manifest, root))
            say(f"{manifest.name} had no lock, so it was locked first. {describe(pinned, manifest, root)}")
        needed = set(manifest.needed_paths)
        to_fetch = _missing_or_wrong([file for file in _locked_files(manifest, pinned) if file.path in needed], folder)
        if to_fetch:
            with _must_be_writable(folder), tempfile.TemporaryFile(dir=folder):
                pass
        _check_space(to_fetch, folder)
        transfer.bar.reset(total=sum(file.size for file in to_fetch))
        _in_parallel(lambda file: _fetch_verified(file, folder, transfer), to_fetch, transfer)
        shutil.rmtree(folder / STAGING, ignore_errors=True)
    check(manifest, root)  # for files that are not on the hub


def lock(manifest: Manifest, root: Path = WEIGHTS, *, progress: bool = True) -> Lock:
    """Write the bundle's lock: from the hub's current files, and for files that are not on the hub from those on disk.

    Only files whose sha256 the hub does not list are fetched for it; they are small. The bundle that it extends keeps
    its own lock. Returns the lock.
    """
    manifest = manifest.layers[-1]
    if not any(part.repo for part in manifest.parts):
        written = Lock(manifest.name, (), _files_on_disk(manifest, root))
    else:
        with _transfer(manifest, progress) as transfer, tempfile.TemporaryDirectory() as folder:
            written = _lock_on_hub(manifest, root, Path(folder), transfer)
    written.write(lock_path(manifest, root))
    return written


def describe(lock: Lock, manifest: Manifest, root: Path) -> str:
    """A new lock in words: its size, and which of its files nobody here knew beforehand."""
    manifest = manifest.layers[-1]
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


def _lock_on_hub(manifest: Manifest, root: Path, folder: Path, transfer: Transfer) -> Lock:
    """The lock of the hub's current files, compared with what is known beforehand. Stages the small ones in `folder`.

    Raises WeightsError if a file is not as known.
    """
    published = read_published(manifest, root)
    files = _files_on_hub(manifest, transfer)
    published.compare(files, manifest)
    small = [file for file in files if file.sha256 is None]
    transfer.bar.reset(total=sum(file.size for file in small))
    _in_parallel(lambda file: _stage(file, folder, transfer), small, transfer)
    files = [file if file.sha256 else replace(file, sha256=sha256(_staged(file, folder))) for file in files]
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


def _locked_files(manifest: Manifest, pinned: Lock) -> list[RemoteFile]:
    return [
        RemoteFile(path, part.repo, pinned.commit(part), repo_path, pinned.file(path).size, pinned.file(path).sha256)
        for part in manifest.parts
        if part.repo
        for path, repo_path in zip(part.paths, part.repo_paths, strict=True)
    ]


def _files_on_hub(manifest: Manifest, transfer: Transfer) -> list[RemoteFile]:
    """The files of the manifest at the current commits of its revisions, one commit per repo."""
    sources = sorted({(part.repo, part.revision) for part in manifest.parts if part.repo})
    found = _in_parallel(lambda source: repo_files(*source, transfer), sources, transfer)
    listings = dict(zip(sources, found, strict=True))
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


def _missing_or_wrong(files: list[RemoteFile], folder: Path) -> list[RemoteFile]:
    """The files that must be fetched."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        faults = pool.map(lambda file: file.fault(folder / file.path), files)
        return [file for file, fault in zip(files, faults, strict=True) if fault]


def _fetch_verified(file: RemoteFile, folder: Path, transfer: Transfer) -> None:
    """Fetch one file, check it, and move it into place."""
    _stage(file, folder, transfer)
    _move(_staged(file, folder), folder / file.path)


def _staged(file: RemoteFile, folder: Path) -> Path:
    # The commit is in the path, so a partial file of another commit is never resumed.
    return folder / STAGING / file.commit / file.path


def _stage(file: RemoteFile, folder: Path, transfer: Transfer) -> None:
    """Fetch one file into the staging folder, unless it is there already, and check it."""
    staged = _staged(file, folder)
    transfer.advance(staged.stat().st_size if staged.exists() else 0)
    for _ in range(2):
        fetch(file, staged, transfer)
        fault = file.fault(staged)
        if fault is None:
            return
        transfer.advance(-staged.stat().st_size)
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


def _in_parallel(work: Callable[[T], U], items: Iterable[T], transfer: Transfer) -> list[U]:
    """Results of `work`, in order. The first failure stops the other threads, and is raised."""
    pool = ThreadPoolExecutor(_WORKERS)
    futures: list[Future[U]] = []
    finished = False
    try:
        futures.extend(pool.submit(work, item) for item in items)
        wait(futures, return_when=FIRST_EXCEPTION)
        finished = all(future.done() and not future.exception() for future in futures)
    finally:  # also after Ctrl-C
        if not finished:
            transfer.stop.set()
        pool.shutdown(wait=True, cancel_futures=True)
    if errors := [error for future in futures if (error := _failure(future))]:
        raise _combined(errors)
    return [future.result() for future in futures]


def _failure(future: Future) -> BaseException | None:
    """The error of a finished call, unless another failure stopped or cancelled it."""
    error = None if future.cancelled() else future.exception()
    return None if isinstance(error, Stopped) else error


def _combined(errors: list[BaseException]) -> BaseException:
    """One error with the messages of all, or the first if one of them is a bug rather than a WeightsError."""
    if len(errors) > 1 and all(isinstance(error, WeightsError) for error in errors):
        return WeightsError("\n".join(str(error) for error in errors))
    return errors[0]


def _check_space(files: list[RemoteFile], folder: Path) -> None:
    """Raise WeightsError if the disk is too small for the bytes that are not staged yet."""
    staged = sum(file.stat().st_size for file in (folder / STAGING).rglob("*") if file.is_file())
    needed, free = sum(file.size for file in files) - staged, shutil.disk_usage(folder).free
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


@contextmanager
def _transfer(manifest: Manifest, progress: bool) -> Iterator[Transfer]:
    with tqdm(total=0, desc=manifest.name, unit="B", unit_scale=True, disable=not progress) as bar:
        yield Transfer(bar)
