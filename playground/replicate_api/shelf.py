"""What the API keeps: a number of things of a total size, the oldest of which go first."""

import asyncio
import hashlib
import shutil
import uuid
from collections import OrderedDict
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from playground.pictures import File

Json = dict[str, Any]
ENDED = ("succeeded", "failed", "canceled")


def now() -> str:
    """This moment as Replicate writes it."""
    return datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


class Kept(Protocol):
    """Something on a shelf."""

    @property
    def size(self) -> int: ...
    @property
    def may_go(self) -> bool: ...
    def discard(self) -> None: ...


Item = TypeVar("Item", bound=Kept)


class Shelf(Generic[Item]):
    """Things by their ids, oldest first."""

    def __init__(self, most: int, most_bytes: int) -> None:
        self.most, self.most_bytes = most, most_bytes
        self.items: OrderedDict[str, Item] = OrderedDict()

    def add(self, key: str, item: Item) -> None:
        """Put something there. The oldest goes for it that may, if there is no room."""
        self.items[key] = item
        self.make_room()

    def make_room(self) -> None:
        """Discard the oldest until the rest fits. The newest stays."""
        for key in list(self.items)[:-1]:
            if len(self.items) <= self.most and sum(item.size for item in self.items.values()) <= self.most_bytes:
                return
            if self.items[key].may_go:
                self.remove(key)

    def get(self, key: str) -> Item | None:
        return self.items.get(key)

    def remove(self, key: str) -> bool:
        """Discard something. Returns whether it was there."""
        item = self.items.pop(key, None)
        if item is not None:
            item.discard()
        return item is not None


@dataclass
class Posted:
    """A file that a client posted, to be named in the inputs of predictions."""

    path: Path
    name: str
    mime: str
    sha256: str
    size: int
    metadata: Json
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    created_at: str = field(default_factory=now)
    may_go: bool = True

    @classmethod
    def write(cls, folder: Path, content: bytes, name: str, mime: str, metadata: Json) -> "Posted":
        path = folder / uuid.uuid4().hex
        path.write_bytes(content)
        return cls(path, name, mime, hashlib.sha256(content).hexdigest(), len(content), metadata)

    def file(self) -> File:
        return File(self.path.read_bytes(), self.mime)

    def discard(self) -> None:
        self.path.unlink(missing_ok=True)

    def as_json(self, base: str) -> Json:
        url = f"{base}/v1/files/{self.id}"
        return {
            "id": self.id,
            "name": self.name,
            "content_type": self.mime,
            "size": self.size,
            "etag": self.sha256,
            "checksums": {"sha256": self.sha256},
            "metadata": self.metadata,
            "created_at": self.created_at,
            "expires_at": "9999-12-31T23:59:59Z",  # it goes when there is no room for it
            "urls": {"get": url},
        }


@dataclass
class Prediction:
    """A prediction in any state."""

    folder: Path
    """Where the files of its output are."""
    model: str
    version: str
    input: Json
    bytes_in: int
    """The size of what the client sent, which is kept in memory."""
    inline: bool
    """Whether its output is written as data URLs."""
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    status: str = "starting"
    output: Any = None
    """As the server answered, with the path of a file in place of each data URL."""
    error: str | None = None
    logs: str = ""
    metrics: Json = field(default_factory=dict)
    created_at: str = field(default_factory=now)
    started_at: str | None = None
    completed_at: str | None = None
    task: "asyncio.Task[None] | None" = None
    faults: dict[str, str] | None = None
    """What the server said is wrong with the inputs."""
    bytes_out: int = 0

    @property
    def size(self) -> int:
        return self.bytes_in + self.bytes_out

    @property
    def may_go(self) -> bool:
        return self.status in ENDED

    def discard(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def end(self, status: str, error: str | None = None) -> None:
        self.status, self.error, self.completed_at = status, error, now()

    def store(self, output: Any) -> None:
        """Write the files of an answer's output to the folder."""
        count = 0

        def stored(value: Any) -> Any:
            nonlocal count
            if not isinstance(value, str) or not value.startswith("data:"):
                return value
            file = File.of_data_url(value)
            self.folder.mkdir(parents=True, exist_ok=True)
            path = self.folder / f"out-{count}{file.suffix}"
            path.write_bytes(file.content)
            count += 1
            self.bytes_out += len(file.content)
            return Stored(path, file.mime)

        self.output = mapped(output, stored)

    def as_json(self, base: str, inline: bool | None = None) -> Json:
        """As Replicate's API returns it. `base` is the address that the client uses."""
        inline = self.inline if inline is None else inline

        def url(value: Any) -> Any:
            if not isinstance(value, Stored):
                return value
            return value.file().data_url if inline else f"{base}/delivery/{self.id}/{value.path.name}"

        address = f"{base}/v1/predictions/{self.id}"
        return {
            "id": self.id,
            "model": self.model,
            "version": self.version,
            "input": self.input,
            "logs": self.logs,
            "output": mapped(self.output, url),
            "data_removed": False,
            "error": self.error,
            "status": self.status,
            "source": "api",
            "created_at": self.created_at,
            "started_at": self.started_at,
            "completed_at": self.completed_at,
            "metrics": self.metrics,
            "urls": {"get": address, "cancel": f"{address}/cancel", "web": address},
        }


@dataclass(frozen=True)
class Stored:
    """A file of an output."""

    path: Path
    mime: str

    def file(self) -> File:
        return File(self.path.read_bytes(), self.mime)


def mapped(value: Any, change: Any) -> Any:
    """The same JSON with each leaf changed."""
    if isinstance(value, dict):
        return {key: mapped(member, change) for key, member in value.items()}
    if isinstance(value, list):
        return [mapped(member, change) for member in value]
    return change(value)
