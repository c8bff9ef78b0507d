"""Jobs are read from JSON lines, a CSV or a folder; each has a name of its own that stays the same."""

import json
import os
from pathlib import Path

import pytest
from PIL import Image
from support import ROOT

from controlnet.batch.jobs import BatchError, Job, read_jobs
from controlnet.serving.schema import openapi_schema

SCHEMAS = openapi_schema((ROOT / "predict.py").read_text("utf-8"))["components"]["schemas"]
ASK = {"prompt": "a house", "image": "a.png", "seed": 3}


def jobs_of(path: Path, content: str | bytes, bundle: str = "tiny", **shared) -> list[Job]:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return read_jobs(str(path), bundle, shared, SCHEMAS)


def lines(*asks: dict) -> str:
    return "".join(json.dumps(ask) + "\n" for ask in asks)


def test_json_lines_may_have_the_body_of_a_request_and_empty_lines(tmp_path: Path) -> None:
    plain, body = jobs_of(tmp_path / "j.jsonl", "\ufeff" + lines(ASK) + "\n \n" + lines({"input": ASK}))
    assert (plain.line, body.line) == (1, 4)
    assert plain.inputs == body.inputs == ASK | {"image": str(tmp_path / "a.png")}
    assert plain.name == body.name  # the same job
    assert plain.name.startswith("a-")


def test_a_csv_has_values_of_the_inputs_types(tmp_path: Path) -> None:
    text = 'prompt,image,seed,preprocess,conditioning_scale,note\n"a, b",a.png,3,false,0.5\n'.replace(",note", "")
    first, second, third = jobs_of(tmp_path / "j.csv", text + "x,b.png,many,,\n1,2,3,4,5,6\n")
    assert first.inputs == {
        "prompt": "a, b",
        "image": str(tmp_path / "a.png"),
        "seed": 3,
        "preprocess": False,
        "conditioning_scale": 0.5,
    }
    assert (second.inputs["seed"], "preprocess" in second.inputs, second.line) == ("many", False, 3)
    assert third.fault == "The line has more cells than the first one, which has 5."


ROW = {"prompt": "a, b", "image": "a.png", "seed": 3, "preprocess": False, "conditioning_scale": 0.5}


@pytest.mark.parametrize(
    "text",
    [
        'prompt,image,seed,preprocess,conditioning_scale\n"a, b",a.png,3,false,0.5\n',
        ',prompt,image,seed,preprocess,conditioning_scale\n0,"a, b",a.png,3.0,False,0.5\n',  # pandas and its index
        "prompt;image;seed;preprocess;conditioning_scale\na, b;a.png;3;FALSE;0,5\n",  # a German spreadsheet
        "prompt\timage\tseed\tpreprocess\tconditioning_scale\na, b\ta.png\t3\tfalse\t0.5\n",
        'prompt, image ,seed,preprocess,conditioning_scale,width,\n"a, b",a.png,3,false,0.5,nan,\n',
        '\ufeffprompt,image,seed,preprocess,conditioning_scale,width\r\n"a, b",a.png,3,false,5e-1,<NA>\r\n',
        'prompt,image,seed,preprocess,conditioning_scale,lora_weights\n"a, b",a.png,3,false,0.5,None\n',
        'prompt,image,seed,preprocess,conditioning_scale\r"a, b",a.png,3,false,0.5\r',
    ],
    ids=["plain", "pandas", "semicolons", "tabs", "spaces", "excel", "none", "old mac"],
)
def test_a_csv_is_read_as_spreadsheets_and_pandas_write_it(tmp_path: Path, text: str) -> None:
    (job,) = jobs_of(tmp_path / "j.csv", text)
    assert job.inputs == ROW | {"image": str(tmp_path / "a.png")} and type(job.inputs["seed"]) is int
    assert job.line == 2 and job.fault is None


def test_a_cell_may_be_as_long_as_a_data_url(tmp_path: Path) -> None:
    url = f"data:image/png;base64,{'A' * 300_000}"
    (job,) = jobs_of(tmp_path / "j.csv", f'prompt,image\na,"{url}"\n')
    assert job.inputs["image"] == url


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("promt\na\n", r"^The first line of the CSV names what is no input: promt\.$"),
        ("prompt,image,prompt\na,b,c\n", r"^The first line of the CSV names an input twice: prompt\.$"),
        ("prompt,\na,photo.png\n", r"^Column 2 of the CSV has no name: name the input in the first line\.$"),
    ],
)
def test_a_table_that_means_something_else_is_refused(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(BatchError, match=words):
        jobs_of(tmp_path / "j.csv", text)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity"])
def test_numbers_that_json_does_not_have_are_refused(tmp_path: Path, number: str) -> None:
    (job,) = jobs_of(tmp_path / "j.jsonl", f'{{"prompt": "a", "image": "a.png", "guidance_scale": {number}}}')
    assert job.fault is not None and job.fault.startswith("The line is not JSON")


def test_a_folder_has_a_job_for_each_picture(tmp_path: Path) -> None:
    for name in ("b.PNG", "a.jpg", "notes.txt", "._a.jpg"):
        (tmp_path / name).write_bytes(b"")
    jobs = read_jobs(str(tmp_path), "tiny", {"prompt": "a house"}, SCHEMAS)
    assert [Path(job.inputs["image"]).name for job in jobs] == ["a.jpg", "b.PNG"]
    assert all(job.inputs["prompt"] == "a house" for job in jobs)


def test_inputs_for_all_jobs_do_not_replace_a_jobs_own(tmp_path: Path) -> None:
    (job,) = jobs_of(tmp_path / "j.jsonl", lines(ASK), prompt="x", conditioner="depth")
    assert (job.inputs["prompt"], job.inputs["conditioner"]) == ("a house", "depth")


def test_urls_stay_as_they_are(tmp_path: Path) -> None:
    asks = [ASK | {"image": place} for place in ("https://host/a.png", "data:image/png;base64,AA", "s3://b/k/cat.png")]
    jobs = jobs_of(tmp_path / "j.jsonl", lines(*asks))
    assert [job.inputs["image"] for job in jobs] == [ask["image"] for ask in asks]
    assert jobs[2].name.startswith("cat-")


@pytest.mark.parametrize("start", ["file://", "file://localhost", "FILE:"])
def test_a_file_uri_of_this_machine_is_a_path(tmp_path: Path, start: str) -> None:
    """So it is checked like one, and its size and time of change are in the job's name."""
    photo = tmp_path / "a photo.png"
    Image.new("RGB", (20, 20)).save(photo)
    (uri, path) = jobs_of(
        tmp_path / "j.jsonl",
        lines(*(ASK | {"image": place} for place in (start + str(photo).replace(" ", "%20"), str(photo)))),
    )
    assert uri.inputs == path.inputs and uri.inputs["image"] == str(photo)
    os.utime(photo, (1, 1))
    assert jobs_of(tmp_path / "k.jsonl", lines(ASK | {"image": photo.as_uri()}))[0].name != uri.name


def test_a_job_without_a_seed_always_gets_the_same_and_its_copy_another(tmp_path: Path) -> None:
    ask = {"prompt": "a house", "image": "a.png"}
    first, copy = jobs_of(tmp_path / "j.jsonl", lines(ask, ask))
    again, _ = jobs_of(tmp_path / "k.jsonl", lines(dict(reversed(ask.items())), ask))
    assert first.inputs["seed"] == again.inputs["seed"] != copy.inputs["seed"]
    assert first.name == again.name != copy.name
    (only_map,) = jobs_of(tmp_path / "j.jsonl", lines(ask | {"map_only": True}))
    assert "seed" not in only_map.inputs


def test_another_input_bundle_or_picture_is_another_job(tmp_path: Path) -> None:
    photo, file = tmp_path / "a.png", tmp_path / "j.jsonl"
    Image.new("RGB", (20, 20)).save(photo)
    names = {jobs_of(file, lines(ASK))[0].name, jobs_of(file, lines(ASK), bundle="sd15")[0].name}
    names.add(jobs_of(file, lines(ASK | {"seed": 4}))[0].name)
    os.utime(photo, (1, 1))
    names.add(jobs_of(file, lines(ASK))[0].name)
    assert len(names) == 4


def test_a_file_without_jobs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BatchError, match="There are no jobs in"):
        jobs_of(tmp_path / "j.jsonl", "\n")
    with pytest.raises(BatchError, match="The CSV is not text in UTF-8"):
        jobs_of(tmp_path / "j.csv", b"prompt\n\xff\n")
