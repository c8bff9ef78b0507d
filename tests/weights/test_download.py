"""Downloading and locking weights, from a stand-in hub on this machine that fails on demand."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from huggingface_hub import constants
from support.hub import Fault, Hub
from support.small_bundle import (  # noqa: F401
    CONFIG,
    CONTENT,
    HED,
    MODEL,
    fetch,
    hub_fixture,
    manifest_fixture,
    on_disk,
    point_at,
    root_fixture,
)

from controlnet.weights import hub as hub_module
from controlnet.weights.download import STAGING, download, lock
from controlnet.weights.files import check, verify
from controlnet.weights.hub import Transfer
from controlnet.weights.lockfile import Lock, WeightsError
from controlnet.weights.manifest import Manifest


def failure(manifest: Manifest, root: Path) -> str:
    """The message of a download that must fail, which must not have put anything wrong in place."""
    with pytest.raises(WeightsError) as error:
        fetch(manifest, root)
    for path, content in on_disk(root).items():
        assert path.startswith(STAGING) or content == CONTENT[path]
    return str(error.value)


def test_a_download_leaves_the_files_the_lock_and_nothing_else(hub: Hub, manifest: Manifest, root: Path) -> None:
    fetch(manifest, root)
    assert on_disk(root) == CONTENT
    assert sorted(path.name for path in root.iterdir()) == ["small", "small.lock", "small.toml"]
    assert sorted(path.name for path in (root / "small").iterdir()) == ["annotator", "unet"]
    check(manifest, root)
    verify(manifest, root)


def test_what_is_there_and_right_is_not_fetched_again(hub: Hub, manifest: Manifest, root: Path) -> None:
    fetch(manifest, root)
    (root / "small/unet/config.json").write_bytes(b"x" * len(CONFIG))
    hub.seen.clear()
    fetch(manifest, root)
    assert [seen.path.rpartition("/")[2] for seen in hub.seen] == ["config.json"]
    assert on_disk(root) == CONTENT


FAULTS = {
    "dropped connection": Fault(drop_after=100_000),
    "reset connection": Fault(drop_after=100_000, reset=True),
    "dropped three times": Fault(times=3, drop_after=80_000),
    "dropped before the first byte": Fault(times=2, drop_after=0),
    "server error": Fault(times=2, status=500),
    "bad gateway": Fault(status=502),
    "rate limit": Fault(status=429, headers={"Retry-After": "0"}),
    "wrong byte": Fault(flip_at=70_000),
    "truncated": Fault(short_at=70_000),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_download_survives(hub: Hub, manifest: Manifest, root: Path, name: str) -> None:
    fault = FAULTS[name]
    hub.fail("model.safetensors", Fault(**vars(fault)))
    fetch(manifest, root)
    assert on_disk(root) == CONTENT
    assert len(hub.downloads("model.safetensors")) > fault.times, "the fault never came into play"


def test_a_connection_that_falls_silent_is_given_up_and_resumed(
    hub: Hub, manifest: Manifest, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.3)
    hub.fail("model.safetensors", Fault(stall_after=100_000))
    fetch(manifest, root)
    assert on_disk(root) == CONTENT
    assert hub.downloads("model.safetensors")[-1].range is not None


def test_the_small_files_are_verified_without_a_lock_too(hub: Hub, manifest: Manifest, root: Path) -> None:
    hub.fail("config.json", Fault(flip_at=3))  # not in LFS, so the hub gives no sha256 for it
    fetch(manifest, root)
    assert on_disk(root) == CONTENT
    assert len(hub.downloads("config.json")) == 2


def test_the_listing_survives_a_server_error_and_a_rate_limit(hub: Hub, manifest: Manifest, root: Path) -> None:
    hub.fail("/revision/main", Fault(times=2, status=500))
    hub.fail("/revision/main", Fault(times=1, status=429))
    fetch(manifest, root)
    assert on_disk(root) == CONTENT


def test_a_dropped_connection_is_resumed_not_begun_again(hub: Hub, manifest: Manifest, root: Path) -> None:
    hub.fail("model.safetensors", Fault(drop_after=100_000))
    fetch(manifest, root)
    first, second = hub.downloads("model.safetensors")
    assert first.range is None
    assert second.range is not None and 0 < int(second.range.removeprefix("bytes=").removesuffix("-")) <= 100_000


def test_a_hub_that_ignores_ranges_is_begun_again(hub: Hub, manifest: Manifest, root: Path) -> None:
    hub.fail("model.safetensors", Fault(drop_after=100_000))
    hub.fail("model.safetensors", Fault(ignore_range=True))
    fetch(manifest, root)
    assert on_disk(root) == CONTENT
    assert len(hub.downloads("model.safetensors")) == 2, "the answer was taken for the rest of the file"


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [({"Retry-After": "7"}, 7), ({"RateLimit": '"resolvers";r=0;t=9'}, 9), ({"Retry-After": "99999"}, 300)],
)
def test_the_wait_that_the_hub_asks_for_is_kept(
    hub: Hub, manifest: Manifest, root: Path, monkeypatch: pytest.MonkeyPatch, headers: dict[str, str], seconds: int
) -> None:
    waits: list[float] = []
    monkeypatch.setattr(Transfer, "pause", lambda self, wait, reason: waits.append(wait))
    hub.fail("hed.pth", Fault(status=429, headers=headers))
    fetch(manifest, root)
    assert waits == [seconds]


def test_a_file_that_stays_wrong_is_refused(hub: Hub, manifest: Manifest, root: Path) -> None:
    fetch(manifest, root)
    expected = Lock.read(root / "small.lock").file("annotator/hed/hed.pth").sha256
    (root / "small/annotator/hed/hed.pth").unlink()
    hub.fail("hed.pth", Fault(times=9, flip_at=5))
    hub.seen.clear()
    message = failure(manifest, root)
    assert message.startswith(f"annotator/hed/hed.pth: wrong content, expected sha256 {expected}, got ")
    assert "twice" in message and "thrown away" in message and "proxy" in message
    assert len(hub.downloads("hed.pth")) == 2
    assert not (root / "small/annotator/hed/hed.pth").exists()


def test_a_file_that_stays_short_is_given_up(hub: Hub, manifest: Manifest, root: Path) -> None:
    hub.fail("hed.pth", Fault(times=99, short_at=1000))
    message = failure(manifest, root)
    assert message.startswith("someone/annotators/hed.pth: given up after 5 tries in a row")
    assert f"of {len(HED)} bytes" in message
    assert len(hub.downloads("hed.pth")) < 20


def test_a_hub_that_stays_down_is_given_up(hub: Hub, manifest: Manifest, root: Path) -> None:
    hub.fail("hed.pth", Fault(times=99, status=503))
    assert "given up after 5 tries in a row, the last one because the hub answered 503" in failure(manifest, root)


def test_a_hub_that_cannot_be_reached_is_one_sentence(
    manifest: Manifest, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Hub() as closed:
        pass
    point_at(closed, monkeypatch)
    assert "given up after 5 tries in a row" in failure(manifest, root)


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (
            Fault(status=403, headers={"X-Error-Code": "GatedRepo"}),
            "gated: accept its terms on the hub and set HF_TOKEN",
        ),
        (Fault(status=401), "set HF_TOKEN"),
        (Fault(status=403), "set HF_TOKEN"),
        (Fault(status=404), "no such file"),
    ],
)
def test_a_refusal_is_one_sentence(hub: Hub, manifest: Manifest, root: Path, fault: Fault, words: str) -> None:
    hub.fail("hed.pth", Fault(**vars(fault)))
    message = failure(manifest, root)
    assert message.startswith("someone/annotators/hed.pth: ") and words in message
    assert "\n" not in message and "Traceback" not in message
    assert len(hub.downloads("hed.pth")) == 1, "asked again, although it cannot help"


def test_a_failure_ends_the_other_files_at_once(
    hub: Hub, manifest: Manifest, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_module, "FIRST_WAIT", 20)
    hub.fail("model.safetensors", Fault(times=99, status=503))
    hub.fail("hed.pth", Fault(status=404))
    began = time.monotonic()
    assert failure(manifest, root).startswith("someone/annotators/hed.pth: ")
    assert time.monotonic() - began < 10


def test_all_files_that_the_hub_lacks_are_named_before_anything_is_fetched(
    hub: Hub, manifest: Manifest, root: Path
) -> None:
    hub.publish("someone/base", {"unet/other.json": b"{}"})
    message = failure(manifest, root)
    assert "someone/base at main: no file unet/config.json" in message
    assert "someone/base at main: no file unet/model.safetensors" in message
    assert not hub.downloads()


def test_an_unknown_repo_and_revision_are_one_sentence(hub: Hub, manifest: Manifest, root: Path) -> None:
    del hub.revisions["someone/annotators", "main"]
    assert failure(manifest, root).startswith(
        "someone/annotators at main: there is no such repository, or it is private"
    )
    hub.publish("someone/annotators", {"hed.pth": HED}, revision="v2")
    assert failure(manifest, root).startswith("someone/annotators at main: the repository has no such revision")


def test_a_full_disk_is_told_before_the_download(
    hub: Hub, manifest: Manifest, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda folder: type("Usage", (), {"free": 1000}))
    assert "GB are free" in failure(manifest, root)
    assert not hub.downloads()


def test_only_one_download_at_a_time(hub: Hub, manifest: Manifest, root: Path) -> None:
    child = start_download(hub, root, stall_at=1000)
    assert hub.stalled.wait(20)
    assert "Another download of small is running" in failure(manifest, root)
    hub.go_on.set()
    assert child.wait(20) == 0
    assert on_disk(root) == CONTENT


def start_download(hub: Hub, root: Path, stall_at: int) -> subprocess.Popen[bytes]:
    """A download in a process of its own, whose largest file stops coming after `stall_at` bytes."""
    hub.fail("model.safetensors", Fault(stall_after=stall_at))
    code = (
        "import sys; from pathlib import Path; from controlnet.weights.download import download\n"
        "from controlnet.weights.manifest import Manifest; root = Path(sys.argv[1])\n"
        "download(Manifest.read(root / 'small.toml'), root, progress=False)"
    )
    return subprocess.Popen([sys.executable, "-c", code, str(root)], env=os.environ | {"HF_ENDPOINT": hub.url})


def test_killed_in_the_middle_and_started_again(hub: Hub, manifest: Manifest, root: Path) -> None:
    child = start_download(hub, root, stall_at=200_000)
    assert hub.stalled.wait(20)
    (staged,) = (path for path in wait_for_bytes(root) if path.name == "model.safetensors")
    child.kill()
    child.wait()
    kept = staged.stat().st_size
    assert not (root / "small/unet/model.safetensors").exists()
    hub.go_on.set()

    fetch(manifest, root)
    assert hub.downloads("model.safetensors")[-1].range == f"bytes={kept}-"
    assert on_disk(root) == CONTENT
    assert sorted(path.name for path in (root / "small").iterdir()) == ["annotator", "unet"]
    verify(manifest, root)


def wait_for_bytes(root: Path) -> list[Path]:
    """The staged files, as soon as the largest has bytes on disk."""
    for _ in range(2000):
        files = [path for path in (root / "small" / STAGING).rglob("*") if path.is_file()]
        if any(path.name == "model.safetensors" and path.stat().st_size for path in files):
            return files
        time.sleep(0.005)
    raise AssertionError("nothing was staged")


def test_what_was_left_damaged_by_an_earlier_run_does_no_harm(hub: Hub, manifest: Manifest, root: Path) -> None:
    commit = hub.revisions["someone/base", "main"]
    staged = root / "small" / STAGING / commit / "unet/model.safetensors"
    staged.parent.mkdir(parents=True)
    for leftover in (b"not it" * 50, b"x" * len(MODEL), b"x" * (len(MODEL) + 5)):
        staged.parent.mkdir(parents=True, exist_ok=True)
        staged.write_bytes(leftover)
        fetch(manifest, root)
        assert on_disk(root) == CONTENT
        (root / "small/unet/model.safetensors").unlink()


def test_a_lock_is_the_same_however_it_was_made(hub: Hub, manifest: Manifest, root: Path) -> None:
    fetch(manifest, root)
    downloaded = (root / "small.lock").read_bytes()
    lock(manifest, root, progress=False)
    assert (root / "small.lock").read_bytes() == downloaded


def test_locking_fetches_only_what_the_hub_has_no_hash_for(hub: Hub, manifest: Manifest, root: Path) -> None:
    lock(manifest, root, progress=False)
    assert [seen.path.rpartition("/")[2] for seen in hub.downloads()] == ["config.json"]
    assert sorted(path.name for path in root.iterdir()) == ["small.lock", "small.toml"]


def test_the_locked_commit_is_what_is_fetched_whatever_the_hub_has_since(
    hub: Hub, manifest: Manifest, root: Path
) -> None:
    """Guards against the peers' fault of weights without pinned revisions, which change or vanish under the model."""
    lock(manifest, root, progress=False)
    locked = dict(hub.revisions)
    hub.publish("someone/base", {"unet/config.json": b"{}", "unet/model.safetensors": b"new"})
    hub.publish("someone/annotators", {"hed.pth": b"new"})
    hub.seen.clear()
    fetch(manifest, root)
    assert on_disk(root) == CONTENT
    assert {seen.path.split("/resolve/")[1].split("/")[0] for seen in hub.seen} == set(locked.values())


def test_an_unlocked_bundle_is_refused_where_a_lock_is_required(hub: Hub, manifest: Manifest, root: Path) -> None:
    with pytest.raises(WeightsError, match="script/lock-weights small"):
        download(manifest, root, require_lock=True, progress=False)
    assert not hub.seen and not (root / "small").exists()
    lock(manifest, root, progress=False)
    download(manifest, root, require_lock=True, progress=False)
    assert on_disk(root) == CONTENT
