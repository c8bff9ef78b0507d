"""Files that other tools read agree with the code: requirements, .dockerignore, scripts."""

import ast
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections import defaultdict
from importlib import metadata
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


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_parse_and_are_executable(script: Path) -> None:
    subprocess.run(["bash", "-n", script], check=True)
    if script.name != "env":  # sourced
        assert os.access(script, os.X_OK)
        assert script.read_text().startswith("#!/bin/bash -eu\n")


PYTHON_SCRIPTS = [script for script in SCRIPTS if "exec python" in script.read_text()]
WITHOUT_ARGUMENTS = {"make-strip", "write-signature", "write-tables"}
TAKES_PATHS = {"batch", "make-random-bundle", "setup", "full-size", "predict"}
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


# ---- requirements

BATCH = "controlnet/batch"
RUNTIME = ("predict.py", "controlnet")
PLAYGROUND = "playground"
DEVELOPMENT = ("tests", "script", "tinyworld")
IMPORTABLE = {
    "predict.py": [ROOT],
    "controlnet": [ROOT],
    BATCH: [ROOT],
    PLAYGROUND: [ROOT],
    "tinyworld": [ROOT],
    "script": [ROOT, ROOT / "script", ROOT / "script/bench"],
    "tests": [ROOT, ROOT / "script", ROOT / "script/bench", ROOT / "tests"],
}
"""The folders that each place imports modules of this project from."""


def normalized(distribution: str) -> str:
    return re.sub(r"[-_.]+", "-", distribution).lower()


def requirements(file: str) -> dict[str, tuple[str, bool]]:
    """The requirements that a file names: by normalized name, the line and whether a comment stands above it."""
    lines = (ROOT / file).read_text().splitlines()
    found = {}
    for above, line in zip(["", *lines], lines, strict=False):
        if name := re.match(r"[A-Za-z0-9][A-Za-z0-9._-]*", line):
            found[normalized(name[0])] = (line, above.startswith("#"))
    return found


def imports(places: tuple[str, ...]) -> dict[str, set[str]]:
    """The third-party top-level modules that the Python files in `places` import, with the files that import them.

    Imports inside functions count. A module of this project counts as third-party if its place cannot import it.
    """
    found = defaultdict(set)
    for place in places:
        for file in [ROOT / place] if place.endswith(".py") else sorted((ROOT / place).rglob("*.py")):
            if place == "controlnet" and file.is_relative_to(ROOT / BATCH):
                continue  # it is not used in the container
            for name in imported_names(file):
                top = name.partition(".")[0]
                own = any((folder / top).is_dir() or (folder / f"{top}.py").exists() for folder in IMPORTABLE[place])
                if not own and top not in sys.stdlib_module_names:
                    found[top].add(file.relative_to(ROOT).as_posix())
    return found


def imported_names(file: Path) -> list[str]:
    """The absolute names of the modules that a file imports."""
    package = file.relative_to(ROOT).parent.parts
    names = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else ()
            names.append(".".join([*base, *([node.module] if node.module else [])]))
    return names


@pytest.mark.parametrize(
    ("places", "files"),
    [
        (RUNTIME, ("requirements.txt",)),
        ((BATCH,), ("requirements.txt", "requirements-batch.txt")),
        ((PLAYGROUND,), ("requirements-playground.in",)),
        (
            DEVELOPMENT,
            ("requirements.txt", "requirements-batch.txt", "requirements-playground.txt", "requirements-dev.txt"),
        ),
    ],
    ids=["runtime", "batch", "playground", "development"],
)
def test_every_imported_package_is_a_requirement(places: tuple[str, ...], files: tuple[str, ...]) -> None:
    declared = {name for file in files for name in requirements(file)}
    providers = metadata.packages_distributions()
    undeclared = {
        module: importers
        for module, importers in imports(places).items()
        if declared.isdisjoint(map(normalized, providers.get(module, [])))
    }
    assert undeclared == {}


@pytest.mark.parametrize(
    ("file", "places"),
    [
        ("requirements.txt", RUNTIME),
        ("requirements-batch.txt", (BATCH,)),
        ("requirements-playground.in", (PLAYGROUND,)),
        ("requirements-dev.txt", DEVELOPMENT),
    ],
    ids=["runtime", "batch", "playground", "development"],
)
def test_a_requirement_is_imported_or_has_a_comment(file: str, places: tuple[str, ...]) -> None:
    providers = metadata.packages_distributions()
    imported = {normalized(name) for module in imports(places) for name in providers.get(module, [])}
    unexplained = [
        line for name, (line, commented) in requirements(file).items() if name not in imported and not commented
    ]
    assert unexplained == []


def test_requirements_have_no_space_where_cog_would_cut_them() -> None:
    """Cog takes a line up to its first space, so a marker after a space is lost and its semicolon is left."""
    lines = [line for line, _ in requirements("requirements.txt").values()]
    assert [line for line in lines if " " in line] == []


@pytest.mark.parametrize("file", ["requirements.txt", "requirements-batch.txt", "requirements-playground.txt"])
def test_runtime_requirements_are_pinned_to_the_installed_versions(file: str) -> None:
    for name, (line, _) in requirements(file).items():
        pin = re.fullmatch(r"[\w.-]+(?:\[\w+\])?==([\w.]+)( *;.*)?", line)
        assert pin, f"{line}: not pinned"
        if not pin[2]:  # one with a marker is not installed on every system
            assert metadata.version(name) == pin[1]


def test_imports_inside_functions_and_relative_ones_are_found(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(f"{__name__}.ROOT", tmp_path)
    file = tmp_path / "controlnet/maps/lazy.py"
    file.parent.mkdir(parents=True)
    file.write_text("import a.b as c\ndef f():\n    from d.e import g\n    from . import h\n    from ..i import j\n")
    assert imported_names(file) == ["a.b", "d.e", "controlnet.maps", "controlnet.i"]


# ---- script/bootstrap


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A folder with script/bootstrap and empty requirements."""
    (tmp_path / "script").mkdir()
    (tmp_path / "script/bootstrap").write_bytes((ROOT / "script/bootstrap").read_bytes())
    (tmp_path / "script/bootstrap").chmod(0o755)
    (tmp_path / "requirements.txt").write_text("# nothing\n")
    (tmp_path / "requirements-batch.txt").write_text("# nothing\n")
    (tmp_path / "requirements-playground.txt").write_text("# nothing\n")
    (tmp_path / "requirements-dev.txt").write_text("-r requirements.txt\n-r requirements-batch.txt\n")
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
