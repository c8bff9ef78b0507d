"""The command line of script/batch: what it gives to run(), what it says, and its exit codes."""

from collections import Counter
from pathlib import Path

import pytest
from support.batches import good_lines, write_pictures

from controlnet.batch import cli
from controlnet.batch.jobs import Batch
from controlnet.weights.manifest import BUNDLE


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[Batch]:
    """The batches that main() would have run."""
    batches: list[Batch] = []

    def run(batch: Batch) -> Counter[str]:
        batches.append(batch)
        return Counter(succeeded=sum(job.fault is None for job in batch.jobs), failed=0)

    monkeypatch.setenv(BUNDLE, "tiny")
    monkeypatch.setattr(cli, "lead", run)
    return batches


def test_paths_are_relative_to_the_callers_folder(tmp_path: Path, ran: list[Batch], capsys) -> None:
    write_pictures(tmp_path)
    (tmp_path / "jobs.jsonl").write_bytes(b"\n".join(good_lines(2)))
    assert cli.main(["--folder", str(tmp_path), "jobs.jsonl", "out", "-i", "mask=black.png", "--actors", "2"]) == 0
    (batch,) = ran
    assert (batch.out, batch.bundle, batch.threads, batch.actors) == (str(tmp_path / "out"), "tiny", 1, 2)
    assert [job.inputs["image"] for job in batch.jobs] == [str(tmp_path / "cat.png")] * 2
    assert [job.inputs["mask"] for job in batch.jobs] == [str(tmp_path / "black.png")] * 2
    assert capsys.readouterr().out == "out/results.jsonl: 2 succeeded, 0 failed\n"


@pytest.mark.parametrize(
    ("counts", "code"), [({"succeeded": 1}, 0), ({"succeeded": 1, "failed": 1}, 1), ({"failed": 1, "left": 2}, 130)]
)
def test_the_exit_code_says_how_it_ended(tmp_path: Path, ran, monkeypatch, counts: dict[str, int], code: int) -> None:
    (tmp_path / "jobs.jsonl").write_bytes(good_lines(1)[0])
    monkeypatch.setattr(cli, "lead", lambda batch: Counter(counts))
    assert cli.main([str(tmp_path / "jobs.jsonl"), str(tmp_path / "out")]) == code


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["none.jsonl", "out"], "none.jsonl' cannot be read: no such file or directory."),
        (["jobs.jsonl", "out", "-i", "promt=x"], "-i takes NAME=VALUE with the name of an input, got 'promt=x'."),
        (["empty.jsonl", "out"], "There are no jobs in"),
        (["ftp://host/jobs.jsonl", "out"], "'ftp://host/jobs.jsonl' is not a place that can be used"),
    ],
)
def test_what_cannot_start_is_said_in_one_line(tmp_path: Path, ran, capsys, arguments: list[str], words: str) -> None:
    (tmp_path / "jobs.jsonl").write_bytes(good_lines(1)[0])
    (tmp_path / "empty.jsonl").write_bytes(b"")
    assert cli.main(["--folder", str(tmp_path), *arguments]) == 2
    said = capsys.readouterr().err
    assert words in said and said.count("\n") == 1 and ran == []
