"""LoRA files are fetched once, completely, within limits; from a local stand-in for the hub with faults on demand."""

import hashlib
import os
from pathlib import Path

import pytest
from support.hub import Fault, Hub
from support.small_bundle import point_at

from controlnet.weights import lora_cache
from controlnet.weights.lora_cache import FOLDER, GIGABYTES, LoraCache, LoraCacheError
from controlnet.weights.lora_files import LoraError
from controlnet.weights.lora_sources import CIVITAI_HOSTS, CivitaiModel, HubRepo, Inline, Remote, hub_file

CONTENT = os.urandom(300_000)
OTHER = os.urandom(300_000)


@pytest.fixture
def cache(tmp_path: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> LoraCache:
    point_at(hub, monkeypatch)
    hub.publish("someone/night", {"night.safetensors": CONTENT, "README.md": b"words"})
    return LoraCache({FOLDER: str(tmp_path / "loras")})


def source() -> Remote:
    return hub_file("someone/night", "night.safetensors")


def test_a_file_is_fetched_once(cache: LoraCache, hub: Hub) -> None:
    file, digest = cache.fetch(source(), "lora_weights")
    assert file.read_bytes() == CONTENT and digest == hashlib.sha256(CONTENT).hexdigest()
    again = LoraCache({FOLDER: str(cache.folder)})  # after a restart
    assert cache.fetch(source(), "lora_weights") == again.fetch(source(), "lora_weights") == (file, digest)
    assert len(hub.downloads("night.safetensors")) == 1


def test_the_same_address_keeps_its_file(cache: LoraCache, hub: Hub) -> None:
    before = cache.fetch(source(), "lora_weights")
    hub.publish("someone/night", {"night.safetensors": OTHER})
    assert cache.fetch(source(), "lora_weights") == before


def test_a_repository_with_one_file_needs_no_name(cache: LoraCache, hub: Hub) -> None:
    file, _ = cache.fetch(HubRepo("someone/night"), "lora_weights")
    assert file.read_bytes() == CONTENT
    hub.publish("someone/two", {"a.safetensors": CONTENT, "b.safetensors": OTHER})
    with pytest.raises(LoraError, match=r"it has a\.safetensors, b\.safetensors: name one"):
        cache.fetch(HubRepo("someone/two"), "lora_weights")
    with pytest.raises(LoraError, match="no such repository"):
        cache.fetch(HubRepo("someone/nobody"), "lora_weights")


@pytest.mark.parametrize("fault", [Fault(drop_after=100_000), Fault(times=2, status=503), Fault(short_at=70_000)])
def test_a_download_survives(cache: LoraCache, hub: Hub, fault: Fault) -> None:
    hub.fail("night.safetensors", fault)
    assert cache.fetch(source(), "lora_weights")[0].read_bytes() == CONTENT


def _break_off(cache: LoraCache, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fetch 100,000 bytes, and cancel."""

    def cancel(self: object, seconds: float, reason: str) -> None:
        raise KeyboardInterrupt

    hub.fail("night.safetensors", Fault(drop_after=100_000))
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(lora_cache._Fetching, "pause", cancel)
        cache.fetch(source(), "lora_weights")


def test_a_cancelled_download_continues(cache: LoraCache, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    _break_off(cache, hub, monkeypatch)
    assert cache.fetch(source(), "lora_weights")[0].read_bytes() == CONTENT
    ranges = [seen.range for seen in hub.seen if seen.path.endswith("night.safetensors")]
    assert ranges[-1] == "bytes=100000-"


def test_the_beginning_of_another_file_is_thrown_away(
    cache: LoraCache, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if the server lists no SHA-256, as most do not."""
    monkeypatch.setattr(lora_cache, "_listed_sha256", lambda response: [])
    _break_off(cache, hub, monkeypatch)
    hub.publish("someone/night", {"night.safetensors": OTHER})
    assert cache.fetch(source(), "lora_weights")[0].read_bytes() == OTHER


def test_another_content_than_the_hub_lists_is_refused(cache: LoraCache, hub: Hub) -> None:
    hub.fail("night.safetensors", Fault(times=2, flip_at=5))
    with pytest.raises(LoraError, match="another SHA-256"):
        cache.fetch(source(), "lora_weights")
    assert cache.fetch(source(), "lora_weights")[0].read_bytes() == CONTENT


def test_a_file_that_was_damaged_on_disk_is_fetched_again(cache: LoraCache) -> None:
    file, digest = cache.fetch(source(), "lora_weights")
    file.write_bytes(OTHER[:-1])
    assert cache.fetch(source(), "lora_weights") == (file, digest)
    assert file.read_bytes() == CONTENT


def test_a_file_that_is_too_large_is_not_fetched(cache: LoraCache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lora_cache, "MOST_BYTES", 2**18)
    with pytest.raises(LoraError, match="expected a file of at most 0 MB"):
        cache.fetch(source(), "lora_weights")
    assert not list(cache.folder.glob("*.safetensors"))


@pytest.mark.parametrize(("status", "words"), [(404, "nothing at this address"), (403, "want a token"), (410, "410")])
def test_a_refusal_is_said_in_words(cache: LoraCache, hub: Hub, status: int, words: str) -> None:
    hub.fail("night.safetensors", Fault(times=9, status=status))
    with pytest.raises(LoraError, match=words) as error:
        cache.fetch(source(), "lora_weights")
    assert str(cache.folder) not in str(error.value)


def test_a_server_that_asks_for_much_patience_is_given_up(cache: LoraCache, hub: Hub) -> None:
    hub.fail("night.safetensors", Fault(times=9, status=429, headers={"Retry-After": "300"}))
    with pytest.raises(LoraError, match="asked again in 300 s"):
        cache.fetch(source(), "lora_weights")


def test_the_oldest_files_make_room(tmp_path: Path) -> None:
    cache = LoraCache({FOLDER: str(tmp_path), GIGABYTES: "0.000001"})
    kept = [cache.fetch(Inline(bytes([i]) * 400), "lora_weights")[0] for i in range(2)]
    os.utime(kept[0], (1, 1))
    os.utime(kept[1], (2, 2))
    cache.fetch(Inline(bytes([0]) * 400), "lora_weights")  # used again, so it is the newest
    cache.fetch(Inline(b"new" * 100), "lora_weights")
    assert kept[0].exists() and not kept[1].exists()
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) <= 1000


def test_a_file_in_the_request_is_kept_under_its_hash(tmp_path: Path) -> None:
    cache = LoraCache({FOLDER: str(tmp_path)})
    file, digest = cache.fetch(Inline(b"abc"), "lora_weights")
    assert digest == hashlib.sha256(b"abc").hexdigest() and file.read_bytes() == b"abc"


def test_a_folder_that_cannot_be_written_to_is_one_message(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LoraError, match="could not be saved") as error:
        LoraCache({FOLDER: str(tmp_path / "file")}).fetch(Inline(b"abc"), "lora_weights")
    assert str(tmp_path) not in str(error.value)


@pytest.mark.parametrize("written", ["many", "0", "-1"])
def test_a_limit_must_be_a_number(written: str) -> None:
    with pytest.raises(LoraCacheError, match=GIGABYTES):
        LoraCache({GIGABYTES: written})


@pytest.mark.parametrize("host", CIVITAI_HOSTS)
def test_the_file_of_a_civitai_model_is_looked_up(monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    listed = {"modelVersions": [{"id": 7}, {"id": 5}]}

    class Session:
        def get(self, url: str, **_: object) -> "Session":
            assert url == f"https://{host}/api/v1/models/12"
            return self

        def json(self) -> dict:
            return listed

    monkeypatch.setattr(lora_cache, "get_session", Session)
    monkeypatch.setattr(lora_cache, "hf_raise_for_status", lambda response: None)
    newest = lora_cache._located(CivitaiModel("12", None, host), "lora_weights")
    assert newest.url == f"https://{host}/api/download/models/7"
    assert lora_cache._located(CivitaiModel("12", "5", host), "lora_weights").url.endswith("/5")
    with pytest.raises(LoraError, match="no version 6"):
        lora_cache._located(CivitaiModel("12", "6", host), "lora_weights")
