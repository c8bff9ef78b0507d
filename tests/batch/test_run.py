"""A batch on two nodes of Ray on this machine: killed actors, lost nodes and interrupts lose and repeat nothing."""

import os
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.batches import FILES, contents, good_lines, jobs_in, results

from controlnet.batch.cluster import ROOT, ray
from controlnet.batch.jobs import Batch, Job
from controlnet.batch.run import run
from controlnet.python.opened import OpenModel
from controlnet.settings import Settings

# After controlnet.batch.cluster, which makes Ray's settings.
from ray.cluster_utils import Cluster  # isort: skip

COUNT = 24
STEPS = {"num_inference_steps": 20}
"""So that a job takes long enough for something to happen meanwhile."""


OURS = f"CONTROLNET_TEST_BATCH={uuid.uuid4().hex}"
"""In the environment of the processes that these tests start."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A cluster whose first node has the driver and one core."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        patch.setenv(*OURS.split("="))
        patch.setenv("RAY_worker_niceness", "0")  # other tests run beside these
        running = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        try:
            ray.init(address=running.address, log_to_driver=False, logging_level="ERROR")
            yield running
        finally:
            ray.shutdown()
            running.shutdown()


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[int, bytes]:
    """The files of the jobs that the tests make, by the model in this process."""
    folder = tmp_path_factory.mktemp("expected")
    with OpenModel(Settings(bundle="tiny")) as model:
        made = {
            job.inputs["seed"]: model.make(job.inputs).files() for job in jobs_in(folder, good_lines(COUNT, **STEPS))
        }
    return {seed: files["picture_0.webp"] for seed, files in made.items()}


def batch(jobs: list[Job], out: Path) -> Batch:
    return Batch(jobs, str(out), "tiny", FILES, threads=1)


def meanwhile(out: Path, records: int, act: Callable[[], None]) -> threading.Thread:
    """Call `act` once that many jobs are over."""

    def wait() -> None:
        deadline = time.monotonic() + 600
        while not (out / "done").exists() or len(list((out / "done").glob("*.json"))) < records:
            if time.monotonic() > deadline:
                return
            time.sleep(0.02)
        act()

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread


def workers() -> list[int]:
    """The processes of these tests that make pictures."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            environ = path.with_name("environ").read_bytes()
            if path.read_bytes().startswith(b"ray::MapWorker") and OURS.encode() in environ:
                found.append(int(path.parent.name))
        except OSError:
            continue  # it has ended
    return found


def check(jobs: list[Job], out: Path, expected: dict[int, bytes]) -> None:
    """Every job has its line and its file, with the bytes that the model gives, and nothing else is there."""
    got = results(out)
    assert [result["line"] for result in got] == [job.line for job in jobs]
    assert {result["status"] for result in got} == {"succeeded"}
    files = contents(out / "pictures")
    assert files == {f"{job.name}-picture_0.webp": expected[job.inputs["seed"]] for job in jobs}
    assert contents(out / "done").keys() == {f"{job.name}.json" for job in jobs}


def test_a_killed_actor_a_lost_node_and_ctrl_c_lose_and_repeat_nothing(
    cluster: Cluster, tmp_path: Path, expected: dict[int, bytes], capfd: pytest.CaptureFixture[str]
) -> None:
    jobs, out = jobs_in(tmp_path, good_lines(COUNT, **STEPS)), tmp_path / "out"
    node = cluster.add_node(num_cpus=1)
    killed: list[int] = []

    def kill() -> None:
        killed.extend(workers()[:1])
        os.kill(killed[0], signal.SIGKILL)

    acting = [
        meanwhile(out, 3, kill),
        meanwhile(out, 8, lambda: cluster.remove_node(node, allow_graceful=False)),
        meanwhile(out, 14, lambda: os.kill(os.getpid(), signal.SIGINT)),
    ]
    counts = run(batch(jobs, out))
    for thread in acting:
        thread.join(1)
    assert len(killed) == 1 and "Ending the jobs that are being made" in capfd.readouterr().err
    assert counts["failed"] == 0 and counts["left"] > 0 and counts["succeeded"] >= 14
    assert len(results(out)) == counts["succeeded"] == len(contents(out / "done")) == len(contents(out / "pictures"))

    times = {path.name: path.stat().st_mtime_ns for path in (out / "pictures").iterdir()}
    assert run(batch(jobs, out)) == {"succeeded": COUNT}
    check(jobs, out, expected)
    later = {path.name: path.stat().st_mtime_ns for path in (out / "pictures").iterdir()}
    assert {name: later[name] for name in times} == times, "a picture was made twice"


def test_a_batch_that_is_complete_starts_nothing_and_says_so(tmp_path: Path, monkeypatch, capsys) -> None:
    jobs, out = jobs_in(tmp_path, good_lines(1)), tmp_path / "out"
    (out / "done").mkdir(parents=True)
    (out / "done" / f"{jobs[0].name}.json").write_text('{"status": "succeeded"}')
    monkeypatch.setattr("controlnet.batch.run.connected", None)
    assert run(batch(jobs, out)) == {"succeeded": 1}
    assert capsys.readouterr().err == "1 of 1 jobs were over before this run.\n"
