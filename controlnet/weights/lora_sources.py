"""Where a LoRA is: the forms in which a request may name one, and the hosts that it may come from.

The forms are those of Replicate's models that take LoRAs, apart from its own tar archives.
"""

import base64
import fnmatch
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from urllib.parse import parse_qs, unquote, urlsplit

import httpx2
from huggingface_hub import constants, hf_hub_url
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from controlnet.settings import Settings
from controlnet.weights.lora_files import MOST_BYTES, LoraError, shown

HOSTS = Settings.variable("lora_hosts")
HUB, HUB_SHORT = "huggingface.co", "hf.co"
CIVITAI_HOSTS = ("civitai.com", "civitai.red")
"""CivitAI serves its API at both, and some models at the second one alone."""
LONGEST = 2000
"""Characters of an address. Signed ones have a few hundred."""

FORMS = (
    "a URL of a .safetensors file, huggingface.co/owner/model, owner/model (a Hugging Face repository) with or without "
    "/file.safetensors, civitai.com/models/… or a data: URI of the file"
)
_NAME = r"[A-Za-z0-9][\w.-]*"
_HUB = re.compile(rf"(?P<repo>{_NAME}/{_NAME})(?P<rest>/.+)?", re.ASCII)
_BRANCH = r"(?P<revision>refs/[^/]+/[^/]+|[^/]+)"
_REVISION = re.compile(rf"/(?:resolve|blob|raw)/{_BRANCH}/(?P<file>.+)")
_WHOLE = re.compile(rf"(?:/tree/{_BRANCH})?/?")
_CIVITAI_MODEL = re.compile(r"/models/(?P<model>\d+)(/[^/]*)?/?", re.ASCII)
_CIVITAI_FILE = re.compile(r"/api/download/models/\d+/?", re.ASCII)
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_KNOWN_HOST = re.compile(rf"(www\.)?({'|'.join(map(re.escape, (HUB, HUB_SHORT, *CIVITAI_HOSTS)))})/", re.IGNORECASE)
_HOST = re.compile(r"[\w.:-]+")
_USUAL_PORTS = {"https": 443, "http": 80}


@dataclass(frozen=True)
class Remote:
    """A file at a URL."""

    url: str
    civitai: bool = False
    """Whether CivitAI's token goes with it."""

    def __str__(self) -> str:
        return self.url.partition("?")[0]


@dataclass(frozen=True)
class HubFile:
    """A file of a repository on the hub. The endpoint and the token are huggingface_hub's."""

    repo: str
    file: str
    revision: str = "main"
    kind: str | None = None
    """Of the repository: "dataset" or "space", or None for a model."""

    @property
    def url(self) -> str:
        return hf_hub_url(self.repo, self.file, repo_type=self.kind, revision=self.revision)

    def at(self, revision: str) -> "HubFile":
        """The same file at another revision."""
        return replace(self, revision=revision)

    def __str__(self) -> str:
        return self.url


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
    host: str = CIVITAI_HOSTS[0]

    def __str__(self) -> str:
        return f"{self.host}/models/{self.model}" + (f"?modelVersionId={self.version}" if self.version else "")


@dataclass(frozen=True)
class Inline:
    """The file itself."""

    content: bytes

    def __str__(self) -> str:
        return "sent with the request"


RemoteSource = Remote | HubFile | HubRepo | CivitaiModel
LoraSource = RemoteSource | Inline


def read_source(text: str, hosts: Sequence[str]) -> LoraSource:
    """What the text names, if it is on one of the `hosts` (Settings.lora_hosts). Nothing is fetched.

    Raises LoraError for another form, or another host.
    """
    text = text.strip()
    if text[:5].lower() == "data:":
        return _inline(text)
    if len(text) > LONGEST:
        raise LoraError(f"expected {FORMS}; got {len(text)} characters.")
    if not text.isprintable():
        raise LoraError(f"expected {FORMS}; got an address with a control character in it.")
    if not _SCHEME.match(text) and not _KNOWN_HOST.match(text):
        return _on_hub(text, hosts)
    try:
        parts = urlsplit(text if "://" in text else f"https://{text}")
        host, port = (parts.hostname or "").removeprefix("www."), parts.port
        host.encode("idna")
        httpx2.URL(text)
    except (ValueError, httpx2.InvalidURL) as error:
        raise LoraError(f"expected {FORMS}; got a broken address.") from error
    if parts.scheme not in _USUAL_PORTS or not _HOST.fullmatch(host) or parts.username or parts.password:
        raise LoraError(f"expected {FORMS}; got another kind of address.")
    if host in (HUB, HUB_SHORT):
        return _on_hub(unquote(parts.path).strip("/"), hosts)
    _check_host(host, port, parts.scheme, hosts)
    parts = parts._replace(netloc=parts.netloc.lower(), fragment="")
    if host in CIVITAI_HOSTS:
        if found := _CIVITAI_MODEL.fullmatch(parts.path):
            version = (parse_qs(parts.query).get("modelVersionId") or [None])[0]
            return CivitaiModel(found["model"], version, host)
        if _CIVITAI_FILE.fullmatch(parts.path):
            return Remote(parts.geturl(), civitai=True)
    if not parts.path.endswith(".safetensors"):
        raise LoraError(f"expected {FORMS}; got an address that ends in none of these.")
    return Remote(parts.geturl())


def civitai_headers() -> dict[str, str]:
    """The token that the operator has set, if any."""
    token = Settings.read().civitai_token
    return {"Authorization": f"Bearer {token}"} if token else {}


def _inline(text: str) -> Inline:
    head, comma, body = text.partition(",")
    if not comma or not head.lower().endswith(";base64") or len(body) * 3 // 4 > MOST_BYTES:
        raise LoraError("expected a data: URI with base64 of a .safetensors file, got another kind of data.")
    try:
        return Inline(base64.b64decode(body, validate=True))
    except ValueError as error:  # binascii.Error too
        raise LoraError("expected a data: URI with base64 of a .safetensors file, got broken base64.") from error


def _on_hub(text: str, hosts: Sequence[str]) -> LoraSource:
    kinds = {prefix: kind for kind, prefix in constants.REPO_TYPES_URL_PREFIXES.items() if kind in constants.REPO_TYPES}
    prefix = next(filter(text.startswith, kinds), "")
    found = _HUB.fullmatch(text.removeprefix(prefix))
    try:
        if not found or ".." in text:
            raise HFValidationError
        validate_repo_id(found["repo"])
    except HFValidationError as error:
        raise LoraError(f"expected {FORMS}; got {shown(text)}.") from error
    _check_host(HUB, None, "https", hosts)
    rest = found["rest"] or ""
    if whole := _WHOLE.fullmatch(rest):
        if prefix:
            raise LoraError(
                f"expected the link of a file in a {kinds[prefix]}, as {HUB}/{prefix}{found['repo']}/resolve/main/FILE."
            )
        return HubRepo(found["repo"], whole["revision"] or "main")
    at = _REVISION.fullmatch(rest)
    revision, file = (at["revision"], at["file"]) if at else ("main", rest[1:])
    if not file.endswith(".safetensors"):
        raise LoraError(f"expected a .safetensors file, got {shown(file)}.")
    return HubFile(found["repo"], file, revision, kinds.get(prefix))


def _check_host(host: str, port: int | None, scheme: str, allowed: Sequence[str]) -> None:
    place = host if port in (None, _USUAL_PORTS[scheme]) else f"{host}:{port}"
    names = [f"{scheme}://{place}"] + ([host, place] if scheme == "https" else [])
    if not any(fnmatch.fnmatchcase(name, entry) for entry in allowed for name in names):
        known = f"allowed: {', '.join(allowed)}" if allowed else "no downloads are allowed here, only data: URIs"
        raise LoraError(f"this server fetches no LoRA from {shown(names[0])} ({known}; {HOSTS} changes it).")
