"""The model hub, through huggingface_hub: the commit and the files of a revision, and the download of one file.

Endpoint (HF_ENDPOINT), token (HF_TOKEN) and transfer (hf_xet, or HTTP with HF_HUB_DISABLE_XET=1) are huggingface_hub's.
Only one file is fetched at a time, in the thread that asks, because Ctrl-C reaches no other thread. hf_xet fetches the
parts of a file in parallel itself.
"""

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from json import JSONDecodeError
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import httpx2  # the HTTP client of huggingface_hub
from huggingface_hub import HfApi, constants, hf_hub_download
from huggingface_hub.errors import (
    DisabledRepoError,
    EntryNotFoundError,
    FileMetadataError,
    GatedRepoError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils.tqdm import silent_tqdm

from controlnet.weights.files import size_fault
from controlnet.weights.lockfile import COMMIT, WeightsError

_WAITS = (1.0, 3.0, 9.0)
"""Seconds before each new try. huggingface_hub has retries of its own, but not for a reset connection or a 5xx."""
TRANSIENT_STATUSES = {408, 425, 429, 500, 502, 503, 504}
"""HTTP statuses that may pass."""

# What a permanent refusal means for the user. Subclasses come before their base classes.
_REFUSALS: tuple[tuple[type[Exception], str], ...] = (
    (GatedRepoError, "the repository is gated: accept its terms on the hub and set HF_TOKEN to that account's token"),
    (DisabledRepoError, "the hub has disabled the repository: name another one in the manifest"),
    (RevisionNotFoundError, "the repository has no such revision: check the manifest, or write the lock again"),
    (EntryNotFoundError, "the repository has no such file: check the manifest, or write the lock again"),
    (RepositoryNotFoundError, "there is no such repository, or it is private: check the manifest, or set HF_TOKEN"),
)

T = TypeVar("T")


@dataclass(frozen=True)
class RemoteFile:
    """One file at one commit, with the hash of its content: sha256 if the hub lists it, otherwise git's own sha1."""

    path: str
    """Relative to the bundle's folder."""
    repo: str
    commit: str
    repo_path: str
    size: int
    sha256: str | None
    git_sha1: str | None = None

    def fault(self, file: Path) -> str | None:
        """What is wrong with a local copy, or None if it is right. Reads the whole file."""
        if fault := size_fault(file, self.size):
            return fault
        # For a file outside LFS the hub only lists its git blob id: the sha1 of a header and the content.
        algorithm, expected = ("sha256", self.sha256) if self.sha256 else ("git sha1", self.git_sha1)
        digest = hashlib.sha256() if self.sha256 else hashlib.sha1(f"blob {self.size}\0".encode())
        with file.open("rb") as stream:
            got = hashlib.file_digest(stream, lambda: digest).hexdigest()
        return None if got == expected else f"wrong content, expected {algorithm} {expected}, got {got}"


def repo_files(repo: str, revision: str) -> dict[str, RemoteFile]:
    """All files of a revision at its current commit, by their path in the repo. Raises WeightsError."""
    api = HfApi()
    info = _tried(
        f"{repo} at {revision}",
        lambda: api.model_info(repo, revision=revision, files_metadata=True, timeout=constants.HF_HUB_ETAG_TIMEOUT),
    )
    expected = revision if COMMIT.fullmatch(revision) else "a commit of 40 hexadecimal digits"
    if info.sha is None or not COMMIT.fullmatch(info.sha) or expected == revision != info.sha:
        # It becomes the name of a folder.
        raise WeightsError(
            f"{repo} at {revision}: expected {expected} from the hub, got {info.sha!r}."
            " Check HF_ENDPOINT: it must be the hub or an exact mirror of it."
        )
    files = {}
    for entry in info.siblings or []:
        size = entry.lfs.size if entry.lfs else entry.size
        if size is None:
            raise WeightsError(f"{repo} at {revision}: the hub did not list the file sizes.")
        sha256 = entry.lfs.sha256 if entry.lfs else None
        files[entry.rfilename] = RemoteFile("", repo, info.sha, entry.rfilename, size, sha256, entry.blob_id)
    return files


def fetch(remote: RemoteFile, folder: Path, *, again: bool = False, progress: bool = True) -> Path:
    """Fetch a file into `folder`, and return where it is. Does not check the content. Raises WeightsError.

    A copy that was fetched into this folder before, or is in huggingface_hub's own cache, is taken unless `again`.
    """
    silent: Any = silent_tqdm
    fetched = _tried(
        f"{remote.repo}/{remote.repo_path}",
        lambda: hf_hub_download(
            remote.repo,
            remote.repo_path,
            revision=remote.commit,
            local_dir=folder,
            force_download=again,
            tqdm_class=None if progress else silent,
        ),
    )
    return Path(fetched)


def _tried(name: str, attempt: Callable[[], T]) -> T:
    """What `attempt` returns, with more tries after failures that may pass. `name` is for messages.

    Raises WeightsError, and OSError if the disk is why.
    """
    if constants.is_offline_mode():
        raise WeightsError(f"{name}: HF_HUB_OFFLINE is set, so nothing can be fetched. Unset it.")
    for wait in (*_WAITS, None):
        try:
            return attempt()
        except (httpx2.RequestError, JSONDecodeError, OSError, RuntimeError, ValueError) as error:
            problem = _problem(name, error)
        if wait is None:
            break
        time.sleep(wait)
    raise WeightsError(f"{name}: gave up after {len(_WAITS) + 1} tries; the last failure: {problem}.")


def _problem(name: str, error: Exception) -> str:
    """What may pass, in words. Raises WeightsError for what does not, and the error itself if it is none of the hub's.

    huggingface_hub raises LocalEntryNotFoundError or ValueError after its own tries to find out where a file is.
    """
    final = isinstance(error.__cause__, (HfHubHTTPError, httpx2.RequestError, FileMetadataError))
    cause = error.__cause__ if final and isinstance(error.__cause__, Exception) else error
    if isinstance(cause, HfHubHTTPError):
        status = cause.response.status_code
        if status not in TRANSIENT_STATUSES:
            raise WeightsError(f"{name}: {_refusal(cause)}.") from error
        problem = f"the hub answered {status}"
    elif isinstance(cause, httpx2.RequestError):
        host = urlsplit(constants.ENDPOINT).netloc
        problem = f"{host} cannot be reached ({_first_line(cause)}): check the connection, or HF_ENDPOINT if it is set"
        final |= isinstance(cause, httpx2.ConnectError)
    elif isinstance(cause, OSError) and cause.errno is not None:
        raise error
    else:  # a file of another length than the hub lists, an answer that is no JSON, or an error of hf_xet
        problem = _first_line(cause)
    if final:
        raise WeightsError(f"{name}: {problem}.") from error
    return problem


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0].rstrip(".") or type(error).__name__


def _refusal(error: HfHubHTTPError) -> str:
    for error_class, meaning in _REFUSALS:
        if isinstance(error, error_class):
            return meaning
    status = error.response.status_code
    if status in (401, 403):
        return f"the hub refused access ({status}): set HF_TOKEN to a token with read access"
    if status == 404:
        return "the hub has no such file (404): check the manifest, or write the lock again"
    return f"the hub answered {status}"
