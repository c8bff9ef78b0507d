"""The commands behind script/download-weights, script/verify-weights and script/lock-weights."""

from pathlib import Path

import pytest
from support.hub import Hub

from controlnet.weights import cli


def test_lock_download_and_verify_commands(hub: Hub, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["verify", "small"], root) == 1
    assert cli.main(["lock", "small"], root) == 0
    assert cli.main(["download", "small"], root) == 0
    assert cli.main(["verify", "small"], root) == 0
    printed = capsys.readouterr()
    assert printed.out.splitlines() == [
        "small: 3 files, 0.00 GB, locked in weights/small.lock.",
        "No hash was known beforehand: all are locked as the hub has them now.",
        "small: 3 files in place and verified.",
        "small: 3 files have the locked size and sha256.",
    ]
    assert "small: unet/model.safetensors, 0.3 MB (2 of 3)" in printed.err


def test_failing_command_prints_one_message(hub: Hub, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["download", "large"], root) == 1
    printed = capsys.readouterr()
    assert printed.err == "There is no bundle named 'large'. Bundles with a manifest: small.\n" and not printed.out
    (root / "small").write_text("in the way")
    assert cli.main(["download", "small"], root) == 1
    assert "Traceback" not in capsys.readouterr().err
