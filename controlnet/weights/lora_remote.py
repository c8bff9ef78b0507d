"""The bytes of a LoRA's address, fetched by a process of its own: `python -m controlnet.weights.lora_remote`.

Cog raises a cancellation between two bytecode instructions of the request. So it would wait for a name server, a
handshake or a stalled connection, and a thread that could be left behind must not be started by a request. This process
may do all that: the request looks every 50 ms whether it has ended (controlnet/weights/lora_fetch.py), and it ends as
soon as the request's end of the pipe is closed, whatever closes it.
"""

import hashlib
import json
import os
import pickle
import sys
import threading
import time
from dataclasses import dataclass, field
from typing import BinaryIO
from urllib.parse import urlsplit

import httpx2
from huggingface_hub import HfApi, constants, get_hf_file_metadata
from huggingface_hub.errors import (
    FileMetadataError,
    GatedRepoError,
    HfHubHTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from huggingface_hub.utils import build_hf_headers

from controlnet.weights.hub import TRANSIENT_STATUSES
from controlnet.weights.lora_files import MOST_BYTES, FileRefused, LoraError, LoraNotFetched
from controlnet.weights.lora_sources import (
    CivitaiModel,
    HubFile,
    HubRepo,
    Remote,
    RemoteSource,
    civitai_headers,
)

WAITS = (1.0, 3.0)
"""Seconds before each new try."""
_SILENCE = 10.0
"""Seconds without a byte after which a try has failed."""


@dataclass(frozen=True)
class _Located:
    """A file to fetch with one request."""

    url: str
    headers: dict[str, str] = field(default_factory=dict)
    sha256: str | None = None
    """What the hub lists, if it lists one."""


def fetch(source: RemoteSource, file: BinaryIO) -> str:
    """Write what lies at an address to an empty file, and return its SHA-256. Tries again what may pass.

    Raises LoraNotFetched for what may pass later, FileRefused for a file that is not taken, another LoraError for other
    refusals, and OSError with a number if the file cannot be written.
    """
    for wait in (*WAITS, None):
        try:
            return _transferred(_located(source), file)
        except LoraNotFetched:
            if wait is None:
                raise
        except (HfHubHTTPError, OfflineModeIsEnabled, httpx2.RequestError, ValueError) as error:
            problem = _problem(error)
            if wait is None:
                raise LoraNotFetched(f"it could not be fetched: {problem}.") from error
        time.sleep(wait)
        file.seek(0)
        file.truncate()
    raise AssertionError


def _problem(error: Exception) -> str:
    """What may pass, in words. Raises LoraError for what does not."""
    if isinstance(error, LoraError):
        raise error
    if isinstance(error, OfflineModeIsEnabled):
        raise LoraNotFetched("this server may fetch nothing from the hub now (HF_HUB_OFFLINE).") from error
    if isinstance(error, RepositoryNotFoundError) and not isinstance(error, GatedRepoError):
        raise LoraError("there is no such repository, or it is private.") from error
    if isinstance(error, HfHubHTTPError):
        return _status_problem(error.response.status_code)
    if isinstance(error, httpx2.RequestError):
        host = urlsplit(str(error.request.url)).hostname
        return f"{host} did not answer ({str(error).partition(chr(10))[0].rstrip('.') or type(error).__name__})"
    return "its server's answer could not be read"  # no JSON


def _status_problem(status: int) -> str:
    """What may pass, in words. Raises LoraError for what does not."""
    if status in TRANSIENT_STATUSES or status >= 500:
        return f"its server answered {status}"
    if status in (401, 403):
        who = "it may want a token, which whoever runs this server can set"
        raise LoraError(f"its server refuses access ({status}); {who}.")
    raise LoraError("there is nothing at this address (404)." if status == 404 else f"its server answered {status}.")


def _located(source: RemoteSource) -> _Located:
    """Look up where the bytes are. Raises LoraError if there is not exactly one file."""
    if isinstance(source, Remote):
        return _Located(source.url, civitai_headers() if source.civitai else {})
    if isinstance(source, CivitaiModel):
        return _on_civitai(source)
    if isinstance(source, HubRepo):
        return _in_repository(source)
    try:
        found = get_hf_file_metadata(source.url, timeout=constants.HF_HUB_ETAG_TIMEOUT)
    except FileMetadataError as error:
        raise LoraError("its server does not answer as the hub does.") from error
    if found.size is not None:
        _check_size(found.size)
    sha256 = found.etag if found.etag and len(found.etag) == 64 else None
    return _Located(source.at(found.commit_hash or source.revision).url, build_hf_headers(), sha256)


def _in_repository(source: HubRepo) -> _Located:
    limit = constants.HF_HUB_ETAG_TIMEOUT
    info = HfApi().model_info(source.repo, revision=source.revision, files_metadata=True, timeout=limit)
    found = [each for each in info.siblings or () if each.rfilename.endswith(".safetensors")]
    if len(found) != 1:
        names = ", ".join(sorted(each.rfilename for each in found)[:10])
        listed = f"it has {names}: name one, as {source.repo}/FILE" if found else "it has none"
        raise LoraError(f"{source.repo}: expected a repository with one .safetensors file; {listed}.")
    (only,) = found
    _check_size(only.size or 0)
    file = HubFile(source.repo, only.rfilename, info.sha or source.revision)
    return _Located(file.url, build_hf_headers(), only.lfs.sha256 if only.lfs else None)


def _on_civitai(model: CivitaiModel) -> _Located:
    url = f"https://{model.host}/api/v1/models/{model.model}"
    response = httpx2.get(url, headers=civitai_headers(), timeout=_SILENCE)
    if response.status_code != 200:
        raise LoraNotFetched(f"it could not be fetched: {_status_problem(response.status_code)}.")
    try:
        versions = [int(each["id"]) for each in response.json()["modelVersions"]]
    except (KeyError, TypeError) as error:
        raise ValueError("another answer than CivitAI's") from error
    found = [version for version in versions if model.version in (None, str(version))]
    if not found:
        wanted = f"version {model.version}" if model.version else "version"
        raise LoraError(f"CivitAI's model {model.model} has no {wanted}.")
    return _Located(f"https://{model.host}/api/download/models/{found[0]}", civitai_headers())


def _transferred(located: _Located, file: BinaryIO) -> str:
    """Write the bytes of an address, at most MOST_BYTES, and return their SHA-256."""
    digest, count = hashlib.sha256(), 0
    wanted = {**located.headers, "Accept-Encoding": "identity"}  # the length of a packed answer says nothing
    client = httpx2.Client(follow_redirects=True, timeout=_SILENCE)
    with client, client.stream("GET", located.url, headers=wanted) as response:
        if response.status_code != 200:
            raise LoraNotFetched(f"it could not be fetched: {_status_problem(response.status_code)}.")
        size = int(response.headers.get("Content-Length", 0))
        if size <= 0 or "Content-Encoding" in response.headers:
            raise FileRefused("the server does not say how large the file is, so it was not fetched.")
        _check_size(size)
        for chunk in response.iter_raw():
            count += len(chunk)
            digest.update(chunk)
            file.write(chunk)
    file.flush()
    if count != size:
        raise LoraNotFetched(f"it could not be fetched: the server sent {count} of {size} bytes.")
    if located.sha256 and digest.hexdigest() != located.sha256:
        raise LoraNotFetched("what arrived is not what its server lists (another SHA-256).")
    return digest.hexdigest()


def _check_size(size: int) -> None:
    if size > MOST_BYTES:
        raise FileRefused(f"expected a file of at most {MOST_BYTES // 2**20} MB, got one of {size // 2**20} MB.")


def _end_with_the_request() -> None:
    os.read(sys.stdin.fileno(), 1)  # returns when the other end is closed
    os._exit(1)


def main() -> None:
    """Read a source and the number of an open file from the input, fetch, and print the outcome as JSON."""
    source, descriptor = pickle.load(sys.stdin.buffer)
    threading.Thread(target=_end_with_the_request, daemon=True).start()
    try:
        with open(descriptor, "wb", closefd=False) as file:
            outcome = {"sha256": fetch(source, file)}
    except LoraError as error:
        outcome = {"error": type(error).__name__, "message": str(error)}
    except OSError as error:  # the disk is full, or a limit of this process
        outcome = {"error": "OSError", "message": str(error)}
    print(json.dumps(outcome), flush=True)


if __name__ == "__main__":
    main()
