"""The files that other tools read agree with the code: cog.yaml, cog-safe-push.yaml, the workflows, the scripts."""

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from controlnet.serving.schema import openapi_schema
from controlnet.serving.server import ROOT

SCHEMAS = openapi_schema((ROOT / "predict.py").read_text())["components"]["schemas"]
SCRIPTS = sorted(path for path in (ROOT / "script").rglob("*") if path.is_file() and not path.suffix)


def read_yaml(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


def test_cog_yaml_installs_the_cog_that_is_tested() -> None:
    config = read_yaml(ROOT / "cog.yaml")
    pins = dict(re.findall(r"^(\S+)==(\S+)", (ROOT / "requirements.txt").read_text(), re.MULTILINE))
    assert config["build"]["sdk_version"] == pins["cog"] == pins["coglet"]
    assert config["build"]["python_requirements"] == "requirements.txt"
    assert config["predict"] == "predict.py:Predictor"
    assert config["environment"] == ["CONTROLNET_BUNDLE=sd15", "CONTROLNET_DOWNLOAD=1"]


def test_safe_push_tries_every_conditioner_with_inputs_that_exist() -> None:
    cases = read_yaml(ROOT / "cog-safe-push.yaml")["predict"]["test_cases"]
    properties = SCHEMAS["Input"]["properties"]
    for case in cases:
        assert case["inputs"].keys() <= properties.keys()
        assert set(SCHEMAS["Input"]["required"]) <= case["inputs"].keys()
    assert {case["inputs"].get("conditioner", "canny") for case in cases} == set(SCHEMAS["conditioner"]["enum"])
    assert any("error_contains" in case for case in cases)


@pytest.mark.parametrize("workflow", sorted((ROOT / ".github/workflows").iterdir()), ids=lambda path: path.name)
def test_workflows_call_scripts_that_exist_and_the_cog_that_is_pinned(workflow: Path) -> None:
    for job in read_yaml(workflow)["jobs"].values():
        for step in job["steps"]:
            for script in re.findall(r"^(script/\S+|\.ci/\S+)", step.get("run", ""), re.MULTILINE):
                assert os.access(ROOT / script, os.X_OK), script
            if step.get("uses", "").startswith("replicate/setup-cog"):
                version = read_yaml(ROOT / "cog.yaml")["build"]["sdk_version"]
                assert step["with"]["cog-version"] == f"v{version}"


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_parse_and_can_be_run(script: Path) -> None:
    subprocess.run(["bash", "-n", script], check=True)
    if script.name != "env":  # sourced
        assert os.access(script, os.X_OK)
        assert script.read_text().startswith("#!/bin/bash -eu\n")


def test_the_image_leaves_out_what_predict_py_does_not_need() -> None:
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert "*" in (ROOT / ".dockerignore").read_text().splitlines()
    imported = re.findall(r"^(?:from|import) (\w+)", (ROOT / "predict.py").read_text(), re.MULTILINE)
    ours = {name for name in imported if (ROOT / name).exists() or (ROOT / f"{name}.py").exists()}
    assert {"predict.py", "requirements.txt", "weights"} | ours <= kept
    assert kept.isdisjoint({".git", ".venv", "tests", "tinyworld", "examples", "script"})


# ---- script/bootstrap


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A folder with the script and requirements that need nothing."""
    (tmp_path / "script").mkdir()
    (tmp_path / "script/bootstrap").write_bytes((ROOT / "script/bootstrap").read_bytes())
    (tmp_path / "script/bootstrap").chmod(0o755)
    (tmp_path / "requirements.txt").write_text("# nothing\n")
    (tmp_path / "requirements-dev.txt").write_text("-r requirements.txt\n")
    return tmp_path


def bootstrap(clone: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    command = [clone / "script/bootstrap"]
    return subprocess.run(command, capture_output=True, text=True, env=dict(os.environ) | environ)


def test_bootstrap_says_which_python_it_needs(clone: Path) -> None:
    tools = clone / "bin"
    tools.mkdir()
    for tool in ("bash", "cat", "cksum", "dirname", "rm"):
        (tools / tool).symlink_to(
            next(Path(folder) / tool for folder in ("/bin", "/usr/bin") if Path(folder, tool).exists())
        )
    result = bootstrap(clone, PATH=str(tools), PYTHON="")
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.startswith("Python 3.11 or newer is needed and was not found.")
    result = bootstrap(clone, PYTHON="/no/such/python")
    assert result.returncode == 1
    assert result.stderr == "PYTHON=/no/such/python is not a Python 3.11 or newer.\n"
    assert not (clone / ".venv").exists()


def test_bootstrap_does_again_only_what_changed_or_was_interrupted(clone: Path) -> None:
    log = clone / "log"
    uv = clone / "bin/uv"  # stands in for the installer, which needs a network
    uv.parent.mkdir()
    uv.write_text(f'#!/bin/bash\necho "$@" >> {log}\n')
    uv.chmod(0o755)
    path = f"{uv.parent}{os.pathsep}{os.environ['PATH']}"
    assert bootstrap(clone, PATH=path).returncode == 0
    assert (clone / ".venv/bin/python").exists()
    assert len(log.read_text().splitlines()) == 1
    quiet = bootstrap(clone, PATH=path)
    assert (quiet.returncode, quiet.stdout, quiet.stderr) == (0, "", "")
    assert len(log.read_text().splitlines()) == 1
    (clone / "requirements.txt").write_text("# changed\n")
    assert bootstrap(clone, PATH=path).stdout == ""
    assert len(log.read_text().splitlines()) == 2
    (clone / ".venv/installed").unlink()  # as an interruption leaves it
    assert bootstrap(clone, PATH=path).returncode == 0
    assert len(log.read_text().splitlines()) == 3


# ---- script/push


def test_push_says_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "script").mkdir()
    (tmp_path / "weights").mkdir()
    (tmp_path / "script/push").write_bytes((ROOT / "script/push").read_bytes())
    command = ["bash", "-eu", str(tmp_path / "script/push")]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 1
    assert result.stderr.startswith("weights/sd15.lock is missing")
    (tmp_path / "weights/sd15.lock").touch()
    result = subprocess.run(command, capture_output=True, text=True, env={"PATH": "/usr/bin:/bin"})
    assert (result.returncode, result.stderr.startswith("The cog command is not installed.")) == (1, True)
