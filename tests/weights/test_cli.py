"""The commands behind script/download-weights, script/verify-weights and script/lock-weights."""

from pathlib import Path

import pytest
from support.hub import Hub
from support.small_bundle import hub_fixture, root_fixture  # noqa: F401

from controlnet.weights import cli as weights_cli


def test_the_commands(hub: Hub, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert weights_cli.main(["verify", "small"], root) == 1
    assert weights_cli.main(["lock", "small"], root) == 0
    assert weights_cli.main(["download", "small"], root) == 0
    assert weights_cli.main(["verify", "small"], root) == 0
    told = capsys.readouterr()
    assert told.out.splitlines() == [
        "small: 3 files, 0.00 GB, locked in weights/small.lock.",
        "small: 3 files in place and verified.",
        "small: 3 files have the locked size and sha256.",
    ]
    assert "small: 100%" in told.err, "no progress bar"


def test_a_command_that_fails_says_one_thing(hub: Hub, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert weights_cli.main(["download", "large"], root) == 1
    told = capsys.readouterr()
    assert told.err == "There is no bundle named 'large'. Bundles with a manifest: small.\n" and not told.out
    (root / "small").write_text("in the way")
    assert weights_cli.main(["download", "small"], root) == 1
    assert "Traceback" not in capsys.readouterr().err
