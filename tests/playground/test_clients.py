"""Replicate's own clients, as they are, against the tiny bundle: programs for a pushed model with another address.

They are fetched into temporary folders, never committed; where no registry can be reached these tests are skipped.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from support import ROOT
from support.requests_to_tiny import data_url
from support.server import Server

DOODLE = ROOT / "examples/doodle.png"
INPUT = {"prompt": "a red house", "conditioner": "scribble", "seed": 5, "num_inference_steps": 2}
SECONDS = 300
"""A guard against hanging."""

PYTHON_1 = """
import json, sys, urllib.request
from replicate.client import Client
from replicate.exceptions import ModelError, ReplicateError

replicate, doodle, inputs = Client(api_token="any", base_url=sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])
said = {}
for ref in ("you/controlnet", "you/controlnet:abc"):
    (file,) = replicate.run(ref, input=inputs | {"image": open(doodle, "rb")})
    said[ref] = file.read().hex()
created = replicate.predictions.create(version="abc", input=inputs | {"image": open(doodle, "rb")})
created.wait()
said["polled"] = urllib.request.urlopen(created.output[0]).read().hex()
said["status"] = [created.status, created.version, replicate.predictions.get(created.id).status]
long = replicate.predictions.create(
    model="you/controlnet", input=inputs | {"image": created.output[0], "num_inference_steps": 100, "resolution": 256}
)
long.cancel()
said["cancelled"] = long.status
said["listed"] = long.id in [each.id for each in replicate.predictions.list()]
file = replicate.files.create(doodle)
said["file"] = [replicate.files.get(file.id).size, replicate.files.delete(file.id)]
said["model"] = replicate.models.get("you/controlnet").latest_version.openapi_schema["info"]["title"]
for wrong in ({"prompt": "x"}, inputs | {"image": open(doodle, "rb"), "go_fast": True, "num_inference_steps": 50}):
    try:
        replicate.run("you/controlnet", input=wrong)
    except (ModelError, ReplicateError) as error:
        said.setdefault("errors", []).append(str(error))
print(json.dumps(said))
"""

PYTHON_2 = """
import json, os, sys, urllib.request
from replicate import Replicate, UnprocessableEntityError

doodle, inputs = sys.argv[2], json.loads(sys.argv[3])
replicate = Replicate(bearer_token="any", base_url=sys.argv[1] + "/v1")
said = {}
for ref in ("you/controlnet", "you/controlnet:abc"):
    (file,) = replicate.run(ref, input=inputs | {"image": open(doodle, "rb")})
    said[ref] = file.read().hex()
created = replicate.predictions.create(version="abc", input=inputs | {"image": open(doodle, "rb")})
created = replicate.predictions.wait(created.id)
said["polled"] = urllib.request.urlopen(created.output[0]).read().hex()
said["status"] = [created.status, created.version, replicate.predictions.get(prediction_id=created.id).status]
long = inputs | {"image": created.output[0], "num_inference_steps": 100, "resolution": 256}
begun = replicate.models.predictions.create(model_owner="you", model_name="controlnet", input=long)
said["cancelled"] = replicate.predictions.cancel(prediction_id=begun.id).status
said["listed"] = begun.id in [each.id for each in replicate.predictions.list()]
file = replicate.files.create(content=open(doodle, "rb").read())
said["file"] = [replicate.files.get(file_id=file.id).size, replicate.files.delete(file_id=file.id) is None]
model = replicate.models.get(model_owner="you", model_name="controlnet")
said["model"] = model.latest_version.openapi_schema["info"]["title"]
try:
    replicate.run("you/controlnet", input={"prompt": "x"})
except UnprocessableEntityError as error:
    said["errors"] = [str(error)]
os.environ |= {"REPLICATE_API_TOKEN": "any", "REPLICATE_BASE_URL": sys.argv[1] + "/v1"}
import replicate

(path,) = replicate.use("you/controlnet")(image=open(doodle, "rb"), **inputs)
said["used"] = open(path, "rb").read().hex()
print(json.dumps(said))
"""

NODE = """
import Replicate from "replicate";
import { readFile } from "node:fs/promises";

const [base, doodle, text] = process.argv.slice(2);
const replicate = new Replicate({ auth: "any", baseUrl: `${base}/v1` });
const image = await readFile(doodle);
const input = { ...JSON.parse(text), image };
const hex = async (blob) => Buffer.from(await blob.arrayBuffer()).toString("hex");
const said = {};
for (const ref of ["you/controlnet", "you/controlnet:abc"]) {
  const [file] = await replicate.run(ref, { input });
  said[ref] = await hex(await file.blob());
}
const created = await replicate.wait(await replicate.predictions.create({ version: "abc", input }));
said.polled = await hex(await (await fetch(created.output[0])).blob());
said.status = [created.status, created.version, (await replicate.predictions.get(created.id)).status];
const long = { ...input, image: created.output[0], num_inference_steps: 100, resolution: 256 };
const begun = await replicate.predictions.create({ model: "you/controlnet", input: long });
said.cancelled = (await replicate.predictions.cancel(begun.id)).status;
said.listed = (await replicate.predictions.list()).results.some((each) => each.id === begun.id);
const file = await replicate.files.create(image);
said.file = [(await replicate.files.get(file.id)).size, await replicate.files.delete(file.id)];
said.model = (await replicate.models.get("you", "controlnet")).latest_version.openapi_schema.info.title;
said.errors = [];
for (const wrong of [{ prompt: "x" }, { ...input, go_fast: true, num_inference_steps: 50 }]) {
  await replicate.run("you/controlnet", { input: wrong }).catch((error) => said.errors.push(error.message));
}
console.log(JSON.stringify(said));
"""


def fetched(command: list[str], folder: Path) -> None:
    try:
        subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=SECONDS)
    except (OSError, subprocess.SubprocessError) as error:
        pytest.skip(f"cannot fetch the client: {error}")


def python_client(version: str, program: str, folder: Path) -> list[str]:
    """The command of a Python program with this version of replicate."""
    fetched([sys.executable, "-m", "venv", "venv"], folder)
    fetched(["venv/bin/python", "-m", "pip", "install", "--quiet", f"replicate=={version}"], folder)
    (folder / "program.py").write_text(program)
    return ["venv/bin/python", "program.py"]


def node_client(version: str, program: str, folder: Path) -> list[str]:
    fetched(["npm", "install", "--silent", "--no-save", f"replicate@{version}"], folder)
    (folder / "program.mjs").write_text(program)
    return ["node", "program.mjs"]


@pytest.mark.parametrize(
    ("client", "version", "program"),
    [
        (python_client, "1.0.7", PYTHON_1),
        (python_client, "2.0.0b4", PYTHON_2),
        (node_client, "1.4.0", NODE),
    ],
    ids=["PyPI 1", "PyPI 2", "npm"],
)
def test_a_program_for_replicate_runs_here(
    client, version: str, program: str, playground: str, server: Server, tmp_path: Path
) -> None:
    command = client(version, program, tmp_path)
    arguments = [playground, str(DOODLE), json.dumps(INPUT)]
    done = subprocess.run([*command, *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == 0, done.stderr[-3000:]
    said = json.loads(done.stdout)
    (direct,) = server.run(**INPUT, image=data_url(DOODLE.read_bytes())).files
    for way in ("you/controlnet", "you/controlnet:abc", "polled", *(["used"] if "used" in said else [])):
        assert bytes.fromhex(said[way]) == direct, way
    assert said["status"] == ["succeeded", "abc", "succeeded"]
    assert said["cancelled"] == "canceled" and said["listed"]
    assert said["file"] == [DOODLE.stat().st_size, True] and said["model"] == "Cog"
    assert "- input.image: " in said["errors"][0] and "422" in said["errors"][0]
    assert all("go_fast takes 2 to 8 steps: got 50." in error for error in said["errors"][1:])
