"""Requests to the model hub: the commit of a revision, its list of files, and the bytes of a file.

The endpoint (HF_ENDPOINT), the token (HF_TOKEN), the HTTP client and the error classes are huggingface_hub's. The
transfer is our own. We tried hf_hub_download(local_dir=..., revision=...) of huggingface_hub 2.4.0 in place of
append_missing, without hf_xet (constants.HF_HUB_DISABLE_XET), inside our retries, staging folder and hash check. Three
tests in tests/weights/test_download.py fail with it:

- test_killed_download_resumes_in_the_next_run: it writes each attempt to a file with a random name and deletes that
  file after a failure. A second run starts at byte 0, of up to several GB.
- test_failure_stops_the_other_files_at_once: its pauses between retries cannot be interrupted. The failure took 23 s
  to arrive instead of under 1 s, and Ctrl-C during a rate limit of 60 s had no effect for 45 s (ours: 0.1 s).
- test_wait_requested_by_the_hub_is_kept: it obeys a Retry-After header without limit (99999: a pause of 27 hours).

hf_xet is not used either: a second protocol with its own cache, which the local hub of the tests does not support.
"""

import hashlib
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from json import JSONDecodeError
from pathlib import Path
from typing import Protocol, TypeVar

import httpx2  # the HTTP client of huggingface_hub
from huggingface_hub import HfApi, constants, get_session, hf_hub_url
from huggingface_hub.errors import (
    DisabledRepoError,
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import build_hf_headers, hf_raise_for_status, parse_ratelimit_headers
from tqdm import tqdm

from controlnet.weights.files import size_fault
from controlnet.weights.lockfile import COMMIT, WeightsError

ATTEMPTS = 5
"""Number of tries in a row without a new byte after which a request fails."""
FIRST_WAIT, LONGEST_WAIT = 1.0, 300.0
"""Seconds between tries: FIRST_WAIT, then twice as long each time. The hub's rate limit resets within LONGEST_WAIT."""
_TRANSIENT_STATUSES = {408, 429, 500, 502, 503, 504}

# What a permanent refusal means for the user. Subclasses come before their base classes.
_REFUSALS: tuple[tuple[type[Exception], str], ...] = (
    (GatedRepoError, "the repository is gated: accept its terms on the hub and set HF_TOKEN to that account's token"),
    (DisabledRepoError, "the hub has disabled the repository: name another one in the manifest"),
    (RevisionNotFoundError, "the repository has no such revision: check the manifest, or write the lock again"),
    (EntryNotFoundError, "the repository has no such file: check the manifest, or write the lock again"),
    (RepositoryNotFoundError, "there is no such repository, or it is private: check the manifest, or set HF_TOKEN"),
)

T = TypeVar("T")


class Stopped(Exception):
    """The transfer was cancelled. The bytes fetched so far stay in the staging folder."""


class _CutShort(Exception):
    """The response ended before the end of the file."""


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


class Progress(Protocol):
    """What a fetch reports to, and is stopped by."""

    def advance(self, count: int) -> None:
        """Take note of `count` more bytes; a negative count is for discarded bytes. May raise, to stop."""
        ...

    def pause(self, seconds: float, reason: str) -> None:
        """Wait before the next try. May raise, to stop."""
        ...


@dataclass
class Transfer:
    """Shared by the threads of one download: the progress bar, and the event that stops them."""

    bar: tqdm
    stop: threading.Event = field(default_factory=threading.Event)

    def advance(self, count: int) -> None:
        """Add `count` bytes to the progress bar; a negative count is for discarded bytes. Raises Stopped."""
        if self.stop.is_set():
            raise Stopped
        with self.bar.get_lock():
            self.bar.update(count)

    def pause(self, seconds: float, reason: str) -> None:
        """Print the reason and wait. Raises Stopped as soon as the transfer is stopped."""
        if not self.bar.disable:
            self.bar.write(f"{reason}; trying again in {seconds:.0f} s", file=sys.stderr)
        if self.stop.wait(seconds):
            raise Stopped


def repo_files(repo: str, revision: str, transfer: Progress) -> dict[str, RemoteFile]:
    """All files of a revision at its current commit, by their path in the repo. Sends one HTTP request."""
    api = HfApi()
    info = with_retries(
        lambda: api.model_info(repo, revision=revision, files_metadata=True, timeout=constants.HF_HUB_ETAG_TIMEOUT),
        f"{repo} at {revision}",
        transfer,
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


def fetch(remote: RemoteFile, target: Path, transfer: Transfer) -> None:
    """Fetch a file to `target`, appending to the bytes that are already there. Does not check the content.

    Tries again after dropped connections, rate limits and server errors. Raises WeightsError after ATTEMPTS tries in a
    row without a new byte, or if the hub refuses for good.
    """
    name = f"{remote.repo}/{remote.repo_path}"
    target.parent.mkdir(parents=True, exist_ok=True)
    url = hf_hub_url(remote.repo, remote.repo_path, revision=remote.commit)
    with_retries(
        lambda: append_missing(url, build_hf_headers(), target, transfer, remote.size),
        name,
        transfer,
        lambda: _size(target),
    )


def append_missing(
    url: str,
    headers: Mapping[str, str],
    target: Path,
    progress: Progress,
    size: int | None = None,
    begun: Callable[[httpx2.Response, int], None] = lambda response, size: None,
) -> None:
    """Request the bytes that `target` does not have once, and append them. One attempt for with_retries().

    `size` is the whole file's, or None if only the server knows it. `begun` gets the response and that size before any
    byte is written, and may raise.
    """
    start = _size(target)
    if start == size and target.exists():
        return
    # A compressed response supports no ranges, and its length cannot be checked.
    wanted = {**headers, "Accept-Encoding": "identity"} | ({"Range": f"bytes={start}-"} if start else {})
    timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
    with get_session().stream("GET", url, headers=wanted, timeout=timeout, follow_redirects=True) as response:
        if response.status_code == 416:  # nothing after `start`: the hub's file is too short
            _empty(target, progress)
            raise _CutShort(f"the hub has no more than {start} of {size} bytes")
        hf_raise_for_status(response)
        if start and not response.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
            _empty(target, progress)  # the response is the whole file, not the rest
        if size is None:
            size = _size(target) + int(response.headers.get("Content-Length", 0))
        begun(response, size)
        with target.open("ab") as file:
            for chunk in response.iter_bytes():
                progress.advance(len(chunk))
                file.write(chunk)
                if file.tell() > size:
                    return  # a wrong file: the hash check will report it
    if _size(target) < size:
        raise _CutShort(f"the response ended after {_size(target)} of {size} bytes")


def with_retries(
    attempt: Callable[[], T],
    name: str,
    transfer: Progress,
    fetched: Callable[[], int] = lambda: 0,
    refusal: Callable[[HfHubHTTPError], str] | None = None,
    continue_by: str = "run the same command again",
) -> T:
    """Call `attempt` until it succeeds. `fetched` returns the bytes so far: new bytes reset the count of failures.

    `name` is for messages: the repo and the file or the revision. So are `refusal`, which says what a permanent refusal
    means, and `continue_by`, which says how to try again. Raises WeightsError.
    """
    failures, most = 0, fetched()
    while True:
        try:
            return attempt()
        except OfflineModeIsEnabled as error:
            raise WeightsError(f"{name}: HF_HUB_OFFLINE is set, so nothing can be fetched. Unset it.") from error
        except HfHubHTTPError as error:
            if error.response.status_code not in _TRANSIENT_STATUSES:
                raise WeightsError(f"{name}: {(refusal or _refusal)(error)}.") from error
            reason, wait = f"the hub answered {error.response.status_code}", _requested_wait(error.response)
        except (httpx2.RequestError, JSONDecodeError, _CutShort) as error:
            reason, wait = str(error).rstrip(".") or type(error).__name__, 0.0
        failures, most = (failures + 1, most) if fetched() <= most else (1, fetched())
        if failures >= ATTEMPTS:
            raise WeightsError(
                f"{name}: gave up after {failures} tries in a row without progress; the last failure: {reason}."
                f" The bytes fetched so far are kept: {continue_by} to continue."
            )
        transfer.pause(min(max(wait, FIRST_WAIT * 2 ** (failures - 1)), LONGEST_WAIT), f"{name}: {reason}")


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


def _requested_wait(response: httpx2.Response) -> float:
    """Seconds to wait according to the rate limit headers or Retry-After (a number or a date), otherwise 0."""
    limit = parse_ratelimit_headers(response.headers)
    if limit is not None and limit.remaining == 0:
        return float(limit.reset_in_seconds)
    value = response.headers.get("Retry-After", "")
    if value.isdigit():
        return float(value)
    try:
        return max(0.0, (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):  # not a date, or a date without a time zone
        return 0.0


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _empty(path: Path, transfer: Progress) -> None:
    transfer.advance(-_size(path))
    path.unlink()
