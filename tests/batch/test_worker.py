"""One job: its files, then its record. Whatever is wrong with it is in its record."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pyarrow.fs import LocalFileSystem
from support.batches import ASK, BAD, FILES, bad_lines, contents, good_lines, jobs_in, results

from controlnet.batch import folder
from controlnet.batch.folder import Folder, NotReached
from controlnet.batch.jobs import Job
from controlnet.batch.results import BROKEN, LOST, write_results
from controlnet.batch.worker import Worker
from controlnet.python.opened import OpenModel
from controlnet.settings import Settings
from controlnet.weights.lora_files import LoraNotFetched


@pytest.fixture(scope="module")
def model() -> Iterator[OpenModel]:
    with OpenModel(Settings(bundle="tiny")) as opened:
        yield opened


@pytest.fixture
def worker(model: OpenModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Worker:
    monkeypatch.setattr("controlnet.python.opened.OpenModel", lambda bundle: model)
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
    out = Folder(str(tmp_path / "out"))
    assert write_results(out, [job], stopped=True) == {"left": 1}
    assert results(tmp_path / "out") == []
    assert write_results(out, [job], stopped=False) == {"failed": 1}
    assert results(tmp_path / "out")[0]["error"] == LOST


@pytest.mark.parametrize(
    "inputs",
    [
        {"image": "http://127.0.0.1:1/a.png"},
        {"image": "s3://bucket/a.png"},
        {"lora_weights": "https://huggingface.co/owner/model/resolve/main/a.safetensors"},
    ],
    ids=["url", "s3", "lora"],
)
def test_what_could_not_be_fetched_is_tried_again_in_the_next_run(
    worker: Worker, tmp_path: Path, monkeypatch, inputs: dict
) -> None:
    def silent(*arguments: object, **options: object) -> None:
        raise LoraNotFetched("it could not be fetched: its host did not answer.")

    class Silent:
        def get_file_info(self, path: str) -> None:
            raise OSError("no answer")

    monkeypatch.setattr("controlnet.weights.lora_store.fetch", silent)
    monkeypatch.setattr("controlnet.batch.folder.open_filesystem", opened(lambda place: (Silent(), place)))
    (job,) = jobs_in(tmp_path, good_lines(1, **inputs))
    assert worker(row(job))["status"] == "failed"
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["failed"]


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({"image": "ftp://host/a.png"}, "image: 'ftp://host/a.png' is not a place that can be used"),
        ({"lora_weights": "https://elsewhere.example/a.safetensors"}, "this server fetches no LoRA from"),
        ({"image": "file:///dev/zero"}, "'/dev/zero' is no file."),
        ({"image": "pipe"}, "pipe' is no file."),
        ({"seed": "\ud800"}, "The line has half a character in it"),
    ],
)
def test_what_will_never_be_is_not_tried_again(worker: Worker, tmp_path: Path, inputs: dict, words: str) -> None:
    os.mkfifo(tmp_path / "pipe")
    (job,) = jobs_in(tmp_path, good_lines(1, **inputs))
    worker(row(job))
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["done"]
    assert write_results(worker.folder, [job], stopped=False) == {"failed": 1}
    assert words in results(tmp_path / "out")[0]["error"]


def opened(elsewhere: Callable[[str], object]) -> Callable[[str], object]:
    """folder.open_filesystem, for which s3:// is `elsewhere`."""
    here = folder.open_filesystem
    return lambda place: elsewhere(place) if place.startswith("s3://") else here(place)


@pytest.mark.parametrize("content", [b"", b'{"status": "succ', b"[]", b"{}", b"\xff", b'{"status": "eaten"}'])
def test_a_broken_record_is_one_line_and_its_job_is_made_again(worker: Worker, tmp_path: Path, content: bytes) -> None:
    first, second = jobs_in(tmp_path, good_lines(2))
    for job in (first, second):
        assert worker(row(job))["status"] == "succeeded"
    record = f"done/{first.name}.json"
    (tmp_path / "out" / record).write_bytes(content)
    assert write_results(worker.folder, [first, second], stopped=False) == {"failed": 1, "succeeded": 1}
    assert results(tmp_path / "out")[0]["error"] == BROKEN.format(record)
    worker(row(first))
    assert write_results(worker.folder, [first, second], stopped=False) == {"succeeded": 2}


def test_a_record_that_cannot_be_read_now_is_one_line_and_stays(worker: Worker, tmp_path: Path, monkeypatch) -> None:
    first, second = jobs_in(tmp_path, good_lines(2))
    for job in (first, second):
        worker(row(job))
    read = Folder.read

    def fails(self: Folder, name: str) -> bytes | None:
        if first.name in name:
            raise NotReached(f"{name} cannot be read: input/output error.")
        return read(self, name)

    with monkeypatch.context() as patch:
        patch.setattr(Folder, "read", fails)
        assert write_results(worker.folder, [first, second], stopped=False) == {"failed": 1, "succeeded": 1}
    assert "input/output error" in results(tmp_path / "out")[0]["error"]
    assert write_results(worker.folder, [first, second], stopped=False) == {"succeeded": 2}


def test_a_lone_surrogate_in_an_old_record_does_not_keep_the_results_from_being_written(
    worker: Worker, tmp_path: Path
) -> None:
    (job,) = jobs_in(tmp_path, good_lines(1))
    worker.folder.write(f"done/{job.name}.json", b'{"status": "failed", "error": "\\ud800", "seed": "\\udc80"}')
    assert write_results(worker.folder, [job], stopped=False) == {"failed": 1}
    assert results(tmp_path / "out")[0]["seed"] == "\udc80"


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


def test_a_picture_of_another_filesystem_is_fetched(worker: Worker, tmp_path: Path, monkeypatch) -> None:
    elsewhere = opened(lambda place: (LocalFileSystem(), str(tmp_path / place.removeprefix("s3://bucket/"))))
    monkeypatch.setattr(folder, "open_filesystem", elsewhere)
    here, there = jobs_in(tmp_path, good_lines(1) + good_lines(1, image="s3://bucket/cat.png"))
    for job in (here, there):
        assert worker(row(job))["status"] == "succeeded"
    assert len(set(contents(tmp_path / "out/pictures").values())) == 1
