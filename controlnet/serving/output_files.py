"""The files in the answer to a request: decoded or fetched, and written to a folder."""

import base64
import mimetypes
import re
import urllib.request
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

from controlnet.serving.api import FAILURES, ServerError

FETCH_SECONDS = 60
"""How long a server of uploaded files may be silent."""


def decode_data_url(url: str) -> tuple[bytes, str]:
    """Return the content of a data URL and the suffix for its type, such as ".webp"."""
    header, _, payload = url.partition(",")
    mime = header.removeprefix("data:").split(";")[0]
    content = base64.b64decode(payload) if header.endswith(";base64") else payload.encode()
    return content, mimetypes.guess_extension(mime, strict=False) or ".bin"


def read_output(url: str) -> tuple[bytes, str]:
    """Return the content and the suffix of an output. A server with --upload-url answers with http(s) URLs.

    Raises ServerError if it cannot be fetched, or is neither such a URL nor a data URL.
    """
    if url.startswith("data:"):
        return decode_data_url(url)
    if urlsplit(url).scheme not in ("http", "https"):  # such as file:, which would copy a file of this machine
        raise ServerError(f"The server sent neither a file nor an http(s) URL: {url[:100]}")
    try:
        with urllib.request.urlopen(url, timeout=FETCH_SECONDS) as response:
            return response.read(), PurePosixPath(urlsplit(url).path).suffix or ".bin"
    except FAILURES as error:
        raise ServerError(f"Cannot fetch {url}: {error}.") from error


def write_outputs(urls: Sequence[str], folder: Path) -> list[Path]:
    """Write the files of one prediction to `folder`: 0001.webp, or 0001-1.webp, 0001-2.webp if there are several.

    The number is the highest number in the folder plus one. JSON holds the poses: it is called poses.json, or
    poses-0001.json with that number if there is a poses.json already. An existing file is never overwritten.
    Raises OSError and ServerError.
    """
    files = [read_output(url) for url in urls]
    folder.mkdir(parents=True, exist_ok=True)
    used = (re.match(r"(?:poses-)?(\d+)[-.]", path.name) for path in folder.iterdir())
    number = 1 + max((int(match[1]) for match in used if match), default=0)
    pictures = sum(ending != ".json" for _, ending in files)
    paths: list[Path] = []
    index = 0
    for content, ending in files:
        if ending == ".json":
            name = f"poses-{number:04}.json" if (folder / "poses.json").exists() else "poses.json"
        else:
            index += 1
            name = f"{number:04}{ending}" if pictures == 1 else f"{number:04}-{index}{ending}"
        with (folder / name).open("xb") as file:
            file.write(content)
        paths.append(folder / name)
    return paths
