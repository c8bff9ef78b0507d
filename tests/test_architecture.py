"""Imports point one way: predict -> generation -> bundle -> maps -> pictures -> request -> conditioners, weights."""

import ast
from pathlib import Path

import pytest
from support import ROOT

PACKAGE = ROOT / "controlnet"
LEAVES = {"conditioners", "errors", "stopwatch"}
"""They import nothing of ours."""
MAY_IMPORT: dict[str, set[str]] = {
    "weights": set(),
    "models": {"weights", "stopwatch"},
    "request": {"conditioners", "weights"},
    "pictures": {"request", "conditioners"},
    "maps": {"pictures", "request", "models", "conditioners"},
    "bundle": {"maps", "request", "models", "conditioners", "weights"},
    "generation": {"bundle", "maps", "pictures", "request", "models", "conditioners", "stopwatch"},
    "serving": {"weights"},
} | {name: set() for name in LEAVES}
"""For each folder or module of controlnet/, the others that it may import."""
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py" or path.parent != PACKAGE)


def room(name: str) -> str:
    """The folder or module of a dotted name below controlnet: "maps" for "maps.annotators.canny"."""
    return name.split(".")[0]


def imported(path: Path) -> set[str]:
    """What a module imports of controlnet, by folder, lazily or for type checking too."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            package = path.relative_to(ROOT).parts[: -node.level]
            found |= {".".join([*package, node.module or alias.name]) for alias in node.names}
    assert not any(name.split(".")[0] in ("tinyworld", "tests", "script", "predict") for name in found), found
    return {room(name.removeprefix("controlnet.")) for name in found if name.startswith("controlnet.")}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_one_way(path: Path) -> None:
    here = room(".".join(path.relative_to(PACKAGE).with_suffix("").parts))
    assert imported(path) <= MAY_IMPORT[here] | {here}


def test_every_folder_has_its_place_without_circles() -> None:
    assert {room(".".join(path.relative_to(PACKAGE).with_suffix("").parts)) for path in MODULES} == set(MAY_IMPORT)
    settled: set[str] = set()
    while settled != set(MAY_IMPORT):
        free = {name for name, others in MAY_IMPORT.items() if others <= settled} - settled
        assert free, f"a circle among {set(MAY_IMPORT) - settled}"
        settled |= free


def test_predict_imports_no_library_of_models() -> None:
    tree = ast.parse((ROOT / "predict.py").read_text(encoding="utf-8"))
    modules = {node.module for node in tree.body if isinstance(node, ast.ImportFrom)}
    assert all(module in ("typing", "cog") or str(module).startswith("controlnet.") for module in modules)


def test_no_test_module_imports_another() -> None:
    for path in (ROOT / "tests").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not any(part.startswith("test_") for name in names for part in name.split(".")), (path, names)
