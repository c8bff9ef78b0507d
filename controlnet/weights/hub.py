"""What is asked of the model hub: which commit a revision is, what its files are, and their bytes.

Endpoint (HF_ENDPOINT), token (HF_TOKEN), HTTP client and error classes are huggingface_hub's. Two things of it are left
aside on purpose. Its downloads go through hf_xet wherever that is installed, a second protocol with its own cache that
a stand-in hub cannot speak; plain HTTP with ranges serves the same bytes, and is the one path that is tested. And its
cache keeps what it fetched, while a bundle's folder is to hold verified files and nothing else.
"""

import hashlib
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from json import JSONDecodeError
from pathlib import Path
from typing import TypeVar

import httpx2  # huggingface_hub's HTTP client, of the version that it brings
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
from controlnet.weights.lockfile import WeightsError

ATTEMPTS = 5
"""Tries in a row that bring nothing new before a request is given up."""
FIRST_WAIT, LONGEST_WAIT = 1.0, 300.0
"""Seconds between tries: doubling from the first. The longest is what the hub's own rate limit can ask for."""
_PASSING = {408, 429, 500, 502, 503, 504}

# What a refusal that will not pass means, most particular class first.
_REFUSALS: tuple[tuple[type[Exception], str], ...] = (
    (GatedRepoError, "the repository is gated: accept its terms on the hub and set HF_TOKEN to that account's token"),
    (DisabledRepoError, "the hub has disabled the repository: name another one in the manifest"),
    (RevisionNotFoundError, "the repository has no such revision: look at the manifest, or write the lock anew"),
    (EntryNotFoundError, "the repository has no such file: look at the manifest, or write the lock anew"),
    (RepositoryNotFoundError, "there is no such repository, or it is private: look at the manifest, or set HF_TOKEN"),
)

T = TypeVar("T")


class Stopped(Exception):
    """The transfer was told to end. What it had fetched stays where it is."""


class _CutShort(Exception):
    """The answer ended before the file did."""


@dataclass(frozen=True)
class RemoteFile:
    """One file at one commit, and what its bytes must be: sha256 where it is known, else git's own hash."""

    path: str
    """Relative to the bundle's folder."""
    repo: str
    commit: str
    repo_path: str
    size: int
    sha256: str | None
    git_sha1: str | None = None

    def fault(self, file: Path) -> str | None:
        """What is wrong with a local copy; None where nothing is. Reads the file as a whole."""
        if fault := size_fault(file, self.size):
            return fault
        # Of a file that is not in LFS the hub only tells git's name for it: the sha1 of a header and the content.
        kind, expected = ("sha256", self.sha256) if self.sha256 else ("git sha1", self.git_sha1)
        digest = hashlib.sha256() if self.sha256 else hashlib.sha1(f"blob {self.size}\0".encode())
        with file.open("rb") as stream:
            got = hashlib.file_digest(stream, lambda: digest).hexdigest()
        return None if got == expected else f"wrong content, expected {kind} {expected}, got {got}"


@dataclass
class Transfer:
    """What the threads of one download share: the progress bar, and the sign to end."""

    bar: tqdm
    stop: threading.Event = field(default_factory=threading.Event)

    def advance(self, count: int) -> None:
        """Count bytes that arrived, or with a negative number bytes that were thrown away."""
        if self.stop.is_set():
            raise Stopped
        with self.bar.get_lock():
            self.bar.update(count)

    def pause(self, seconds: float, reason: str) -> None:
        """Say why, and wait, unless the transfer ends meanwhile."""
        if not self.bar.disable:
            self.bar.write(f"{reason}; trying again in {seconds:.0f} s", file=sys.stderr)
        if self.stop.wait(seconds):
            raise Stopped


def repo_files(repo: str, revision: str, transfer: Transfer) -> tuple[str, dict[str, RemoteFile]]:
    """The commit that a revision is now, and every file of it by its path in the repo. One request."""
    api = HfApi()
    info = _patiently(
        lambda: api.model_info(repo, revision=revision, files_metadata=True, timeout=constants.HF_HUB_ETAG_TIMEOUT),
        f"{repo} at {revision}",
        transfer,
    )
    files = {}
    for entry in info.siblings or []:
        size = entry.lfs.size if entry.lfs else entry.size
        if info.sha is None or size is None:
            raise WeightsError(f"{repo} at {revision}: the hub did not tell the commit, or its files' sizes.")
        sha256 = entry.lfs.sha256 if entry.lfs else None
        files[entry.rfilename] = RemoteFile("", repo, info.sha, entry.rfilename, size, sha256, entry.blob_id)
    return info.sha or "", files


def fetch(remote: RemoteFile, target: Path, transfer: Transfer) -> None:
    """Fetch a file to `target`, going on where an earlier try left off. Does not check what came.

    Survives dropped connections and the refusals that pass (rate limit, server error), as long as any ATTEMPTS tries in
    a row bring something new. Raises WeightsError where they do not, or where the hub refuses for good.
    """
    what = f"{remote.repo}/{remote.repo_path}"
    target.parent.mkdir(parents=True, exist_ok=True)
    _patiently(lambda: _stream(remote, target, transfer), what, transfer, lambda: _size(target))


def _stream(remote: RemoteFile, target: Path, transfer: Transfer) -> None:
    """One request for what is still missing, written to the end of `target`."""
    start = _size(target)
    if start == remote.size and target.exists():
        return
    url = hf_hub_url(remote.repo, remote.repo_path, revision=remote.commit)
    # Compressed answers have neither a length that can be checked nor ranges.
    headers = build_hf_headers() | {"Accept-Encoding": "identity"} | ({"Range": f"bytes={start}-"} if start else {})
    timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
    with get_session().stream("GET", url, headers=headers, timeout=timeout, follow_redirects=True) as response:
        if response.status_code == 416:  # there is nothing after `start`: what the hub has is shorter than it should be
            _empty(target, transfer)
            raise _CutShort(f"the hub has no more than {start} of {remote.size} bytes")
        hf_raise_for_status(response)
        if start and not response.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
            _empty(target, transfer)  # the whole file is coming, not the rest of it
        with target.open("ab") as file:
            for chunk in response.iter_bytes():
                transfer.advance(len(chunk))
                file.write(chunk)
                if file.tell() > remote.size:
                    return  # not the file that was asked for; checking it will tell
    if _size(target) < remote.size:
        raise _CutShort(f"the answer ended after {_size(target)} of {remote.size} bytes")


def _patiently(attempt: Callable[[], T], what: str, transfer: Transfer, reached: Callable[[], int] = int) -> T:
    """Call `attempt` until it succeeds. `reached` says how far tries got; one that got further counts as the first."""
    failures, furthest = 0, reached()
    while True:
        try:
            return attempt()
        except OfflineModeIsEnabled as error:
            raise WeightsError(f"{what}: HF_HUB_OFFLINE is set, so nothing is fetched. Unset it.") from error
        except HfHubHTTPError as error:
            if error.response.status_code not in _PASSING:
                raise WeightsError(f"{what}: {_refusal(error)}.") from error
            reason, asked = f"the hub answered {error.response.status_code}", _asked_wait(error.response)
        except (httpx2.RequestError, JSONDecodeError, _CutShort) as error:
            reason, asked = str(error) or type(error).__name__, 0.0
        failures, furthest = (failures + 1, furthest) if reached() <= furthest else (1, reached())
        if failures >= ATTEMPTS:
            raise WeightsError(
                f"{what}: given up after {failures} tries in a row, the last one because {reason}."
                " What was fetched is kept: run the same command again to go on."
            )
        transfer.pause(min(max(asked, FIRST_WAIT * 2 ** (failures - 1)), LONGEST_WAIT), f"{what}: {reason}")


def _refusal(error: HfHubHTTPError) -> str:
    for kind, meaning in _REFUSALS:
        if isinstance(error, kind):
            return meaning
    status = error.response.status_code
    if status in (401, 403):
        return f"the hub refused access ({status}): set HF_TOKEN to a token that may read it"
    if status == 404:
        return "the hub has no such file (404): look at the manifest, or write the lock anew"
    return f"the hub answered {status}"


def _asked_wait(response: httpx2.Response) -> float:
    """Seconds that the hub asks to wait, in rate limit headers or in Retry-After (a number or a date), else 0."""
    limit = parse_ratelimit_headers(response.headers)
    if limit is not None and limit.remaining == 0:
        return float(limit.reset_in_seconds)
    asked = response.headers.get("Retry-After", "")
    if asked.isdigit():
        return float(asked)
    try:
        return max(0.0, (parsedate_to_datetime(asked) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):  # not a date, or one without a time zone
        return 0.0


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _empty(path: Path, transfer: Transfer) -> None:
    transfer.advance(-_size(path))
    path.unlink()
