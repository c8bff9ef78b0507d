"""The bytes of a LoRA's address: what may pass and what will not, limits, and cancellation."""

import hashlib
import io
import os
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import suppress

import httpx2
import pytest
from support.hub import Fault, Hub

from controlnet.weights import lora_fetch, lora_remote
from controlnet.weights.lora_fetch import fetch
from controlnet.weights.lora_files import FileRefused, LoraError, LoraNotFetched
from controlnet.weights.lora_sources import CIVITAI_HOSTS, CivitaiModel, HubFile, HubRepo, Remote, RemoteSource

CONTENT = os.urandom(300_000)
RIGHT = hashlib.sha256(CONTENT).hexdigest()
SOURCE = HubFile("someone/night", "night.safetensors")


@pytest.fixture(name="night")
def night_fixture(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> Hub:
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.setattr(lora_remote, "WAITS", (0.0, 0.0))
    hub.publish("someone/night", {"night.safetensors": CONTENT, "README.md": b"words"})
    return hub


def address(hub: Hub) -> Remote:
    return Remote(f"{hub.url}/someone/night/resolve/main/night.safetensors")


def fetched(source: RemoteSource) -> bytes:
    """In this process, where waits are short."""
    file = io.BytesIO()
    digest = lora_remote.fetch(source, file)
    assert digest == hashlib.sha256(file.getvalue()).hexdigest()
    return file.getvalue()


def test_every_kind_of_address_is_fetched_by_another_process(night: Hub) -> None:
    for source in (SOURCE, HubRepo("someone/night"), address(night)):
        with tempfile.TemporaryFile() as file:
            assert fetch(source, file, "lora_weights") == RIGHT
            file.seek(0)
            assert file.read() == CONTENT


def test_no_thread_is_started(night: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cancellation could then end another thread. Cog's server would wait for it for ever."""
    before, start = set(threading.enumerate()), threading.Thread.start

    def started(thread: threading.Thread) -> None:
        own = threading.current_thread() not in before  # one of the stand-in's, for a connection
        assert own or threading.current_thread() is not threading.main_thread(), "a thread"
        start(thread)

    monkeypatch.setattr("threading.Thread.start", started)
    with tempfile.TemporaryFile() as file:
        fetch(SOURCE, file, "lora_weights")


def test_a_hub_reference_is_pinned_to_its_commit(night: Hub) -> None:
    assert fetched(SOURCE) == fetched(HubRepo("someone/night")) == CONTENT
    commit = night.revisions["someone/night", "main"]
    assert all(f"/resolve/{commit}/" in seen.path for seen in night.downloads())


def test_a_repository_must_have_one_file(night: Hub) -> None:
    night.publish("someone/two", {"b.safetensors": CONTENT, "a.safetensors": CONTENT})
    with pytest.raises(LoraError, match=r"it has a\.safetensors, b\.safetensors: name one"):
        fetched(HubRepo("someone/two"))
    night.publish("someone/none", {"README.md": b""})
    with pytest.raises(LoraError, match="it has none"):
        fetched(HubRepo("someone/none"))
    with pytest.raises(LoraError, match="no such repository"):
        fetched(HubRepo("someone/nobody"))


@pytest.mark.parametrize(
    "fault",
    [Fault(drop_after=100_000), Fault(reset=True, drop_after=5), Fault(times=2, status=503), Fault(flip_at=7)],
    ids=["dropped", "reset", "503", "another byte"],
)
def test_what_passes_is_tried_again(night: Hub, fault: Fault) -> None:
    night.fail("night.safetensors", fault)
    assert fetched(SOURCE) == CONTENT


FINAL = {404: "nothing at this address", 403: "want a token", 410: "answered 410", 416: "answered 416"}
PASSING = {500: "answered 500", 503: "answered 503", 429: "answered 429"}


@pytest.mark.parametrize("status", [*FINAL, *PASSING])
@pytest.mark.parametrize("bytes_alone", [False, True])
def test_what_may_pass_and_what_will_not_are_different_errors(night: Hub, status: int, bytes_alone: bool) -> None:
    night.fail("night.safetensors", Fault(times=99, status=status, bytes_alone=bytes_alone))
    for source in (SOURCE, address(night)):
        with pytest.raises(LoraError, match=(FINAL | PASSING)[status]) as error:
            fetched(source)
        assert type(error.value) is (LoraNotFetched if status in PASSING else LoraError)


def test_no_answer_may_pass(night: Hub) -> None:
    with Hub() as closed:
        pass
    with pytest.raises(LoraNotFetched, match=r"could not be fetched: 127\.0\.0\.1 did not answer \(.*refused"):
        fetched(address(closed))
    with pytest.raises(LoraNotFetched, match=r"could not be fetched: nowhere\.invalid did not answer \("):
        fetched(Remote("https://nowhere.invalid/a.safetensors"))


def test_another_content_than_the_hub_lists_is_refused(night: Hub) -> None:
    night.fail("night.safetensors", Fault(times=9, flip_at=5))
    for source in (SOURCE, HubRepo("someone/night")):
        with pytest.raises(LoraNotFetched, match="another SHA-256"):
            fetched(source)


@pytest.fixture(name="dripping")
def dripping_fixture() -> Iterator[str]:
    """The address of a server that sends a byte each 20 ms."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def drip() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(10_000)
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
                try:
                    while True:
                        connection.sendall(b"x")
                        time.sleep(0.02)
                except OSError:
                    pass

        threading.Thread(target=drip, daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}/a.safetensors"


def test_a_server_that_drips_is_given_up(dripping: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lora_fetch, "MOST_SECONDS", 4.0)
    began = time.monotonic()
    with tempfile.TemporaryFile() as file, pytest.raises(LoraNotFetched, match="takes longer than 4 s"):
        fetch(Remote(dripping), file, "lora_weights")
    assert time.monotonic() - began < 30


def test_what_says_no_length_is_refused(night: Hub) -> None:
    night.publish("someone/night", {"night.safetensors": b""})
    with pytest.raises(FileRefused, match="does not say how large"):
        fetched(address(night))


def test_a_cancelled_fetch_leaves_no_process(night: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even if the cancellation comes where nothing of ours can end it: closing the pipe does."""
    started: list[int] = []
    popen = lora_fetch.subprocess.Popen

    class Cancelled(BaseException):
        pass

    class Unkillable(popen):
        def __init__(self, *arguments: object, **options: object) -> None:
            super().__init__(*arguments, **options)  # type: ignore[call-overload]
            started.append(self.pid)

        def kill(self) -> None:
            raise Cancelled

    def cancel(seconds: float) -> None:
        if night.stalled.wait(0.01):
            raise Cancelled

    monkeypatch.setattr(lora_fetch.subprocess, "Popen", Unkillable)
    night.fail("night.safetensors", Fault(times=99, stall_after=1000))
    with tempfile.TemporaryFile() as file, monkeypatch.context() as patched:
        patched.setattr(lora_fetch.time, "sleep", cancel)
        with suppress(Cancelled):  # pytest.raises would keep the frames, and so the pipe
            fetch(SOURCE, file, "lora_weights")
    (process,) = started
    deadline = time.monotonic() + 25  # it would give up by itself after 34 s
    while os.waitpid(process, os.WNOHANG) == (0, 0):
        assert time.monotonic() < deadline, "it still runs"
        time.sleep(0.01)


def test_a_process_that_fails_is_not_the_senders_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lora_fetch.sys, "executable", "/bin/false")
    with tempfile.TemporaryFile() as file, pytest.raises(LoraNotFetched, match="log says why"):
        fetch(SOURCE, file, "lora_weights")


def answering(monkeypatch: pytest.MonkeyPatch, status: int, listed: object) -> list[str]:
    """CivitAI, which answers so. Returns the addresses that are asked for."""
    asked: list[str] = []

    def get(url: str, **_: object) -> httpx2.Response:
        asked.append(url)
        return httpx2.Response(status, json=listed)

    monkeypatch.setattr(lora_remote.httpx2, "get", get)
    return asked


@pytest.mark.parametrize("host", CIVITAI_HOSTS)
def test_the_file_of_a_civitai_model_is_looked_up(monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    asked = answering(monkeypatch, 200, {"modelVersions": [{"id": 7}, {"id": 5}]})
    newest = lora_remote._located(CivitaiModel("12", None, host))
    assert asked == [f"https://{host}/api/v1/models/12"]
    assert newest.url == f"https://{host}/api/download/models/7"
    assert lora_remote._located(CivitaiModel("12", "5", host)).url.endswith("/5")
    with pytest.raises(LoraError, match="no version 6"):
        lora_remote._located(CivitaiModel("12", "6", host))


@pytest.mark.parametrize(("status", "listed"), [(503, {}), (200, []), (200, {"modelVersions": [{}]})])
def test_a_civitai_that_answers_otherwise_may_pass(monkeypatch, status: int, listed: object) -> None:
    monkeypatch.setattr(lora_remote, "WAITS", (0.0, 0.0))
    asked = answering(monkeypatch, status, listed)
    with pytest.raises(LoraNotFetched, match="could not be fetched"):
        fetched(CivitaiModel("12", None))
    assert len(asked) == 3
