"""cog.yaml, cog-safe-push.yaml and the workflows agree with the code, and script/push with what Cog needs."""

import os
import re
import shutil
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.requests import FakeBundle, asked

from controlnet.pictures.images import ImageError, open_image
from controlnet.request.combinations import RequestError, check_combinations
from controlnet.serving.schema import openapi_schema
from controlnet.serving.server import ROOT, interfaces_in

WORKFLOWS = sorted((ROOT / ".github/workflows").iterdir())
SCHEMAS = openapi_schema((ROOT / "predict.py").read_text())["components"]["schemas"]


def read_yaml(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


def test_cog_yaml_pins_the_tested_cog_and_the_environment() -> None:
    config = read_yaml(ROOT / "cog.yaml")
    pins = dict(re.findall(r"^(\S+)==(\S+)", (ROOT / "requirements.txt").read_text(), re.MULTILINE))
    assert config["build"]["sdk_version"] == pins["cog"] == pins["coglet"]
    assert config["build"]["python_requirements"] == "requirements.txt"
    assert config["predict"] == "predict.py:Predictor"
    environment = dict(line.split("=", 1) for line in config["environment"])
    assert environment == {
        "CONTROLNET_BUNDLE": "sd15",
        "CONTROLNET_DOWNLOAD": "1",
        "TORCHINDUCTOR_CACHE_DIR": "/tmp/torchinductor",
        "OMP_WAIT_POLICY": "PASSIVE",
    }


def fits(value: Any, prop: dict[str, Any]) -> bool:
    """Whether a value is allowed for an input: its type, its choices and its bounds."""
    if "allOf" in prop:
        return value in SCHEMAS[prop["allOf"][0]["$ref"].rpartition("/")[2]]["enum"]
    if "anyOf" in prop:
        return any(fits(value, member) for member in prop["anyOf"])
    types = {"string": str, "boolean": bool, "integer": int, "number": int | float}
    if not isinstance(value, types[prop["type"]]) or isinstance(value, bool) is not (prop["type"] == "boolean"):
        return False
    return isinstance(value, str) or prop.get("minimum", value) <= value <= prop.get("maximum", value)


def test_cog_safe_push_has_valid_cases_for_every_conditioner() -> None:
    predict = read_yaml(ROOT / "cog-safe-push.yaml")["predict"]
    cases = predict["test_cases"]
    properties = SCHEMAS["Input"]["properties"]
    for inputs in [*(case["inputs"] for case in cases), predict["fuzz"]["fixed_inputs"]]:
        assert inputs.keys() <= properties.keys()
        assert [name for name, value in inputs.items() if not fits(value, properties[name])] == []
    for case in cases:
        assert set(SCHEMAS["Input"]["required"]) <= case["inputs"].keys()
    assert {case["inputs"].get("conditioner", "canny") for case in cases} == set(SCHEMAS["conditioner"]["enum"])
    assert any("error_contains" in case for case in cases)


def test_cog_safe_push_expects_errors_that_only_our_code_has(tmp_path: Path) -> None:
    expected = [
        case["error_contains"]
        for case in read_yaml(ROOT / "cog-safe-push.yaml")["predict"]["test_cases"]
        if "error_contains" in case
    ]
    (tmp_path / "file").write_bytes(b"hello")
    with pytest.raises(ImageError) as not_a_picture:
        open_image(tmp_path / "file")
    with pytest.raises(RequestError) as empty_window:
        check_combinations(asked(control_start=0.9, control_end=0.1), FakeBundle())
    for words, error in zip(expected, (empty_window, not_a_picture), strict=True):
        assert words in str(error.value)
        assert len(words.split()) > 3


def test_the_prompt_for_fuzzing_names_existing_inputs() -> None:
    fuzz = read_yaml(ROOT / "cog-safe-push.yaml")["predict"]["fuzz"]
    named = set(re.findall(r"\b[a-z]+(?:_[a-z0-9]+)+\b", fuzz["prompt"])) | set(fuzz["disabled_inputs"])
    assert named - SCHEMAS["Input"]["properties"].keys() == set()
    assert {"outpaint_left", "init_image", "control_start", "control_end"} <= named


def test_workflows_install_one_commit_of_cog_safe_push() -> None:
    texts = [path.read_text() for path in WORKFLOWS]
    commits = [commit for text in texts for commit in re.findall(r"cog-safe-push\.git@(\S+)", text)]
    assert len(commits) == 2
    assert re.fullmatch(r"[0-9a-f]{40}", commits[0])
    assert commits[0] == commits[1]


def test_workflows_run_nothing_that_may_change() -> None:
    """A tag, a branch and an unpinned package are whatever their owners make of them, next to secrets of ours."""
    for workflow in WORKFLOWS:
        text = workflow.read_text()
        used = re.findall(r"uses: (\S+)(.*)", text)
        assert used and len(used) == text.count("uses:")
        for action, version in used:
            assert re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40}", action), action
            assert re.fullmatch(r" # v\d+\.\d+\.\d+", version), action
        for job in read_yaml(workflow)["jobs"].values():
            assert job["runs-on"] == "ubuntu-24.04"
        for install in re.findall(r"pip install (.*)", text):
            assert re.fullmatch(
                r"-r \.github/cog-safe-push\.txt|--no-deps --no-build-isolation git\+\S+@[0-9a-f]{40}", install
            )


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_call_existing_scripts_and_the_pinned_cog(workflow: Path) -> None:
    version = read_yaml(ROOT / "cog.yaml")["build"]["sdk_version"]
    for job in read_yaml(workflow)["jobs"].values():
        for step in job["steps"]:
            for script in re.findall(r"^(script/\S+|\.ci/\S+)", step.get("run", ""), re.MULTILINE):
                assert os.access(ROOT / script, os.X_OK), script
            for script in re.findall(r"python (script/\S+)", step.get("run", "")):
                assert (ROOT / script).exists(), script
            if step.get("uses", "").startswith("replicate/setup-cog"):
                assert step["with"]["cog-version"] == f"v{version}"
                assert step["with"]["token"] == "${{ secrets.REPLICATE_CLI_AUTH_TOKEN }}"
                assert job["env"]["COGLET_WHEEL"] == f"pypi:{version}"


# ---- script/push


def test_push_names_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "script").mkdir()
    (tmp_path / "weights").mkdir()
    (tmp_path / "script/push").write_bytes((ROOT / "script/push").read_bytes())
    for name in ("sd15", "sdxl"):
        (tmp_path / f"weights/{name}.toml").touch()
    command = ["bash", "-eu", str(tmp_path / "script/push")]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 1
    assert result.stderr.startswith("weights/sd15.lock is missing")
    other = subprocess.run([*command, "--bundle", "sdxl"], capture_output=True, text=True)
    assert (other.returncode, other.stderr.startswith("weights/sdxl.lock is missing")) == (1, True)
    other = subprocess.run([*command, "--bundle", "sdx"], capture_output=True, text=True)
    assert (other.returncode, other.stderr) == (1, "There is no bundle 'sdx'. There are: sd15 sdxl\n")
    (tmp_path / "weights/sd15.lock").touch()
    result = subprocess.run(command, capture_output=True, text=True, env={"PATH": "/usr/bin:/bin"})
    assert (result.returncode, result.stderr.startswith("The cog command is not installed.")) == (1, True)


def pushed(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run script/push in a copy with a `cog` that prints its arguments and the predictor of its config file."""
    (root / "weights").mkdir(exist_ok=True)
    for name in ("sd15", "sdxl"):
        (root / f"weights/{name}.toml").touch()
        (root / f"weights/{name}.lock").touch()
    shutil.copytree(ROOT / "interfaces", root / "interfaces", dirs_exist_ok=True)
    (root / "script").mkdir(exist_ok=True)
    for name in ("script/push", "requirements.txt", "cog.yaml"):
        (root / name).write_bytes((ROOT / name).read_bytes())
    cog = root / "bin/cog"
    cog.parent.mkdir(exist_ok=True)
    cog.write_text('#!/bin/bash\necho "$COGLET_WHEEL $@"\ngrep ^predict: "$3"\ngrep _BUNDLE= "$3"\n')
    cog.chmod(0o755)
    path = f"{cog.parent}{os.pathsep}{os.environ['PATH']}"
    command = ["bash", "-eu", str(root / "script/push"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env={"PATH": path})


def test_push_pins_coglet_and_passes_arguments_on(tmp_path: Path) -> None:
    wheel = f"pypi:{metadata.version('coglet')}"
    result = pushed(tmp_path, "r8.im/owner/model")
    assert result.stdout.splitlines() == [
        f"{wheel} push --file cog.yaml r8.im/owner/model",
        'predict: "predict.py:Predictor"',
        "  - CONTROLNET_BUNDLE=sd15",
    ]


def test_push_with_another_bundle_and_an_interface(tmp_path: Path) -> None:
    result = pushed(tmp_path, "--bundle", "sdxl", "r8.im/owner/model")
    assert "push --file cog-sdxl.yaml r8.im/owner/model" in result.stdout
    assert result.stdout.endswith('predict: "predict.py:Predictor"\n  - CONTROLNET_BUNDLE=sdxl\n')
    result = pushed(tmp_path, "--interface", "rossjillian", "--bundle", "sdxl", "r8.im/owner/model")
    assert result.stdout.endswith('predict: "interfaces/rossjillian.py:Predictor"\n  - CONTROLNET_BUNDLE=sdxl\n')
    assert not list(tmp_path.glob("cog-*.yaml"))


def test_push_with_the_interface_of_another_model(tmp_path: Path) -> None:
    """Everything but the predictor is that of cog.yaml, and the file is gone afterwards."""
    result = pushed(tmp_path, "--interface", "jagilley-canny", "r8.im/owner/model")
    assert "push --file cog-jagilley-canny.yaml r8.im/owner/model" in result.stdout
    assert 'predict: "interfaces/jagilley.py:Canny"' in result.stdout
    assert not list(tmp_path.glob("cog-*.yaml"))
    wrong = pushed(tmp_path, "--interface", "jagilley")
    assert wrong.returncode == 1
    assert wrong.stderr == f"There is no interface 'jagilley'. There are: {' '.join(interfaces_in(ROOT))}\n"
