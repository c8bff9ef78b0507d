"""Where a LoRA is: the forms in which a request may name one, and the hosts that it may come from.

The forms are those of Replicate's models that take LoRAs, apart from its own tar archives.
"""

import base64
import binascii
import fnmatch
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import parse_qs, quote, unquote, urlsplit

from huggingface_hub import hf_hub_url
from huggingface_hub.utils import build_hf_headers

from controlnet.weights.lora_files import LoraError

HOSTS = "CONTROLNET_LORA_HOSTS"
"""Environment variable: the hosts that a LoRA may be fetched from, separated by commas; * stands for any part of a
name. "none" allows no download. An entry that begins with http:// also allows that host without encryption. A host is
trusted with its redirects: do not name one that redirects to wherever it is asked to."""
USUAL_HOSTS = ("huggingface.co", "civitai.com", "replicate.delivery", "*.replicate.delivery")
CIVITAI_TOKEN = "CIVITAI_API_TOKEN"
"""Environment variable: the token that CivitAI asks for before it serves some files."""
MOST_BYTES = 500 * 2**20
"""Of a LoRA file. The largest in use for Stable Diffusion 1.5 have 270 MB."""

FORMS = (
    "a URL of a .safetensors file, huggingface.co/owner/model, owner/model (a Hugging Face repository) with or without "
    "/file.safetensors, civitai.com/models/… or a data: URI of the file"
)
_NAME = r"[A-Za-z0-9][\w.-]*"
_HUB = re.compile(rf"(?P<repo>{_NAME}/{_NAME})(?P<rest>/.+)?", re.ASCII)
_REVISION = re.compile(r"/(?:resolve|blob|raw)/(?P<revision>[^/]+)/(?P<file>.+)")
_CIVITAI_MODEL = re.compile(r"/models/(?P<model>\d+)(/[^/]*)?/?")
_CIVITAI_FILE = re.compile(r"/api/download/models/\d+/?")


@dataclass(frozen=True)
class Remote:
    """A file to fetch with one request."""

    url: str
    headers: Callable[[], Mapping[str, str]] = dict

    def __str__(self) -> str:
        return self.url.partition("?")[0]


@dataclass(frozen=True)
class HubRepo:
    """A repository on the hub that holds one LoRA, whose file has to be looked up."""

    repo: str
    revision: str = "main"

    def __str__(self) -> str:
        return f"{self.repo} at {self.revision}"


@dataclass(frozen=True)
class CivitaiModel:
    """A model on CivitAI, whose file has to be looked up."""

    model: str
    version: str | None
    """The number of one of its versions. None means the newest."""

    def __str__(self) -> str:
        return f"civitai.com/models/{self.model}" + (f"?modelVersionId={self.version}" if self.version else "")


@dataclass(frozen=True)
class Inline:
    """The file itself."""

    content: bytes

    def __str__(self) -> str:
        return "sent with the request"


LoraSource = Remote | HubRepo | CivitaiModel | Inline


def read_source(text: str, environ: Mapping[str, str] = os.environ) -> LoraSource:
    """What the text names. Nothing is fetched. Raises LoraError for another form, or a host that is not allowed."""
    text = text.strip()
    if text.startswith("data:"):
        return _inline(text)
    if not re.match(r"[a-z]+://", text) and not re.match(r"(www\.)?(huggingface\.co|civitai\.com)/", text):
        return _on_hub(text, environ)
    try:
        parts = urlsplit(text if "://" in text else f"https://{text}")
        host, _ = (parts.hostname or "").removeprefix("www."), parts.port
    except ValueError as error:
        raise LoraError(f"expected {FORMS}; got a broken address.") from error
    if parts.scheme not in ("https", "http") or not host or parts.username or parts.password:
        raise LoraError(f"expected {FORMS}; got another kind of address.")
    if host == "huggingface.co":
        return _on_hub(unquote(parts.path).strip("/"), environ)
    _check_host(host, parts.netloc, parts.scheme, environ)
    if host == "civitai.com":
        if found := _CIVITAI_MODEL.fullmatch(parts.path):
            return CivitaiModel(found["model"], (parse_qs(parts.query).get("modelVersionId") or [None])[0])
        if _CIVITAI_FILE.fullmatch(parts.path):
            return Remote(parts.geturl(), lambda: civitai_headers(environ))
    if not parts.path.endswith(".safetensors"):
        raise LoraError(f"expected {FORMS}; got an address that ends in none of these.")
    return Remote(parts._replace(fragment="").geturl())


def civitai_headers(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The token that the operator has set, if any."""
    token = environ.get(CIVITAI_TOKEN)
    return {"Authorization": f"Bearer {token}"} if token else {}


def hub_file(repo: str, file: str, revision: str = "main") -> Remote:
    """A file of a repository on the hub. The endpoint and the token are huggingface_hub's."""
    return Remote(hf_hub_url(repo, file, revision=quote(revision, safe="")), build_hf_headers)


def _inline(text: str) -> Inline:
    head, comma, body = text.partition(",")
    if not comma or not head.endswith(";base64") or len(body) * 3 // 4 > MOST_BYTES:
        raise LoraError("expected a data: URI with base64 of a .safetensors file, got another kind of data.")
    try:
        return Inline(base64.b64decode(body, validate=True))
    except binascii.Error as error:
        raise LoraError("expected a data: URI with base64 of a .safetensors file, got broken base64.") from error


def _on_hub(text: str, environ: Mapping[str, str]) -> LoraSource:
    found = _HUB.fullmatch(text)
    if not found or ".." in text:
        raise LoraError(f"expected {FORMS}; got {_shown(text)}.")
    _check_host("huggingface.co", "huggingface.co", "https", environ)
    rest = found["rest"] or ""
    if not rest or re.fullmatch(r"/tree/[^/]+/?", rest):
        return HubRepo(found["repo"], rest.removeprefix("/tree/").strip("/") or "main")
    at = _REVISION.fullmatch(rest)
    revision, file = (at["revision"], at["file"]) if at else ("main", rest[1:])
    if not file.endswith(".safetensors"):
        raise LoraError(f"expected a .safetensors file, got {_shown(file)}.")
    return hub_file(found["repo"], file, revision)


def _check_host(host: str, netloc: str, scheme: str, environ: Mapping[str, str]) -> None:
    allowed = allowed_hosts(environ)
    names = [host] if scheme == "https" else []
    names.append(f"{scheme}://{netloc}")
    if not any(fnmatch.fnmatchcase(name, entry) for entry in allowed for name in names):
        known = f"allowed: {', '.join(allowed)}" if allowed else "no downloads are allowed here, only data: URIs"
        address = _shown(f"{scheme}://{netloc}")
        raise LoraError(f"this server fetches no LoRA from {address} ({known}; {HOSTS} changes it).")


def allowed_hosts(environ: Mapping[str, str] = os.environ) -> Sequence[str]:
    """The entries of CONTROLNET_LORA_HOSTS, or the usual ones."""
    written = environ.get(HOSTS, "").strip().lower()
    if written == "none":
        return ()
    return tuple(entry.strip() for entry in written.split(",") if entry.strip()) or USUAL_HOSTS


def _shown(text: str) -> str:
    return repr(text if len(text) <= 80 else f"{text[:77]}...")
