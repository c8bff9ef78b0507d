"""A batch runs in a process of its own, whose end without a word is said in words."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from support import ROOT, leading
from support.batches import FILES, good_lines, jobs_in, results

from controlnet.batch.folder import FolderError
from controlnet.batch.jobs import Batch, BatchError
from controlnet.batch.leader import RayLost, lead


@pytest.fixture
def batch(tmp_path: Path) -> Batch:
    (tmp_path / "out/done").mkdir(parents=True)
    return Batch(jobs_in(tmp_path, good_lines(3)), str(tmp_path / "out"), "tiny", FILES, threads=1)


def wait_for(happened: Callable[[], bool], seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.1)


def is_running(process: int) -> bool:
    return psutil.pid_exists(process) and psutil.Process(process).status() != psutil.STATUS_ZOMBIE


def test_what_the_leader_returns_or_raises_is_what_comes_of_it(batch: Batch, capfd) -> None:
    """The leader has a process group of its own."""
    assert lead(batch, leading.makes_all) == {"succeeded": 3, "failed": 0}
    with pytest.raises(FolderError, match=r"^no such place$"):
        lead(batch, leading.refuses)
    with pytest.raises(BatchError, match=r"The batch failed \(ZeroDivisionError\), see above"):
        lead(batch, leading.breaks)
    assert "Traceback" in capfd.readouterr().err


def test_if_it_ends_without_a_word_its_processes_end_and_the_results_are_written(batch: Batch, tmp_path: Path) -> None:
    with pytest.raises(RayLost, match="Ray ended in the middle of the batch, and 2 jobs are left: the same command"):
        lead(batch, leading.is_ended_with_its_agent_left)
    assert [result["line"] for result in results(tmp_path / "out")] == [1]
    agent = int((tmp_path / "out/agent").read_text())
    wait_for(lambda: not is_running(agent), 30)


def test_an_interrupt_of_the_command_reaches_the_leader_once(batch: Batch, tmp_path: Path) -> None:
    def interrupt() -> None:
        wait_for((tmp_path / "out/ready").exists)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    assert lead(batch, leading.counts_interrupts) == {"left": 1}
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_ended_leader_after_a_signal_leaves_jobs(batch: Batch, tmp_path: Path) -> None:
    def terminate() -> None:
        wait_for((tmp_path / "out/ready").exists)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=terminate, daemon=True).start()
    assert lead(batch, leading.waits) == {"left": 3}


def test_the_leader_ends_with_a_command_that_was_killed(batch: Batch, tmp_path: Path) -> None:
    code = (
        "from support import leading\nfrom controlnet.batch.jobs import Batch\n"
        "from controlnet.batch.leader import lead\n"
        f"if __name__ == '__main__':\n    lead(Batch((), {batch.out!r}, 'tiny', frozenset(), 1), leading.waits)\n"
    )
    (tmp_path / "command.py").write_text(code)
    environ = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    command = subprocess.Popen([sys.executable, str(tmp_path / "command.py")], env=environ)
    wait_for(lambda: (tmp_path / "out/ready").exists() and (tmp_path / "out/ready").read_text() != "")
    leader = int((tmp_path / "out/ready").read_text())
    command.kill()
    command.wait()
    wait_for(lambda: not is_running(leader), 60)


def test_rays_head_is_killed(batch: Batch, tmp_path: Path) -> None:
    """The whole command: a sentence, an exit code, results.jsonl, and no process is left."""
    mark = f"CONTROLNET_TEST_BATCH={uuid.uuid4().hex}"

    def ours() -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter():
            try:
                if mark.partition("=")[2] == process.environ().get("CONTROLNET_TEST_BATCH"):
                    found.append(process)
            except psutil.Error:
                continue
        return found

    (tmp_path / "jobs.jsonl").write_bytes(b"\n".join(good_lines(200, num_inference_steps=20)))
    done = tmp_path / "out/done"
    more = dict([mark.split("=")], CONTROLNET_BUNDLE="tiny", RAY_gcs_rpc_server_reconnect_timeout_s="5")
    command = [sys.executable, "-m", "controlnet.batch.cli", "--folder", str(tmp_path), "jobs.jsonl", "out"]
    for _ in range(5):  # a machine that is busy may not start Ray within the 30 s that Ray itself gives it
        running = subprocess.Popen(
            [*command, "--actors", "1"], cwd=ROOT, env=os.environ | more, stderr=subprocess.PIPE, text=True
        )
        wait_for(lambda process=running: any(done.iterdir()) or process.poll() is not None, 900)
        if running.poll() is None:
            break
        said = running.communicate()[1]
        assert running.returncode == 2 and re.search(r"^Ray could not be started: ", said, re.MULTILINE), said
    (head,) = (process for process in ours() if "/gcs_server" in process.cmdline()[0])
    head.kill()
    said = running.communicate(timeout=300)[1]
    assert running.returncode == 3, said
    assert re.search(
        r"^Ray ended in the middle of the batch, and \d+ jobs are left: the same command", said, re.MULTILINE
    )
    assert 0 < len(results(tmp_path / "out")) < 200
    wait_for(lambda: not ours(), 60)
