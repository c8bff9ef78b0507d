"""One job: its files, then its record. Whatever is wrong with it is in its record."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.batches import ASK, BAD, FILES, bad_lines, contents, good_lines, jobs_in, results

from controlnet.batch.folder import Folder
from controlnet.batch.jobs import Job
from controlnet.batch.results import LOST, write_results
from controlnet.batch.worker import Worker
from controlnet.python.opened import OpenModel


@pytest.fixture(scope="module")
def model() -> Iterator[OpenModel]:
    with OpenModel("tiny") as opened:
        yield opened


@pytest.fixture
def worker(model: OpenModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Worker:
    monkeypatch.setattr("controlnet.batch.worker.OpenModel", lambda bundle: model)
    return Worker("tiny", str(tmp_path / "out"), FILES, stopped=lambda: False)


def row(job: Job) -> dict[str, str]:
    return {"name": job.name, "inputs": json.dumps(job.inputs)}


def test_a_job_has_the_files_that_the_model_gives(worker: Worker, model: OpenModel, tmp_path: Path) -> None:
    asked = {"return_control_map": True, "num_outputs": 2}
    (job,) = jobs_in(tmp_path, good_lines(1, **asked))
    assert worker(row(job))["status"] == "succeeded"
    expected = model.make(ASK | asked | {"seed": 0, "image": tmp_path / "cat.png"}).files()
    got = contents(tmp_path / "out/pictures")
    assert got == {f"{job.name}-{name}": content for name, content in expected.items()}
    assert write_results(Folder(str(tmp_path / "out")), [job], stopped=False) == {"succeeded": 1}
    (result,) = results(tmp_path / "out")
    assert result["files"] == [f"pictures/{job.name}-{name}" for name in expected]
    assert (result["line"], result["seed"], result["error"], result["metrics"]["steps"]) == (1, 0, None, 2)
    assert result["seconds"] >= result["metrics"]["timing"]["denoise"]


def test_every_kind_of_bad_line_is_one_line_with_its_error(worker: Worker, tmp_path: Path) -> None:
    jobs = jobs_in(tmp_path, [*bad_lines(), *good_lines(1)])
    assert [worker(row(job))["status"] for job in jobs if job.fault is None][-2:] == ["failed", "succeeded"]
    counts = write_results(Folder(str(tmp_path / "out")), jobs, stopped=False)
    assert counts == {"failed": len(BAD), "succeeded": 1} and len(BAD) >= 20
    got = results(tmp_path / "out")
    assert [result["line"] for result in got] == list(range(1, len(jobs) + 1))
    for result, (_, words) in zip(got, BAD, strict=False):
        assert result["status"] == "failed" and words in result["error"], (words, result["error"])
        assert "log" not in result


def test_a_job_whose_record_is_there_is_not_made_again(worker: Worker, tmp_path: Path) -> None:
    (job,) = jobs_in(tmp_path, good_lines(1))
    worker.folder.write(f"done/{job.name}.json", b'{"status": "succeeded"}')
    assert worker(row(job))["status"] == "succeeded"
    assert not (tmp_path / "out/pictures").exists()


def test_a_batch_that_stops_leaves_the_next_job(worker: Worker, tmp_path: Path) -> None:
    (job,) = jobs_in(tmp_path, good_lines(1))
    worker.stopped = lambda: True
    assert worker(row(job))["status"] == "left"
    folder = Folder(str(tmp_path / "out"))
    assert write_results(folder, [job], stopped=True) == {"left": 1}
    assert results(tmp_path / "out") == []
    assert write_results(folder, [job], stopped=False) == {"failed": 1}
    assert results(tmp_path / "out")[0]["error"] == LOST


@pytest.mark.parametrize("image", ["http://127.0.0.1:1/a.png", "ftp://host/a.png"])
def test_a_picture_that_could_not_be_fetched_is_tried_again_in_the_next_run(
    worker: Worker, tmp_path: Path, image: str
) -> None:
    (job,) = jobs_in(tmp_path, good_lines(1, image=image))
    assert worker(row(job))["status"] == "failed"
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["failed"]


def test_a_fault_that_is_not_the_jobs_is_tried_again_and_has_a_log(worker: Worker, tmp_path: Path, monkeypatch) -> None:
    (job,) = jobs_in(tmp_path, good_lines(1))
    monkeypatch.setattr(worker.model._model, "answer", None)
    worker(row(job))
    write_results(worker.folder, [job], stopped=False)
    (result,) = results(tmp_path / "out")
    assert "The server failed to make this picture (TypeError)" in result["error"] and "Traceback" in result["log"]
    monkeypatch.undo()
    assert worker(row(job))["status"] == "succeeded"
    assert write_results(worker.folder, [job], stopped=False) == {"succeeded": 1}


def test_a_picture_of_another_filesystem_is_fetched(worker: Worker, tmp_path: Path) -> None:
    """By its URI: file:// goes the way of s3://."""
    here, there = jobs_in(tmp_path, good_lines(1) + good_lines(1, image=(tmp_path / "cat.png").as_uri()))
    for job in (here, there):
        assert worker(row(job))["status"] == "succeeded"
    assert len(set(contents(tmp_path / "out/pictures").values())) == 1
