"""Downloading and locking weights, from a local stand-in for the hub with faults on demand."""

import errno
import os
import shutil
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

from controlnet.weights.download import STAGING, download, lock
from controlnet.weights.files import check, verify
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
    assert {seen.path.rpartition("/")[2] for seen in hub.seen} == {"config.json"}
    assert on_disk(root) == CONTENT


FAULTS = {
    "dropped connection": Fault(drop_after=100_000),
    "reset connection": Fault(drop_after=100_000, reset=True),
    "dropped three times": Fault(times=3, drop_after=80_000),
    "dropped before the first byte": Fault(times=2, drop_after=0),
    "server error": Fault(times=2, status=500),
    "server error before the bytes": Fault(times=2, status=500, bytes_alone=True),
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
    asked = [seen for seen in hub.seen if seen.path.endswith("model.safetensors")]
    assert len(asked) > fault.times + 1, "the fault was never served"


def test_silent_connection_times_out(hub: Hub, manifest: Manifest, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.3)
    hub.fail("model.safetensors", Fault(stall_after=100_000))
    fetch(manifest, root)
    assert on_disk(root) == CONTENT
    assert len(hub.downloads("model.safetensors")) == 2


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
    assert message.startswith("someone/annotators/hed.pth: gave up after 4 tries; the last failure: ")
    assert f"{len(HED)}" in message and "\n" not in message


@pytest.mark.parametrize("bytes_alone", [False, True])
def test_hub_that_stays_down_is_an_error(hub: Hub, manifest: Manifest, root: Path, bytes_alone: bool) -> None:
    hub.fail("hed.pth", Fault(times=99, status=503, bytes_alone=bytes_alone))
    message = failure(manifest, root)
    assert message.startswith("someone/annotators/hed.pth: ") and message.endswith("the hub answered 503.")


@pytest.mark.parametrize("locked", [False, True])
def test_unreachable_hub_is_one_sentence_with_its_name(
    hub: Hub, manifest: Manifest, root: Path, monkeypatch: pytest.MonkeyPatch, locked: bool
) -> None:
    if locked:
        lock(manifest, root, progress=False)
    with Hub() as closed:
        pass
    point_at(closed, monkeypatch)
    message = failure(manifest, root)
    assert f"{closed.url.removeprefix('http://')} cannot be reached (" in message
    assert "\n" not in message and message.count(". ") == 0


def test_offline_is_one_sentence(manifest: Manifest, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert failure(manifest, root).endswith("HF_HUB_OFFLINE is set, so nothing can be fetched. Unset it.")


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
    asked = [seen for seen in hub.seen if seen.path.endswith("hed.pth")]
    assert len(asked) == 1, "a retry cannot help"


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
        env=os.environ | {"HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


def test_killed_download_keeps_whole_files_and_begins_the_other_again(hub: Hub, manifest: Manifest, root: Path) -> None:
    child = start_download(hub, root, Fault(stall_after=200_000))
    assert hub.stalled.wait(20)
    child.kill()
    child.wait()
    assert not (root / "small/unet/model.safetensors").exists()
    assert (root / "small/unet/config.json").read_bytes() == CONFIG
    hub.resume.set()
    hub.seen.clear()

    fetch(manifest, root)
    assert [(seen.path.rpartition("/")[2], seen.range) for seen in hub.downloads()] == [
        ("model.safetensors", None),
        ("hed.pth", None),
    ]
    assert on_disk(root) == CONTENT
    assert sorted(path.name for path in (root / "small").iterdir()) == ["annotator", "unet"]
    verify(manifest, root)


FAULTS_THAT_TAKE_LONG = {
    "rate limit": Fault(times=99, status=429, headers={"Retry-After": "60"}),
    "stalled": Fault(times=99, stall_after=200_000),
}


@pytest.mark.parametrize("name", FAULTS_THAT_TAKE_LONG)
def test_ctrl_c_ends_a_download_and_leaves_whole_files(hub: Hub, root: Path, name: str) -> None:
    child = start_download(hub, root, Fault(**vars(FAULTS_THAT_TAKE_LONG[name])))
    while not any(seen.path.endswith("model.safetensors") for seen in hub.seen):
        assert child.poll() is None
        time.sleep(0.005)
    time.sleep(0.2)
    began = time.monotonic()
    child.send_signal(signal.SIGINT)
    _, printed = child.communicate(timeout=60)
    assert child.returncode == 130
    assert time.monotonic() - began < 20, "two seconds, on an idle machine"
    assert printed.decode().endswith("Files that are whole are kept: run the same command again to continue.\n")
    assert "Traceback" not in printed.decode()
    whole = {path for path in on_disk(root) if not path.startswith(STAGING)}
    assert whole == {"unet/config.json"}


def test_what_killed_downloads_left_makes_room_first(
    hub: Hub, manifest: Manifest, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each may have left a part of 5 GB under a name of its own."""
    left = root / "small" / STAGING / hub.revisions["someone/base", "main"] / "unet/x.12345678.incomplete"
    left.parent.mkdir(parents=True)
    left.write_bytes(MODEL)
    free, seen = shutil.disk_usage(root), []
    monkeypatch.setattr("shutil.disk_usage", lambda folder: seen.append(left.exists()) or free)
    fetch(manifest, root)
    assert seen[0] is False
    assert on_disk(root) == CONTENT


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
