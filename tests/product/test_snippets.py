"""Every command and program of README.md and docs/ is run as it stands there, in a fresh clone. Its pictures are seen.

The blocks of a page are run in their order in one shell. A block that cannot be, says so after its language, where no
page shows it: `bash needs=weights` with one of REASONS, and `bash stays` if it runs until it is stopped.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support import ROOT, toy_predictor
from support.documents import PAGES, Block, blocks, snippet
from support.requests_to_tiny import FAST, PHOTO
from support.server import Server

from controlnet.serving.server import free_port

REASONS = {
    "weights": "15 GB of real weights; tests/script/test_bring_your_own.py runs those of its page with random files",
    "account": "an account at Replicate, or its client; tests/playground/test_clients.py runs such programs",
    "cluster": "Kubernetes, or Docker with two GPUs; tests/deploy/ reads the manifests and runs the gateway",
}
"""What a block needs that tests do not have. No block trains or measures: such commands stand in the text."""
MANIFESTS = "toml"
"""The language of the blocks that are files, not commands; tests/script/test_bring_your_own.py opens them."""
SECONDS = 900
"""A guard against hanging."""

SQUARE, WIDE, LARGE = (256, 256), (320, 256), (1024, 1024)
MADE = {
    "README.md": {("output/0001.webp", SQUARE): 1},
    "docs/batch.md": {
        ("out/pictures/doodle-#-picture_0.webp", SQUARE): 2,
        **{(f"out-of-a-folder/pictures/{name}-#-picture_0.webp", SQUARE): 1 for name in ("house", "room", "things")},
        **{(f"pictures/{name}.png", SQUARE): 1 for name in ("house", "room", "things")},
    },
    "docs/inputs.md": {
        ("output/0001.webp", SQUARE): 1,
        ("output/0002.webp", WIDE): 1,
        ("output/0003.webp", LARGE): 1,
        ("output/0004.webp", SQUARE): 1,
    },
    "docs/python.md": {
        (name, SQUARE): 1 for name in ("house.png", "strokes.png", "out/control_map.webp", "out/picture_0.webp")
    },
    "docs/usage.md": {(name, SQUARE): 1 for name in ("picture.webp", "picture-0.webp", "picture-house-1-0.webp")},
}
"""The pictures that the blocks of each page make: path, with # for a hash, and size, and how many."""


def test_every_block_is_run_or_says_why_not() -> None:
    commands = [block for block in blocks(*PAGES) if block.language != MANIFESTS]
    assert {block.language for block in commands} == {"bash", "python"}
    reasons = {block.mark.removeprefix("needs=") for block in commands if block.mark not in ("", "stays")}
    assert reasons == {*REASONS}
    assert {block.page for block in commands if not block.mark} == {*MADE}
    assert {block.mark for block in blocks(*PAGES) if block.language == MANIFESTS} == {""}


# ---- a fresh clone


def cloned(folder: Path) -> Path:
    """A clone of the project as it is in the working tree, with this environment in it."""
    clone = folder / "controlnet"
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    for name in filter(None, names):
        if (ROOT / name).is_file():
            (clone / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, clone / name)
    (clone / ".venv").symlink_to(sys.prefix)
    for command in (["init", "-q"], ["add", "-A"]):
        subprocess.run(["git", *command], cwd=clone, check=True)
    return clone


def environ(port: int) -> dict[str, str]:
    """A newcomer's environment, in which script/serve has this port, and Ray does not wait for all other tests."""
    own = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("CONTROLNET_", "PYTHONPATH", "PYTEST_"))
    }
    return own | {"PORT": str(port), "RAY_worker_niceness": "0"}


def script_of(page: str, port: int) -> str:
    """The blocks of a page that can be run, as one script. A clone is there already, and the server has this port."""
    parts = ["set -o pipefail"]
    for block in blocks(page):
        if block.mark or block.language == MANIFESTS:
            continue
        text = re.sub("^git clone .*\n", "", block.text, flags=re.MULTILINE)
        program = f".venv/bin/python - <<'END_OF_PROGRAM'\n{text}END_OF_PROGRAM"
        parts.append(program if block.language == "python" else text)
    return "\n".join(parts).replace("localhost:5000", f"localhost:{port}")


@contextmanager
def group(command: list[str], clone: Path, port: int, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A command with all that it starts, which ends with the block. `log` has what they write."""
    with log.open("wb") as out:
        process = subprocess.Popen(
            command,
            cwd=clone,
            env=environ(port),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        for number in (signal.SIGTERM, signal.SIGKILL):
            with suppress(ProcessLookupError):
                os.killpg(process.pid, number)
            with suppress(subprocess.TimeoutExpired):
                process.wait(10)


Run = tuple[Path, str]
"""The clone in which the blocks of a page were run, and what they wrote."""


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Run]:
    """Runs the blocks of a page, once."""
    runs: dict[str, tuple[Path, str, int]] = {}

    def run(page: str) -> Run:
        if page not in runs:
            clone, port = cloned(tmp_path_factory.mktemp("clone")), free_port()
            log = clone.parent / "log"
            with group(["bash", "-euc", script_of(page, port)], clone, port, log) as process:
                code = process.wait(SECONDS)
            runs[page] = clone, log.read_text(errors="replace"), code
        clone, said, code = runs[page]
        assert code == 0, said[-3000:]
        return clone, said

    return run


def pictures_in(clone: Path) -> Counter[tuple[str, tuple[int, int]]]:
    """The pictures that are not the project's: their paths, with # for a hash, and sizes. None may be of one colour."""
    shown = subprocess.run(["git", "ls-files", "-z", "--others"], cwd=clone, capture_output=True, text=True, check=True)
    found = Counter[tuple[str, tuple[int, int]]]()
    for name in shown.stdout.split("\0"):
        if name.endswith((".webp", ".png", ".jpg")):
            picture = Image.open(clone / name).convert("RGB")
            assert np.asarray(picture).std() > 10, name
            found[re.sub("-[0-9a-f]{8,}-", "-#-", name), picture.size] += 1
    return found


@pytest.mark.parametrize("page", MADE)
def test_the_blocks_of_a_page_make_their_pictures(ran: Callable[[str], Run], page: str) -> None:
    clone, said = ran(page)
    assert pictures_in(clone) == MADE[page]
    assert "Traceback" not in said and "ignored: " not in said and "size: " not in said, said
    left = ["git", "ls-files", "--others", "--modified", "--exclude-standard"]
    shown = subprocess.run(left, cwd=clone, capture_output=True, text=True, check=True).stdout
    assert shown == "", "git ignores what examples write"


# ---- what they say


def test_the_first_command_makes_the_picture_shown(ran: Callable[[str], Run]) -> None:
    """Up to rounding, which differs between processors."""
    clone, said = ran("README.md")
    assert "output/0001.webp" in said and "seed 4" in said and "tiny" in said
    shown = "examples/first-picture.png"
    assert shown in (ROOT / "README.md").read_text(encoding="utf-8")
    paths = (ROOT / shown, clone / "output/0001.webp")
    one, other = (np.asarray(Image.open(path).convert("RGB"), dtype=float) for path in paths)
    assert np.abs(one - other).mean() < 2


def test_batches_succeed(ran: Callable[[str], Run]) -> None:
    said = ran("docs/batch.md")[1]
    assert "out/results.jsonl: 2 succeeded, 0 failed" in said
    assert "out-of-a-folder/results.jsonl: 3 succeeded, 0 failed" in said


def test_open_model_says_what_the_page_shows(ran: Callable[[str], Run]) -> None:
    said = ran("docs/python.md")[1]
    assert "2 (256, 256) {'preprocess': " in said
    assert "image: expected a PIL picture" in said and "'photo-that-is-not-there.jpg' is not there" in said


def test_a_prediction_is_begun_followed_ended_and_cancelled(ran: Callable[[str], Run]) -> None:
    said = ran("docs/usage.md")[1]
    told = re.findall(r"^house-\d \w+", said, re.MULTILINE)
    assert told == ["house-1 202", "house-1 succeeded", "house-2 202", "house-2 canceled"]
    assert re.search(r"^\['.*\d+/20", said, re.MULTILINE), "its progress"


# ---- what runs until it is stopped


STAYING = [block for block in blocks(*PAGES) if block.mark == "stays" and block.language == "bash"]


@pytest.mark.parametrize("block", STAYING, ids=lambda block: block.text.split("  ")[0])
def test_what_stays_answers_at_the_address_that_it_prints(block: Block, server: Server, tmp_path: Path) -> None:
    clone, port, log = cloned(tmp_path), free_port(), tmp_path / "log"
    command = re.sub(r"\s+#.*", "", block.text).strip().replace("localhost:5000", f"localhost:{server.port}")
    with group(["bash", "-euc", f"{command} -p {port}"], clone, port, log) as process:
        path, answered = ("/openapi.json", b'"structure"') if "--interface" in command else ("/", b"<html")
        deadline, page = time.monotonic() + SECONDS, b""
        while answered not in page.lower():
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()
            with suppress(OSError):
                page = urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=SECONDS).read()
            time.sleep(0.1)
    assert f"http://127.0.0.1:{port}" in log.read_text()


def test_the_receiver_of_files_keeps_those_of_each_prediction(tmp_path: Path) -> None:
    """With a toy predictor, whose server starts in a second."""
    here, there = free_port(), free_port()
    program = snippet("docs/usage.md", "python", "do_PUT").replace("8000", str(there))
    (toy := tmp_path / "toy").mkdir()
    (files := tmp_path / "files").mkdir()
    toy_predictor.write(toy)
    settings = [f"{name}={value}" for name, value in (toy_predictor.ENVIRON | {"PYTHONPATH": str(ROOT)}).items()]
    serve = [sys.executable, "-m", "controlnet.serving.server", f"--upload-url=http://localhost:{there}/"]
    client = Server(toy_predictor.ENVIRON, toy)
    client.port = here  # not entered: it only sends requests
    with (
        group([sys.executable, "-c", program], files, there, tmp_path / "receiver"),
        group(["env", *settings, *serve], toy, here, tmp_path / "server"),
    ):
        while client.health().get("status") in (None, "STARTING"):
            time.sleep(0.05)
        for name in ("one", "two"):
            (url,) = client.predict({"prompt": name}, name)[1]["output"]
            assert url.startswith(f"http://localhost:{there}/")
    kept = {path.name: path.read_text() for path in files.iterdir()}
    assert kept == {"picture-one-out.webp": "one", "picture-two-out.webp": "two"}


# ---- the clients of usage.md, when all does not go well


def start_in(folder: Path, command: list[str]) -> subprocess.Popen[str]:
    """Start a command in a folder that gets the examples."""
    (folder / "examples").symlink_to(ROOT / "examples")
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_the_python_client_waits_and_writes_a_picture(server: Server, tmp_path: Path) -> None:
    program = snippet("docs/usage.md", "python", "doodle =").replace("5000", str(server.port))
    running = server.start(**(FAST | {"image": PHOTO, "num_inference_steps": 100, "num_outputs": 4, "resolution": 256}))
    deadline = time.monotonic() + 20
    while not isinstance(health := server.request("GET", "/health-check")[1], dict) or health["status"] != "BUSY":
        assert time.monotonic() < deadline, health
    client = start_in(tmp_path, [sys.executable, "-c", program])
    with pytest.raises(subprocess.TimeoutExpired):
        client.wait(timeout=1)
    running.stop()
    assert client.communicate(timeout=90)[1] == ""
    assert Image.open(tmp_path / "picture-0.webp").size == SQUARE


@pytest.mark.parametrize(
    ("conditioner", "words"),
    [("stroke", '"stroke" is not one of'), ("shuffle", "no shuffle conditioner")],
    ids=["422", "failed"],
)
def test_the_clients_say_what_is_wrong(server: Server, tmp_path: Path, conditioner: str, words: str) -> None:
    for language, word in (("python", "doodle ="), ("bash", "script/serve &")):
        text = snippet("docs/usage.md", language, word).replace("scribble", conditioner)
        text = text.replace("5000", str(server.port)).replace("script/serve &\n", "")
        (folder := tmp_path / language).mkdir()
        command = [sys.executable, "-c"] if language == "python" else ["bash", "-euo", "pipefail", "-c"]
        client = start_in(folder, [*command, text])
        said = client.communicate(timeout=90)[1]
        assert client.returncode == 1 and words in said.replace('\\"', '"') and "Traceback" not in said, said
        assert not [*folder.glob("picture*")]
