"""LoRA files on disk: fetched once, checked, and kept until the folder is full.

A file is known by the address that a request names. What lies there later is not looked at: the same request gives the
same picture. To use a changed file, name its commit, or add a query to its address.
"""

import hashlib
import json
import os
import tempfile
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx2
from huggingface_hub import constants, get_session
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import hf_raise_for_status

from controlnet.log import say
from controlnet.weights.files import sha256
from controlnet.weights.hub import append_missing, repo_files, with_retries
from controlnet.weights.lockfile import WeightsError
from controlnet.weights.lora_files import LoraError, LoraNotFetched
from controlnet.weights.lora_sources import (
    MOST_BYTES,
    CivitaiModel,
    HubRepo,
    Inline,
    LoraSource,
    Remote,
    civitai_headers,
    hub_file,
)

FOLDER = "CONTROLNET_LORA_CACHE"
"""Environment variable: the folder. Unset, it is controlnet-loras in the system's folder for temporary files."""
GIGABYTES = "CONTROLNET_LORA_CACHE_GB"
"""Environment variable: how much the folder may hold. The files that were not used for longest are removed."""
USUAL_GIGABYTES = 5.0
_LONGEST_PAUSE = 10.0
"""Seconds. A client waits for this, so a server that asks for more time is given up."""
_SAY_EVERY = 2.0
"""Seconds between two lines about a download."""


class LoraCacheError(ValueError):
    """CONTROLNET_LORA_CACHE_GB is no number above 0."""


@dataclass
class _Fetching:
    """Tells the log how far a download is. It is the Progress of one."""

    name: str
    size: int = 0
    done: int = 0
    said: float = field(default_factory=time.monotonic)

    def advance(self, count: int) -> None:
        self.done += count
        if time.monotonic() - self.said > _SAY_EVERY:
            self.said = time.monotonic()
            say(f"{self.name}: fetched {self.done / 1e6:.0f} of {self.size / 1e6:.0f} MB")

    def pause(self, seconds: float, reason: str) -> None:
        if seconds > _LONGEST_PAUSE:
            raise WeightsError(f"{reason} and wants to be asked again in {seconds:.0f} s. Try again then.")
        say(f"{self.name}: {reason}; trying again in {seconds:.0f} s")
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            time.sleep(0.1)  # a cancellation comes between two of these


class LoraCache:
    """The folder of LoRA files. One request at a time; a cancelled one leaves at most an unfinished download."""

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        """Raises LoraCacheError for a limit that is no number. The folder is made with the first file."""
        usual = Path(tempfile.gettempdir()) / "controlnet-loras"
        self.folder = Path(environ.get(FOLDER) or usual)
        written = environ.get(GIGABYTES, "") or str(USUAL_GIGABYTES)
        try:
            self.most = int(float(written) * 1e9)
        except ValueError:
            self.most = 0
        if self.most <= 0:
            raise LoraCacheError(f"{GIGABYTES}: expected a number of gigabytes above 0, got {written!r}.")
        self._checked: set[tuple[str, int, int]] = set()

    def fetch(self, source: LoraSource, name: str) -> tuple[Path, str]:
        """The file and its SHA-256. `name` is the input's, for the log. Raises LoraError without that name."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if isinstance(source, Inline):
                return self._keep(source.content)
            return self._fetched(source, name)
        except WeightsError as error:
            raise LoraNotFetched(f"it could not be fetched: {error}") from error
        except OSError as error:
            raise LoraNotFetched(
                "it could not be saved on this server. Whoever runs it has to give it more space, or a folder that it "
                f"can write to ({FOLDER})."
            ) from error

    def _keep(self, content: bytes) -> tuple[Path, str]:
        digest = hashlib.sha256(content).hexdigest()
        file = self.folder / f"{digest}.safetensors"
        if not (file.exists() and self._intact(file, digest)):
            self._make_room(len(content), keep=())
            partial = file.with_suffix(".partial")
            partial.write_bytes(content)
            partial.replace(file)
        os.utime(file)
        return file, digest

    def _fetched(self, source: Remote | HubRepo | CivitaiModel, name: str) -> tuple[Path, str]:
        key = hashlib.sha256(repr(_address(source)).encode()).hexdigest()
        file, note = self.folder / f"{key}.safetensors", self.folder / f"{key}.json"
        with suppress(OSError, ValueError, KeyError):
            digest = json.loads(note.read_text())["sha256"]
            if self._intact(file, digest):
                os.utime(file)
                return file, digest
        remote = _located(source, name)
        digest = self._download(remote, file, name) or self._download(remote, file, name)
        if digest is None:
            raise LoraNotFetched("what arrived twice is not what its server lists (another SHA-256).")
        note.write_text(json.dumps({"sha256": digest}))
        return file, digest

    def _download(self, remote: Remote, file: Path, name: str) -> str | None:
        """Fetch to `file` and return its SHA-256. A download that broke off continues.

        If the server lists another SHA-256, what arrived is thrown away, and None is returned.
        """
        partial, tag = file.with_suffix(".partial"), file.with_suffix(".tag")
        progress, expected = _Fetching(name, done=_size(partial)), list[str]()

        def begun(response: httpx2.Response, size: int) -> None:
            if size > MOST_BYTES:
                raise LoraError(f"expected a file of at most {MOST_BYTES // 2**20} MB, got one of {size // 2**20} MB.")
            if size <= 0:
                raise LoraError("the server does not say how large the file is, so it was not fetched.")
            etag = response.headers.get("ETag", "")
            if _size(partial) and (not tag.exists() or tag.read_text() != etag):
                partial.unlink()  # it is the beginning of another file
                raise httpx2.ReadError("the file has changed")
            tag.write_text(etag)
            progress.size, progress.done = size, _size(partial)
            expected[:] = _listed_sha256(response)
            self._make_room(size - _size(partial), keep=(partial, tag))

        with_retries(
            lambda: append_missing(remote.url, remote.headers(), partial, progress, begun=begun),
            "the file",
            progress,
            lambda: _size(partial),
            _refusal,
            "send the request again",
        )
        digest = sha256(partial)
        if expected and digest != expected[0]:
            partial.unlink()
            return None
        partial.replace(file)
        tag.unlink(missing_ok=True)
        return digest

    def _intact(self, file: Path, digest: str) -> bool:
        """Whether a file still has the content that was fetched. It is read once, and again after it was changed."""
        state = file.stat()
        mark = (digest, state.st_ino, state.st_size)
        if mark not in self._checked and sha256(file) == digest:
            self._checked.add(mark)
        return mark in self._checked

    def _make_room(self, needed: int, keep: Iterable[Path]) -> None:
        """Remove the files that were not used for longest, until `needed` bytes more fit within the limit."""
        files = sorted(
            (path for path in self.folder.iterdir() if path.is_file() and path not in keep),
            key=lambda path: path.stat().st_mtime,
        )
        held = sum(path.stat().st_size for path in files)
        for path in files:
            if held + needed <= self.most:
                return
            held -= path.stat().st_size
            path.unlink()


def _address(source: Remote | HubRepo | CivitaiModel) -> object:
    return source.url if isinstance(source, Remote) else source


def _located(source: Remote | HubRepo | CivitaiModel, name: str) -> Remote:
    """The file of a repository or a model, looked up. Raises LoraError if there is not exactly one."""
    if isinstance(source, Remote):
        return source
    if isinstance(source, CivitaiModel):
        return _on_civitai(source, name)
    files = repo_files(source.repo, source.revision, _Fetching(name))
    found = [file for file in sorted(files) if file.endswith(".safetensors")]
    if len(found) != 1:
        listed = f"it has {', '.join(found[:10])}: name one, as {source.repo}/FILE" if found else "it has none"
        raise LoraError(f"{source.repo}: expected a repository with one .safetensors file; {listed}.")
    return hub_file(source.repo, found[0], files[found[0]].commit)


def _on_civitai(model: CivitaiModel, name: str) -> Remote:
    def ask() -> dict:
        url = f"https://{model.host}/api/v1/models/{model.model}"
        response = get_session().get(url, headers=civitai_headers(), timeout=constants.HF_HUB_ETAG_TIMEOUT)
        hf_raise_for_status(response)
        return response.json()

    listed = with_retries(ask, "the model", _Fetching(name), refusal=_refusal, continue_by="send the request again")
    versions = [each for each in listed.get("modelVersions", []) if model.version in (None, str(each.get("id")))]
    if not versions:
        wanted = f"version {model.version}" if model.version else "version"
        raise LoraError(f"CivitAI's model {model.model} has no {wanted}.")
    return Remote(f"https://{model.host}/api/download/models/{int(versions[0]['id'])}", civitai_headers)


def _listed_sha256(response: httpx2.Response) -> list[str]:
    """The SHA-256 that the hub sends with a large file, in the response that redirects to it; else empty."""
    tags = [each.headers.get("X-Linked-ETag", "").strip('"') for each in (*response.history, response)]
    return [tag for tag in tags if len(tag) == 64][:1]


def _refusal(error: HfHubHTTPError) -> str:
    status = error.response.status_code
    if status in (401, 403):
        return f"its server refuses access ({status}); it may want a token, which whoever runs this server can set"
    return "there is nothing at this address (404)" if status == 404 else f"its server answered {status}"


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
