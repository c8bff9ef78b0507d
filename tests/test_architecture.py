"""Imports point one way: predict -> generation -> bundle -> maps -> pictures -> request -> conditioners, weights."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import ROOT

PACKAGE = ROOT / "controlnet"
LEAVES = {"conditioners", "errors", "log", "startup", "stopwatch", "temporary", "transient"}
"""They import nothing of ours."""
MAY_IMPORT: dict[str, set[str]] = {
    "settings": {"conditioners"},
    "weights": {"settings", "log", "transient"},
    "models": {"settings", "weights", "stopwatch", "log"},
    "request": {"conditioners", "weights"},
    "pictures": {"request", "conditioners", "log"},
    "maps": {"pictures", "request", "models", "conditioners"},
    "speedups": {"models", "log"},
    "families": {"models", "weights"},
    "bundle": {"settings", "speedups", "families", "maps", "request", "models", "conditioners", "weights", "log"},
    "generation": {
        *{"bundle", "maps", "pictures", "request", "models", "speedups", "families"},
        *{"conditioners", "weights", "stopwatch", "log"},
    },
    "model": {"bundle", "generation", "maps", "models", "pictures", "request", "weights", "stopwatch", "log"},
    "api": {"settings", "model", "bundle", "pictures", "request", "weights", "errors", "log", "temporary", "transient"},
    "serving": {"settings", "weights", "pictures", "temporary"},
    "command": {"settings", "api", "serving", "weights", "startup"},
    "batch": {"settings", "api", "serving", "weights", "temporary", "transient"},
} | {name: set() for name in LEAVES}
"""For each folder or module of controlnet/, the others that it may import."""
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")
ELSEWHERE = {"predict", "interfaces", "tests", "script", "tinyworld"} | {
    path.stem for folder in ("script", "script/bench", "tests") for path in (ROOT / folder).glob("*.py")
} | {"support"}  # fmt: skip
"""Names of ours outside the package, which nothing in it may import."""


def room(name: str) -> str:
    """The folder or module of a dotted name below controlnet: "maps" for "maps.annotators.canny"."""
    return name.split(".")[0]


def place(path: Path) -> str:
    return room(".".join(path.relative_to(PACKAGE).with_suffix("").parts))


def names_imported(source: str, package: tuple[str, ...] = ()) -> Iterator[str]:
    """Every dotted name that a module of `package` imports: lazily, for type checking, or by import_module."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            yield from (".".join(filter(None, (*above, node.module, alias.name))) for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            yield from (str(leaf.value) for leaf in ast.walk(node) if isinstance(leaf, ast.Constant))


def rooms_imported(source: str, package: tuple[str, ...] = ()) -> set[str]:
    """The folders and modules of controlnet/ that a module imports. Fails for what nothing in it may import."""
    names = set(names_imported(source, package))
    assert "controlnet" not in names, "import a module of controlnet by its full name"
    assert not {room(name) for name in names} & ELSEWHERE, names
    return {room(name.removeprefix("controlnet.")) for name in names if name.startswith("controlnet.")}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_one_way(path: Path) -> None:
    package = path.relative_to(ROOT).parent.parts
    assert rooms_imported(path.read_text(encoding="utf-8"), package) <= MAY_IMPORT[place(path)] | {place(path)}


@pytest.mark.parametrize(
    "source",
    [
        "from controlnet.generation import job",
        "import controlnet.generation.job as job",
        "from .. import generation",
        "from ..generation.job import Job",
        "from importlib import import_module\nimport_module('controlnet.generation.job')",
        "__import__('controlnet.generation.job')",
        "def lazily():\n    from controlnet.generation.job import Job",
        "import controlnet\ncontrolnet.generation.job",
        "from random_models import SMALL",
        "import tables",
        "from support.requests import asked",
        "import tinyworld.models",
        "from predict import Predictor",
    ],
)
def test_a_forbidden_import_is_found_in_any_form(source: str) -> None:
    try:
        found = rooms_imported(source, ("controlnet", "maps"))
    except AssertionError:
        return
    assert not found <= MAY_IMPORT["maps"] | {"maps"}


def test_every_folder_has_its_place_without_circles() -> None:
    assert {place(path) for path in MODULES} == set(MAY_IMPORT)
    names = set(names_imported((PACKAGE / "__init__.py").read_text(encoding="utf-8")))
    # All but the first in open_model() alone.
    assert names == {
        "typing.TYPE_CHECKING",
        "controlnet.weights.files.check_chosen",
        "controlnet.settings.Settings",
        "controlnet.api.opened.OpenModel",
    }
    settled: set[str] = set()
    while settled != set(MAY_IMPORT):
        free = {name for name, others in MAY_IMPORT.items() if others <= settled} - settled
        assert free, f"a circle among {set(MAY_IMPORT) - settled}"
        settled |= free


def test_predict_imports_no_library_of_models() -> None:
    names = set(names_imported((ROOT / "predict.py").read_text(encoding="utf-8")))
    assert {room(name) for name in names} == {"typing", "cog", "controlnet"}


def test_reading_and_laying_out_requests_imports_no_torch() -> None:
    code = "import sys, controlnet.request.request, controlnet.pictures.canvas; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60, cwd=ROOT).returncode == 0


def test_no_test_module_imports_another() -> None:
    for path in (ROOT / "tests").rglob("*.py"):
        for name in names_imported(path.read_text(encoding="utf-8")):
            assert not any(part.startswith("test_") for part in name.split(".")), (path, name)
