"""Files that other tools read agree with the code: .dockerignore, scripts."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.documents import blocks

from controlnet.serving.schema import openapi_schema
from controlnet.serving.server import ROOT

SCHEMAS = openapi_schema((ROOT / "predict.py").read_text())["components"]["schemas"]
SCRIPTS = sorted(path for path in (ROOT / "script").rglob("*") if path.is_file() and not path.suffix)


def read_yaml(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_parse_and_are_executable(script: Path) -> None:
    subprocess.run(["bash", "-n", script], check=True)
    if script.name != "env":  # sourced
        assert os.access(script, os.X_OK)
        assert script.read_text().startswith("#!/bin/bash -eu\n")


PYTHON_SCRIPTS = [script for script in SCRIPTS if "exec python" in script.read_text()]
WITHOUT_ARGUMENTS = {"make-strip", "write-signature", "write-tables"}
TAKES_PATHS = {"batch", "make-random-bundle", "setup", "predict"}
"""Scripts whose paths are relative to the caller's folder."""


@pytest.fixture
def stubbed(tmp_path: Path) -> Path:
    """A copy of script/ whose bootstrap does nothing and whose python prints its arguments, one a line."""
    shutil.copytree(ROOT / "script", tmp_path / "script", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "script/bootstrap").write_text("#!/bin/bash\n")
    python = tmp_path / ".venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/bash\nprintf "%s\\n" "PYTHONPATH=${PYTHONPATH:-}" "$PWD" "$@"\n')
    python.chmod(0o755)
    return tmp_path


@pytest.mark.parametrize("script", PYTHON_SCRIPTS, ids=lambda path: path.name)
def test_scripts_run_an_existing_module_with_their_arguments(script: Path, stubbed: Path) -> None:
    elsewhere = stubbed / "else where"
    elsewhere.mkdir()
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [stubbed / script.relative_to(ROOT), "--option", "a value"]
    result = subprocess.run(command, cwd=elsewhere, env=environ, capture_output=True, text=True, check=True)
    search, folder, *arguments = result.stdout.splitlines()
    assert folder == str(stubbed)
    if arguments[0] == "-m":
        assert importlib.util.find_spec(arguments[1])
    else:
        assert (ROOT / arguments[0]).exists()
        assert search == "PYTHONPATH=."  # otherwise the file cannot import controlnet
    if script.name not in WITHOUT_ARGUMENTS:
        assert arguments[-2:] == ["--option", "a value"]
    if script.name in TAKES_PATHS:
        assert arguments[arguments.index(str(elsewhere)) - 1] in ("--called-from", "--folder")


def test_dockerignore_keeps_only_the_files_that_predict_py_needs() -> None:
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert "*" in (ROOT / ".dockerignore").read_text().splitlines()
    imported = re.findall(r"^(?:from|import) (\w+)", (ROOT / "predict.py").read_text(), re.MULTILINE)
    ours = {name for name in imported if (ROOT / name).exists() or (ROOT / f"{name}.py").exists()}
    assert {"predict.py", "requirements.txt", "weights"} | ours <= kept
    assert kept.isdisjoint({".git", ".venv", "tests", "tinyworld", "examples", "script"})


# ---- script/bootstrap


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A folder with script/bootstrap and empty requirements."""
    (tmp_path / "script").mkdir()
    (tmp_path / "script/bootstrap").write_bytes((ROOT / "script/bootstrap").read_bytes())
    (tmp_path / "script/bootstrap").chmod(0o755)
    for file in ("requirements", "requirements-batch", "requirements-playground", "requirements-dev"):
        (tmp_path / f"{file}.txt").write_text("# nothing\n")
    return tmp_path


def bootstrap(clone: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    command = [clone / "script/bootstrap"]
    return subprocess.run(command, capture_output=True, text=True, env=dict(os.environ) | environ)


def test_bootstrap_names_the_python_that_it_needs(clone: Path) -> None:
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


def test_bootstrap_reinstalls_only_after_a_change_or_interruption(clone: Path) -> None:
    log = clone / "log"
    uv = clone / "bin/uv"  # a stand-in for the installer, which needs a network
    uv.parent.mkdir()
    uv.write_text(f'#!/bin/bash\necho "$@" >> {log}\n')
    uv.chmod(0o755)
    python = clone / "bin/python3"  # makes .venv without pip, which would take seconds
    python.write_text(
        f'#!/bin/bash\n[ "$1 $2" = "-m venv" ] && set -- -m venv --without-pip "${{@:3}}"\nexec {sys.executable} "$@"\n'
    )
    python.chmod(0o755)
    path = f"{uv.parent}{os.pathsep}{os.environ['PATH']}"
    assert bootstrap(clone, PATH=path, PYTHON="").returncode == 0
    assert (clone / ".venv/bin/python").exists()
    assert len(log.read_text().splitlines()) == 1
    quiet = bootstrap(clone, PATH=path)
    assert (quiet.returncode, quiet.stdout, quiet.stderr) == (0, "", "")
    assert len(log.read_text().splitlines()) == 1
    for times, file in enumerate(("requirements.txt", "requirements-batch.txt"), 2):
        (clone / file).write_text("# changed\n")
        assert bootstrap(clone, PATH=path).stdout == ""
        assert len(log.read_text().splitlines()) == times
    (clone / ".venv/installed").unlink()  # as an interruption leaves it
    assert bootstrap(clone, PATH=path).returncode == 0
    assert len(log.read_text().splitlines()) == 4


def test_git_ignores_the_bundles_of_the_examples() -> None:
    """What else they write, tests/product/test_snippets.py sees."""
    code = [block.text for block in blocks("docs/bring-your-own.md")]
    names = {
        name for text in code for found in re.findall(r'--name (\S+)|\Aname = "(.+?)"', text) for name in found
    } - {""}
    assert {"realistic", "mine"} <= names
    written = [f"weights/{name}.{ending}" for name in names for ending in ("toml", "lock")]
    shown = subprocess.run(["git", "check-ignore", *written], cwd=ROOT, capture_output=True, text=True)
    assert sorted(shown.stdout.split()) == sorted(written)
