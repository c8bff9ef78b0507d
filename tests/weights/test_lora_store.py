"""LoRA files are kept whole, within limits and for whoever uses them; from a local stand-in for the hub."""

import hashlib
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support import ROOT
from support.hub import Fault, Hub

from controlnet.settings import Settings
from controlnet.weights import lora_fetch, lora_store
from controlnet.weights.lora_files import FileRefused, Lora, LoraError, LoraNotFetched
from controlnet.weights.lora_sources import HubFile, HubRepo, Inline, LoraSource, Remote
from controlnet.weights.lora_store import GIGABYTES, LoraStore

CONTENT = os.urandom(300_000)
OTHER = os.urandom(300_000)
SOURCE = HubFile("someone/night", "night.safetensors")


@pytest.fixture
def store(tmp_path: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> LoraStore:
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    hub.publish("someone/night", {"night.safetensors": CONTENT, "README.md": b"words"})
    return LoraStore(Settings(lora_folder=str(tmp_path / "loras")))


def anything(lora: Lora) -> None:
    """A check that every file passes."""


def nothing(lora: Lora) -> None:
    raise LoraError(f"{lora.name}: expected a LoRA, got none.")


def fetch(store: LoraStore, source: LoraSource = SOURCE, name: str = "lora_weights", check=anything) -> Lora:
    return store.fetch(source, name, 1.0, check)


def names(store: LoraStore) -> list[str]:
    return sorted(path.name for path in store.folder.iterdir() if path.suffix in (".safetensors", ".partial"))


def test_a_file_is_fetched_once(store: LoraStore, hub: Hub) -> None:
    first = fetch(store)
    assert first.file.read_bytes() == CONTENT and first.sha256 == hashlib.sha256(CONTENT).hexdigest()
    assert (first.name, first.scale, first.source) == ("lora_weights", 1.0, SOURCE.url)
    again = LoraStore(Settings(lora_folder=str(store.folder)))  # after a restart
    assert fetch(store) == fetch(again) == first
    assert len(hub.downloads("night.safetensors")) == 1


def test_the_same_address_keeps_its_file(store: LoraStore, hub: Hub) -> None:
    before = fetch(store)
    hub.publish("someone/night", {"night.safetensors": OTHER})
    assert fetch(store) == before


def test_a_file_in_the_request_is_kept_under_its_hash(store: LoraStore) -> None:
    lora = fetch(store, Inline(b"abc"))
    assert lora.sha256 == hashlib.sha256(b"abc").hexdigest() and lora.file.read_bytes() == b"abc"
    assert fetch(store, Inline(b"abc")) == lora and len(names(store)) == 1


def test_a_file_that_was_damaged_on_disk_is_fetched_again(store: LoraStore) -> None:
    lora = fetch(store)
    for damaged in (OTHER[:-1], OTHER):  # of another size, and of the same
        assert fetch(store) == lora  # and it was read
        lora.file.write_bytes(damaged)
        assert fetch(store) == lora
        assert lora.file.read_bytes() == CONTENT


def test_two_processes_that_fetch_one_address_at_once_both_get_it(store: LoraStore, hub: Hub) -> None:
    content = os.urandom(20_000_000)
    hub.publish("someone/night", {"night.safetensors": content})
    code = (
        "import hashlib, sys; from controlnet.weights.lora_store import *\n"
        "from controlnet.weights.lora_sources import HubFile\n"
        f"store = LoraStore(Settings(lora_folder={str(store.folder)!r}))\n"
        f"lora = store.fetch({SOURCE!r}, 'lora_weights', 1.0, lambda lora: None)\n"
        "print(lora.sha256, hashlib.sha256(lora.file.read_bytes()).hexdigest())"
    )
    command = [sys.executable, "-c", code]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) for _ in range(3)]
    right = hashlib.sha256(content).hexdigest()
    assert [each.communicate(timeout=300)[0].split()[-2:] for each in running] == [[right, right]] * 3
    assert len(names(store)) == 1


def test_the_oldest_files_make_room(tmp_path: Path) -> None:
    store = LoraStore(Settings(lora_folder=str(tmp_path / "loras"), lora_gigabytes=0.000001))
    kept = [fetch(store, Inline(bytes([i]) * 400)).file for i in range(2)]
    fetch(store, Inline(bytes([0]) * 400))  # used again, so it is the newest
    fetch(store, Inline(b"new" * 100))
    assert kept[0].exists() and not kept[1].exists()


def test_what_a_request_uses_is_not_removed(tmp_path: Path) -> None:
    settings = Settings(lora_folder=str(tmp_path / "loras"), lora_gigabytes=0.000001)
    store, elsewhere = LoraStore(settings), LoraStore(settings)
    first = fetch(store, Inline(b"a" * 600))
    for other in (store, elsewhere):
        with pytest.raises(LoraNotFetched, match=rf"^lora_weights_2: this server keeps at most .*{GIGABYTES}"):
            fetch(other, Inline(b"b" * 600), "lora_weights_2")
    assert first.file.exists() and len(names(store)) == 1
    gone = first.file
    del first
    assert fetch(elsewhere, Inline(b"b" * 600)).file.exists() and not gone.exists()


def test_only_its_own_files_are_removed(tmp_path: Path) -> None:
    store = LoraStore(Settings(lora_folder=str(tmp_path / "loras"), lora_gigabytes=0.000001))
    fetch(store, Inline(b"a" * 600))
    (store.folder / "thesis.safetensors").write_bytes(b"x" * 2000)
    fetch(store, Inline(b"b" * 600))
    assert (store.folder / "thesis.safetensors").exists()


def test_a_folder_with_other_files_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "thesis.txt").write_text("long")
    with pytest.raises(LoraNotFetched, match="could not be saved") as error:
        fetch(LoraStore(Settings(lora_folder=str(tmp_path))), Inline(b"abc"))
    assert str(tmp_path) not in str(error.value)
    assert "name an empty folder" in capsys.readouterr().err
    assert os.listdir(tmp_path) == ["thesis.txt"]


def test_the_folder_is_closed_to_others(tmp_path: Path) -> None:
    (tmp_path / "open").mkdir(mode=0o755)
    for folder in ("new/deep", "open"):
        store = LoraStore(Settings(lora_folder=str(tmp_path / folder)))
        assert fetch(store, Inline(b"abc")).file.stat().st_mode & 0o777 == 0o600
        assert store.folder.stat().st_mode & 0o777 == 0o700


def test_a_link_in_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "loras").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(LoraNotFetched, match="could not be saved"):
        fetch(LoraStore(Settings(lora_folder=str(tmp_path / "loras"))), Inline(b"abc"))
    assert not os.listdir(tmp_path / "elsewhere")


def test_the_folder_of_another_user_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store = LoraStore(Settings(lora_folder=str(tmp_path / "loras")))
    fetch(store, Inline(b"abc"))
    monkeypatch.setattr("os.geteuid", lambda: 54321)
    with pytest.raises(LoraNotFetched, match="could not be saved"):
        fetch(store, Inline(b"abc"))
    assert "belongs to another user" in capsys.readouterr().err


@pytest.mark.parametrize("content", [b"precious", b"abc"])
def test_a_planted_link_is_neither_used_nor_written_through(tmp_path: Path, content: bytes) -> None:
    store = LoraStore(Settings(lora_folder=str(tmp_path / "loras")))
    lora, victim = fetch(store, Inline(b"abc")), tmp_path / "victim"
    victim.write_bytes(content)
    lora.file.unlink()
    lora.file.symlink_to(victim)
    again = fetch(store, Inline(b"abc"))
    assert again.file.read_bytes() == b"abc" and not again.file.is_symlink()
    assert victim.read_bytes() == content


def test_a_cancellation_leaves_nothing_that_stays(store: LoraStore, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    class Cancelled(BaseException):
        pass

    def cancel(seconds: float) -> None:
        if hub.stalled.is_set():
            raise Cancelled

    hub.fail("night.safetensors", Fault(stall_after=100_000))
    with monkeypatch.context() as patched, pytest.raises(Cancelled):
        patched.setattr(lora_fetch.time, "sleep", cancel)
        fetch(store)
    assert names(store) == []
    (store.folder / "left.partial").write_bytes(b"by a cancellation at a worse moment")
    assert fetch(store).file.read_bytes() == CONTENT
    assert len(names(store)) == 1


def test_a_refused_file_is_not_kept_and_not_fetched_again_for_a_while(
    store: LoraStore, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(FileRefused, match=r"^lora_weights: expected a LoRA, got none\.$"):
        fetch(store, check=nothing)
    assert names(store) == []
    with pytest.raises(FileRefused, match=r"^lora_weights_2: expected a LoRA, got none\. This .* in 10 minutes\.$"):
        fetch(store, name="lora_weights_2")
    assert len(hub.downloads("night.safetensors")) == 1
    fetch(store, Remote(f"{hub.url}/someone/night/resolve/main/night.safetensors"))  # another address
    later = time.monotonic() + lora_store.REMEMBERED
    monkeypatch.setattr(lora_store.time, "monotonic", lambda: later)
    assert fetch(store).file.read_bytes() == CONTENT


def test_a_file_that_another_bundle_took_is_refused_too(store: LoraStore) -> None:
    used = fetch(store)
    again = LoraStore(Settings(lora_folder=str(store.folder)))
    with pytest.raises(FileRefused):
        fetch(again, check=nothing)
    assert used.file.exists(), "a request uses it"
    with pytest.raises(FileRefused, match=r"got none\.$"):
        fetch(store, Inline(b"abc"), check=nothing)
    with pytest.raises(FileRefused, match=r"got none\.$"):
        fetch(store, Inline(b"abc"), check=nothing)  # nothing has to be remembered of a file in the request


def test_a_file_is_checked_once(store: LoraStore) -> None:
    seen: list[str] = []
    for _ in range(2):
        fetch(store, check=lambda lora: seen.append(lora.sha256))
    assert len(seen) == 1


def test_a_file_that_is_too_large_is_refused_and_remembered(store: LoraStore, hub: Hub) -> None:
    hub.publish("someone/night", {"night.safetensors": bytes(501 * 2**20)})
    address = Remote(f"{hub.url}/someone/night/resolve/main/night.safetensors")
    for source in (SOURCE, HubRepo("someone/night"), address):
        for _ in range(2):
            with pytest.raises(FileRefused, match="expected a file of at most 500 MB, got one of 501 MB"):
                fetch(store, source)
    assert names(store) == []
    assert len(hub.downloads("night.safetensors")) == 1, "of the bare address; the hub says the size before"


def test_a_disk_that_is_full_is_not_the_senders_fault(store: LoraStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(lora_store, "fetch", full)
    with pytest.raises(LoraNotFetched, match="could not be saved") as error:
        fetch(store)
    assert str(store.folder) not in str(error.value)
    assert names(store) == []
