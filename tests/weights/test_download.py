"""Downloading and locking weights, from a local stand-in for the hub with faults on demand."""

import errno
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import constants
from support.hub import Fault, Hub
from support.small_bundle import (
    CONFIG,
    CONTENT,
    HED,
    MODEL,
    fetch,
    on_disk,
    point_at,
)

from controlnet.weights import hub as hub_module
from controlnet.weights.download import STAGING, download, lock
from controlnet.weights.files import check, verify
from controlnet.weights.hub import Transfer
from controlnet.weights.lockfile import Lock, WeightsError
from controlnet.weights.manifest import Manifest


def failure(manifest: Manifest, root: Path) -> str:
    """The message of a download that must fail and must not put a wrong file in place."""
    with pytest.raises(WeightsError) as error:
        fetch(manifest, root)
    for path, content in on_disk(root).items():
        assert path.startswith(STAGING) or content == CONTENT[path]
    return str(error.value)


def test_download_leaves_only_the_files_and_the_lock(hub: Hub, manifest: Manifest, root: Path) -> None:
    fetch(manifest, root)
    assert on_disk(root) == CONTENT
    assert sorted(path.name for path in root.iterdir()) == ["small", "small.lock", "small.toml"]
    assert sorted(path.name for path in (root / "small").iterdir()) == ["annotator", "unet"]
    check(manifest, root)
    verify(manifest, root)


def test_right_files_are_not_downloaded_again(hub: Hub, manifest: Manifest, root: Path) -> None:
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
def test_download_survives(hub: Hub, manifest: Manifest, root: Path, name: str) -> None:
    fault = FAULTS[name]
    hub.fail("model.safetensors", Fault(**vars(fault)))
    fetch(manifest, root)
    assert on_disk(root) == CONTENT
    assert len(hub.downloads("model.safetensors")) > fault.times, "the fault was never served"


def test_silent_connection_times_out_and_resumes(
    hub: Hub, manifest: Manifest, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.3)
    hub.fail("model.safetensors", Fault(stall_after=100_000))
    fetch(manifest, root)
    assert on_disk(root) == CONTENT
    assert hub.downloads("model.safetensors")[-1].range is not None


def test_files_outside_lfs_are_verified_without_a_lock(hub: Hub, manifest: Manifest, root: Path) -> None:
    hub.fail("config.json", Fault(flip_at=3))  # not in LFS, so the hub gives no sha256 for it
    fetch(manifest, root)
    assert on_disk(root) == CONTENT
    assert len(hub.downloads("config.json")) == 2


def test_listing_survives_server_errors_and_rate_limit(hub: Hub, manifest: Manifest, root: Path) -> None:
    hub.fail("/revision/main", Fault(times=2, status=500))
    hub.fail("/revision/main", Fault(times=1, status=429))
    fetch(manifest, root)
    assert on_disk(root) == CONTENT


def test_dropped_connection_resumes_with_a_range(hub: Hub, manifest: Manifest, root: Path) -> None:
    hub.fail("model.safetensors", Fault(drop_after=100_000))
    fetch(manifest, root)
    first, second = hub.downloads("model.safetensors")
    assert first.range is None
    assert second.range is not None and 0 < int(second.range.removeprefix("bytes=").removesuffix("-")) <= 100_000


def test_download_restarts_if_the_hub_ignores_ranges(hub: Hub, manifest: Manifest, root: Path) -> None:
    hub.fail("model.safetensors", Fault(drop_after=100_000))
    hub.fail("model.safetensors", Fault(ignore_range=True))
    fetch(manifest, root)
    assert on_disk(root) == CONTENT
    assert len(hub.downloads("model.safetensors")) == 2, "the whole file was appended as if it were the rest"


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [({"Retry-After": "7"}, 7), ({"RateLimit": '"resolvers";r=0;t=9'}, 9), ({"Retry-After": "99999"}, 300)],
)
def test_wait_requested_by_the_hub_is_kept(
    hub: Hub, manifest: Manifest, root: Path, monkeypatch: pytest.MonkeyPatch, headers: dict[str, str], seconds: int
) -> None:
    waits: list[float] = []
    monkeypatch.setattr(Transfer, "pause", lambda self, wait, reason: waits.append(wait))
    hub.fail("hed.pth", Fault(status=429, headers=headers))
    fetch(manifest, root)
    assert waits == [seconds]


def test_wrong_hash_twice_is_refused(hub: Hub, manifest: Manifest, root: Path) -> None:
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


def test_file_that_is_always_cut_short_is_an_error(hub: Hub, manifest: Manifest, root: Path) -> None:
    hub.fail("hed.pth", Fault(times=99, short_at=1000))
    message = failure(manifest, root)
    assert message.startswith("someone/annotators/hed.pth: gave up after 5 tries in a row")
    assert f"of {len(HED)} bytes" in message
    assert len(hub.downloads("hed.pth")) < 20


def test_hub_that_stays_down_is_an_error(hub: Hub, manifest: Manifest, root: Path) -> None:
    hub.fail("hed.pth", Fault(times=99, status=503))
    assert "gave up after 5 tries in a row without progress; the last failure: the hub answered 503" in failure(
        manifest, root
    )


def test_unreachable_hub_is_one_message(manifest: Manifest, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Hub() as closed:
        pass
    point_at(closed, monkeypatch)
    assert "gave up after 5 tries in a row" in failure(manifest, root)


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
def test_refusal_is_one_message_without_retries(
    hub: Hub, manifest: Manifest, root: Path, fault: Fault, words: str
) -> None:
    hub.fail("hed.pth", Fault(**vars(fault)))
    message = failure(manifest, root)
    assert message.startswith("someone/annotators/hed.pth: ") and words in message
    assert "\n" not in message and "Traceback" not in message
    assert len(hub.downloads("hed.pth")) == 1, "a retry cannot help"


def test_failure_stops_the_other_files_at_once(
    hub: Hub, manifest: Manifest, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_module, "FIRST_WAIT", 20)
    hub.fail("model.safetensors", Fault(times=99, status=503))
    hub.fail("hed.pth", Fault(status=404))
    began = time.monotonic()
    assert failure(manifest, root).startswith("someone/annotators/hed.pth: ")
    assert time.monotonic() - began < 10


def test_all_files_missing_on_the_hub_are_named_first(hub: Hub, manifest: Manifest, root: Path) -> None:
    hub.publish("someone/base", {"unet/other.json": b"{}"})
    message = failure(manifest, root)
    assert "someone/base at main: no file unet/config.json" in message
    assert "someone/base at main: no file unet/model.safetensors" in message
    assert "someone/base at main has no weight files" in message
    assert not hub.downloads()


def test_weight_files_on_the_hub_are_listed_if_one_is_missing(hub: Hub, manifest: Manifest, root: Path) -> None:
    names = ["a/model.bin", "unet/model.fp16.safetensors", "unet/model.bin", "README.md", "unet/config.json", "z.pt"]
    hub.publish("someone/base", dict.fromkeys(names, b"{}"))
    assert failure(manifest, root).splitlines() == [
        "weights/small.toml names files that are not on the hub:",
        "  someone/base at main: no file unet/model.safetensors",
        "  someone/base at main has these weight files: unet/model.bin, unet/model.fp16.safetensors, a/model.bin, z.pt",
        "Name files that are there in weights/small.toml, and run the same command again.",
    ]
    hub.publish("someone/base", {"unet/config.json": b"{}"} | {f"{i:02}.bin": b"" for i in range(14)})
    assert ": 00.bin, 01.bin, 02.bin, 03.bin, 04.bin, 05.bin, 06.bin, 07.bin, 08.bin, 09.bin and 4 more\n" in failure(
        manifest, root
    )


@pytest.mark.parametrize("commit", ["../../../elsewhere", "main", "A" * 40, "a" * 41, "a" * 39 + "\n"])
def test_commit_from_the_hub_must_be_40_hex_digits(hub: Hub, manifest: Manifest, root: Path, commit: str) -> None:
    """It becomes a folder's name."""
    hub.commits["someone/base", commit] = hub.commits["someone/base", hub.revisions["someone/base", "main"]]
    hub.revisions["someone/base", "main"] = commit
    message = failure(manifest, root)
    assert message.startswith("someone/base at main: expected a commit of 40 hexadecimal digits from the hub, got ")
    assert "HF_ENDPOINT" in message and "\n" not in message
    assert not hub.downloads() and sorted(path.name for path in root.parent.iterdir()) == ["weights"]


def test_unknown_repo_or_revision_is_one_message(hub: Hub, manifest: Manifest, root: Path) -> None:
    del hub.revisions["someone/annotators", "main"]
    assert failure(manifest, root).startswith(
        "someone/annotators at main: there is no such repository, or it is private"
    )
    hub.publish("someone/annotators", {"hed.pth": HED}, revision="v2")
    assert failure(manifest, root).startswith("someone/annotators at main: the repository has no such revision")


def test_pinned_commit_must_be_the_hubs(hub: Hub, manifest: Manifest, root: Path) -> None:
    pinned = "a" * 40
    hub.revisions["someone/base", pinned] = hub.revisions["someone/base", "main"]
    parts = tuple(replace(p, revision=pinned) if p.repo == "someone/base" else p for p in manifest.parts)
    message = failure(replace(manifest, parts=parts), root)
    assert message.startswith(f"someone/base at {pinned}: expected {pinned} from the hub, got '")


@pytest.mark.parametrize("method", ["pathlib.Path.mkdir", "tempfile.TemporaryFile"])
def test_a_read_only_folder_is_reported_before_the_download(
    method: str, hub: Hub, manifest: Manifest, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetch(manifest, root)
    (root / "small/unet/config.json").unlink()
    hub.seen.clear()

    def refuse(*args: object, **kwargs: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(method, refuse)
    with pytest.raises(WeightsError, match=r"but it cannot be written to \(Read-only file system\)\. Mount a folder"):
        download(manifest, root, require_lock=True, progress=False)
    assert hub.seen == []
    (root / "small/unet/config.json").write_bytes(CONFIG)
    monkeypatch.undo()
    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    fetch(manifest, root)  # nothing is missing, so nothing has to be written


def test_full_disk_is_reported_before_the_download(
    hub: Hub, manifest: Manifest, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda folder: type("Usage", (), {"free": 1000}))
    assert "GB are free" in failure(manifest, root)
    assert not hub.downloads("model.safetensors") and not hub.downloads("hed.pth")


def test_second_download_at_the_same_time_is_refused(hub: Hub, manifest: Manifest, root: Path) -> None:
    child = start_download(hub, root, Fault(stall_after=1000))
    assert hub.stalled.wait(20)
    assert "Another download of small is running" in failure(manifest, root)
    hub.resume.set()
    assert child.wait(20) == 0
    assert on_disk(root) == CONTENT


def start_download(hub: Hub, root: Path, fault: Fault) -> subprocess.Popen[bytes]:
    """Start script/download-weights in another process, with a fault for the largest file."""
    hub.fail("model.safetensors", fault)
    # A background job of a shell inherits an ignored SIGINT.
    code = (
        "import signal, sys; from pathlib import Path; from controlnet.weights import cli\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "sys.exit(cli.main(['download', 'small'], Path(sys.argv[1])))"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code, str(root)],
        env=os.environ | {"HF_ENDPOINT": hub.url},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


def test_killed_download_resumes_in_the_next_run(hub: Hub, manifest: Manifest, root: Path) -> None:
    child = start_download(hub, root, Fault(stall_after=200_000))
    assert hub.stalled.wait(20)
    (staged,) = (path for path in wait_for_bytes(root) if path.name == "model.safetensors")
    child.kill()
    child.wait()
    kept = staged.stat().st_size
    assert not (root / "small/unet/model.safetensors").exists()
    hub.resume.set()

    fetch(manifest, root)
    assert hub.downloads("model.safetensors")[-1].range == f"bytes={kept}-"
    assert on_disk(root) == CONTENT
    assert sorted(path.name for path in (root / "small").iterdir()) == ["annotator", "unet"]
    verify(manifest, root)


def test_ctrl_c_ends_a_waiting_download_at_once(hub: Hub, root: Path) -> None:
    child = start_download(hub, root, Fault(times=99, status=429, headers={"Retry-After": "60"}))
    while not hub.downloads("model.safetensors"):
        assert child.poll() is None
        time.sleep(0.005)
    child.send_signal(signal.SIGINT)
    _, printed = child.communicate(timeout=10)
    assert child.returncode == 130
    assert printed.decode().endswith(
        "\nStopped. The bytes fetched so far are kept: run the same command again to continue.\n"
    )
    assert "Traceback" not in printed.decode()


def wait_for_bytes(root: Path) -> list[Path]:
    """The staged files, as soon as the largest has bytes on disk."""
    for _ in range(2000):
        files = [path for path in (root / "small" / STAGING).rglob("*") if path.is_file()]
        if any(path.name == "model.safetensors" and path.stat().st_size for path in files):
            return files
        time.sleep(0.005)
    raise AssertionError("nothing was staged")


def test_damaged_staged_file_of_an_earlier_run_is_replaced(hub: Hub, manifest: Manifest, root: Path) -> None:
    commit = hub.revisions["someone/base", "main"]
    staged = root / "small" / STAGING / commit / "unet/model.safetensors"
    staged.parent.mkdir(parents=True)
    for leftover in (b"not it" * 50, b"x" * len(MODEL), b"x" * (len(MODEL) + 5)):
        staged.parent.mkdir(parents=True, exist_ok=True)
        staged.write_bytes(leftover)
        fetch(manifest, root)
        assert on_disk(root) == CONTENT
        (root / "small/unet/model.safetensors").unlink()


def test_lock_and_download_write_the_same_lock(hub: Hub, manifest: Manifest, root: Path) -> None:
    fetch(manifest, root)
    downloaded = (root / "small.lock").read_bytes()
    lock(manifest, root, progress=False)
    assert (root / "small.lock").read_bytes() == downloaded


def test_locking_fetches_only_files_without_a_hub_hash(hub: Hub, manifest: Manifest, root: Path) -> None:
    lock(manifest, root, progress=False)
    assert [seen.path.rpartition("/")[2] for seen in hub.downloads()] == ["config.json"]
    assert sorted(path.name for path in root.iterdir()) == ["small.lock", "small.toml"]


def test_download_takes_the_locked_commit_not_the_newest(hub: Hub, manifest: Manifest, root: Path) -> None:
    """Without pinned revisions, weights could change or vanish after a release."""
    lock(manifest, root, progress=False)
    locked = dict(hub.revisions)
    hub.publish("someone/base", {"unet/config.json": b"{}", "unet/model.safetensors": b"new"})
    hub.publish("someone/annotators", {"hed.pth": b"new"})
    hub.seen.clear()
    fetch(manifest, root)
    assert on_disk(root) == CONTENT
    assert {seen.path.split("/resolve/")[1].split("/")[0] for seen in hub.seen} == set(locked.values())


def test_required_lock_refuses_an_unlocked_bundle(hub: Hub, manifest: Manifest, root: Path) -> None:
    with pytest.raises(WeightsError, match="script/lock-weights small"):
        download(manifest, root, require_lock=True, progress=False)
    assert not hub.seen and not (root / "small").exists()
    lock(manifest, root, progress=False)
    download(manifest, root, require_lock=True, progress=False)
    assert on_disk(root) == CONTENT
