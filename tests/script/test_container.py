"""script/test-container with stand-ins for docker and cog: what it checks, and what it says when something is wrong."""

import os
from importlib import metadata
from pathlib import Path

import container
import pytest

from controlnet.serving.api import Api


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder that is first in PATH."""
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    return tmp_path


def stand_in(file: Path, script: str) -> None:
    file.write_text(f"#!/bin/bash\n{script}\n")
    file.chmod(0o755)


def test_the_image_is_built_with_the_pinned_coglet(tools: Path) -> None:
    stand_in(tools / "cog", f'echo "$COGLET_WHEEL $@ $PWD" > {tools}/said')
    container.build()
    pin = metadata.version("coglet")
    assert (tools / "said").read_text() == f"pypi:{pin} build -t {container.TAG} {container.ROOT}\n"
    stand_in(tools / "cog", "exit 3")
    with pytest.raises(container.ContainerError, match="cog build failed with exit code 3"):
        container.build()


def test_an_image_with_another_coglet_is_refused(tools: Path) -> None:
    stand_in(tools / "docker", '[ "$1" = run ] && echo 0.99.0')
    with pytest.raises(container.ContainerError, match=r"has coglet 0\.99\.0, but requirements\.txt pins"):
        container.check_image("some-image")


def test_a_container_that_stops_during_setup_is_removed_and_its_log_shown(tools: Path, capfd) -> None:
    script = f'echo "$@" >> {tools}/said; case "$1" in inspect) echo false;; logs) echo "no such weights" >&2;; esac'
    stand_in(tools / "docker", script)
    with pytest.raises(container.ContainerError, match=r"The server is not ready \(no answer\)"):
        container.drive("some-image", "read-only", container.WAYS["uid 1000, read-only"])
    said = (tools / "said").read_text().splitlines()
    assert "--user 1000:1000 --read-only --tmpfs /tmp some-image" in said[0]
    assert said[-1].startswith("rm -f ")
    assert "no such weights" in capfd.readouterr().err


def test_a_server_that_had_to_be_killed_is_reported(tools: Path) -> None:
    stand_in(tools / "docker", '[ "$1" = inspect ] && echo 137; true')
    with pytest.raises(container.ContainerError, match="exit code 137"):
        container.stop("some-container")


def test_an_image_that_does_not_validate_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [(200, {"status": "failed"}), (422, {"detail": []})]
    monkeypatch.setattr(Api, "request", lambda *arguments, **options: answers.pop(0))
    with pytest.raises(container.ContainerError, match="was not refused with 422"):
        container.check_validation(Api("http://127.0.0.1:1"))
    container.check_validation(Api("http://127.0.0.1:1"))


def test_a_prediction_without_a_picture_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Api, "request", lambda *arguments, **options: (200, {"status": "failed", "error": "no room"}))
    with pytest.raises(container.ContainerError, match="no room"):
        container.predict(Api("http://127.0.0.1:1"))
