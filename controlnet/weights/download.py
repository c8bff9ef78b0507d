"""Fetch a bundle's files from the hub, and write its lock.

A file is fetched into a staging folder inside the bundle's folder (so that moving it never crosses a file system),
checked there, and moved into place only when it is right. Whatever is in its place was verified, or was there before.
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

from controlnet.weights.files import check, repair_command, sha256
from controlnet.weights.hub import RemoteFile, Stopped, Transfer, fetch, repo_files
from controlnet.weights.lockfile import Lock, LockedFile, LockedRepo, WeightsError, lock_path, read_lock
from controlnet.weights.manifest import WEIGHTS, Manifest

STAGING = ".download"
"""Folder in the bundle's folder for what is not verified yet. It outlives a failure, so that the next run goes on."""
_WORKERS = 8

T = TypeVar("T")
U = TypeVar("U")


def download(manifest: Manifest, root: Path = WEIGHTS, *, require_lock: bool = False, progress: bool = True) -> None:
    """Bring the bundle's needed files into place and verify them; write the lock of all where there is none.

    Files that are in place and right are not fetched again, files that are wrong are replaced. With a lock the files
    come from the locked commits and must have the locked hashes; without one, from what the manifest's revisions are
    now, unless `require_lock` refuses that. An embedded bundle is only checked. Raises WeightsError; running again
    goes on from there.
    """
    if manifest.embedded:
        return check(manifest, root)
    pinned = read_lock(manifest, root)
    if pinned is None and require_lock:
        raise WeightsError(
            f"{manifest.name} has no lock that says which files are the right ones, so nothing is downloaded here."
            f" Run script/lock-weights {manifest.name} in a checkout and commit weights/{manifest.name}.lock."
        )
    folder = root / manifest.name
    folder.mkdir(parents=True, exist_ok=True)
    with _sole_use(folder, manifest), _transfer(manifest, progress) as transfer:
        files = _locked_files(manifest, pinned) if pinned else _published_files(manifest, transfer)
        needed = set(manifest.needed_paths)
        # A file whose sha256 the hub does not know is small, and the lock needs it.
        wanted = _wanted([file for file in files if file.path in needed or file.sha256 is None], folder)
        _check_space(wanted, folder)
        transfer.bar.reset(total=sum(file.size for file in wanted))
        _in_parallel(lambda file: _bring(file, folder, transfer), wanted, transfer)
        shutil.rmtree(folder / STAGING, ignore_errors=True)
        if pinned is None:
            _lock_of(manifest, files, folder).write(lock_path(manifest, root))


def lock(manifest: Manifest, root: Path = WEIGHTS, *, progress: bool = True) -> Lock:
    """Write the bundle's lock anew: from what is on the hub now, or for an embedded bundle from the files on disk.

    Only the files whose sha256 the hub does not know, which are the small ones, are fetched for it. Returns the lock.
    """
    if manifest.embedded:
        written = _lock_on_disk(manifest, root)
    else:
        with _transfer(manifest, progress) as transfer, tempfile.TemporaryDirectory() as folder:
            files = _published_files(manifest, transfer)
            small = [file for file in files if file.sha256 is None]
            transfer.bar.reset(total=sum(file.size for file in small))
            _in_parallel(lambda file: _bring(file, Path(folder), transfer), small, transfer)
            written = _lock_of(manifest, files, Path(folder))
    written.write(lock_path(manifest, root))
    return written


def _locked_files(manifest: Manifest, pinned: Lock) -> list[RemoteFile]:
    return [
        RemoteFile(path, part.repo, pinned.commit(part), repo_path, pinned.file(path).size, pinned.file(path).sha256)
        for part in manifest.parts
        for path, repo_path in zip(part.paths, part.repo_paths, strict=True)
    ]


def _published_files(manifest: Manifest, transfer: Transfer) -> list[RemoteFile]:
    """What the manifest's revisions are now: one commit for all the files of a repo."""
    sources = sorted({(part.repo, part.revision) for part in manifest.parts})
    found = _in_parallel(lambda source: repo_files(*source, transfer), sources, transfer)
    listings = dict(zip(sources, (files for _, files in found), strict=True))
    files, missing = [], []
    for part in manifest.parts:
        listing = listings[part.repo, part.revision]
        for path, repo_path in zip(part.paths, part.repo_paths, strict=True):
            if repo_path in listing:
                files.append(replace(listing[repo_path], path=path))
            else:
                missing.append(f"  {part.repo} at {part.revision}: no file {repo_path}")
    if missing:
        named = f"weights/{manifest.name}.toml"
        raise WeightsError("\n".join([f"{named} names files that are not on the hub:", *missing]))
    return files


def _wanted(files: list[RemoteFile], folder: Path) -> list[RemoteFile]:
    """The files that are not in place, or are not right."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        faults = pool.map(lambda file: file.fault(folder / file.path), files)
        return [file for file, fault in zip(files, faults, strict=True) if fault]


def _bring(file: RemoteFile, folder: Path, transfer: Transfer) -> None:
    """Fetch one file, check it, and move it into place."""
    # The commit is in the name, so that what an earlier run left of another commit's file is not continued.
    staged = folder / STAGING / file.commit / file.path
    transfer.advance(staged.stat().st_size if staged.exists() else 0)
    for _ in range(2):
        fetch(file, staged, transfer)
        fault = file.fault(staged)
        if fault is None:
            _move(staged, folder / file.path)
            return
        transfer.advance(-staged.stat().st_size)
        staged.unlink()
    raise WeightsError(
        f"{file.path}: {fault}. It was fetched twice from {file.repo} at {file.commit}, the second time from scratch,"
        " and thrown away both times; what was in its place is untouched. Likely a proxy or a mirror alters the file;"
        " if not, the lock is wrong, and script/lock-weights writes it anew."
    )


def _move(staged: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with staged.open("rb") as file:
        os.fsync(file.fileno())  # else a power cut could leave the new name with none of the bytes
    os.replace(staged, target)


def _in_parallel(work: Callable[[T], U], items: Iterable[T], transfer: Transfer) -> list[U]:
    """Results of `work`, in order. The first failure ends the others, and what ended by itself is raised."""
    pool = ThreadPoolExecutor(_WORKERS)
    futures = [pool.submit(work, item) for item in items]
    finished = False
    try:
        wait(futures, return_when=FIRST_EXCEPTION)
        finished = all(future.done() and not future.exception() for future in futures)
    finally:  # also when the wait is interrupted from the keyboard
        if not finished:
            transfer.stop.set()
        pool.shutdown(wait=True, cancel_futures=True)
    if errors := [error for future in futures if (error := _own_error(future))]:
        raise _as_one(errors)
    return [future.result() for future in futures]


def _own_error(future: Future) -> BaseException | None:
    error = None if future.cancelled() else future.exception()
    return None if isinstance(error, Stopped) else error


def _as_one(errors: list[BaseException]) -> BaseException:
    if len(errors) > 1 and all(isinstance(error, WeightsError) for error in errors):
        return WeightsError("\n".join(str(error) for error in errors))
    return errors[0]


def _check_space(wanted: list[RemoteFile], folder: Path) -> None:
    staged = sum(file.stat().st_size for file in (folder / STAGING).rglob("*") if file.is_file())
    needed, free = sum(file.size for file in wanted) - staged, shutil.disk_usage(folder).free
    if needed > free:
        raise WeightsError(
            f"{folder.name} needs {needed / 1e9:.1f} GB more on disk, and {free / 1e9:.1f} GB are free."
            " Make room and run the same command again."
        )


def _lock_of(manifest: Manifest, files: list[RemoteFile], folder: Path) -> Lock:
    """The lock of files of which those without a known sha256 are in `folder`, verified."""
    commits = {file.repo: file.commit for file in files}
    sources = sorted({(part.repo, part.revision) for part in manifest.parts})
    return Lock(
        manifest.name,
        tuple(LockedRepo(repo, revision, commits[repo]) for repo, revision in sources),
        tuple(LockedFile(f.path, f.size, f.sha256 or sha256(folder / f.path)) for f in files),
    )


def _lock_on_disk(manifest: Manifest, root: Path) -> Lock:
    folder = root / manifest.name
    if missing := [path for path in manifest.paths if not (folder / path).is_file()]:
        raise WeightsError(
            f"{manifest.name} cannot be locked without its files; missing: {', '.join(missing)}."
            f" Repair: {repair_command(manifest)}"
        )
    rows = (LockedFile(path, (folder / path).stat().st_size, sha256(folder / path)) for path in manifest.paths)
    return Lock(manifest.name, (), tuple(rows))


@contextmanager
def _sole_use(folder: Path, manifest: Manifest) -> Iterator[None]:
    """Keep a second download out of the folder. The claim ends with the process, however that ends."""
    claim = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(claim, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise WeightsError(f"Another download of {manifest.name} is running. Wait until it has ended.") from None
    finally:
        os.close(claim)


@contextmanager
def _transfer(manifest: Manifest, progress: bool) -> Iterator[Transfer]:
    with tqdm(total=0, desc=manifest.name, unit="B", unit_scale=True, disable=not progress) as bar:
        yield Transfer(bar)
