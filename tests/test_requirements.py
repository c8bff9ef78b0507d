"""The requirements: what is imported is asked for, what is asked for is pinned, and Cog reads the pins as they are."""

import ast
import re
import sys
from collections import defaultdict
from importlib import metadata
from pathlib import Path

import pytest
import requirements as write_requirements
import yaml
from packaging.markers import Marker
from packaging.requirements import Requirement

from controlnet.serving.server import ROOT

FILES = ("requirements", "requirements-batch", "requirements-playground", "requirements-dev")
"""Each has an .in with what is asked for, and a .txt with what it brings that those before it did not."""
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
        (RUNTIME, FILES[:1]),
        ((BATCH,), FILES[:2]),
        ((PLAYGROUND,), FILES[:3]),
        (DEVELOPMENT, FILES),
    ],
    ids=["runtime", "batch", "playground", "development"],
)
def test_every_imported_package_is_a_requirement(places: tuple[str, ...], files: tuple[str, ...]) -> None:
    declared = {name for file in files for name in requirements(f"{file}.in")}
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
        ("requirements", RUNTIME),
        ("requirements-batch", (BATCH,)),
        ("requirements-playground", (PLAYGROUND,)),
        ("requirements-dev", DEVELOPMENT),
    ],
    ids=["runtime", "batch", "playground", "development"],
)
def test_a_requirement_is_imported_or_has_a_comment(file: str, places: tuple[str, ...]) -> None:
    providers = metadata.packages_distributions()
    imported = {normalized(name) for module in imports(places) for name in providers.get(module, [])}
    unexplained = [
        line for name, (line, commented) in requirements(f"{file}.in").items() if name not in imported and not commented
    ]
    assert unexplained == []


def pins(file: str) -> dict[str, tuple[str, Marker | None]]:
    """What a .txt pins: by name, the version and where it is installed."""
    lines = (ROOT / file).read_text().splitlines()
    assert re.fullmatch(r"# Written by script/write-requirements from (\S+)\.in\.", lines[0])[1] == Path(file).stem
    found = [re.fullmatch(r"([a-z0-9-]+)==([^\s;]+)(?:;(\S+))?", line) for line in lines[1:]]
    assert None not in found, lines[1 + found.index(None)]
    names = [pin[1] for pin in found]
    assert names == sorted({*names})
    return {pin[1]: (pin[2], Marker(pin[3]) if pin[3] else None) for pin in found}


def test_cog_takes_each_requirement_as_it_is() -> None:
    """Its code finds name and version with this expression, and builds the image with what it finds."""
    expression = re.compile(r"([a-zA-Z0-9\-_]+)==([^ ]+)")
    assert yaml.safe_load((ROOT / "cog.yaml").read_text())["build"]["python_requirements"] == "requirements.txt"
    for line in (ROOT / "requirements.txt").read_text().splitlines()[1:]:
        assert ["==".join(found) for found in expression.findall(line)] == [line]


def brought(requirement: Requirement, found: dict[str, str], extra: str = "") -> None:
    """Adds the installed version of a package, and of all that it requires on this system, to what was found."""
    if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
        return
    name = normalized(requirement.name)
    known = name in found
    found[name] = metadata.version(name)
    for wanted in requirement.extras or ([] if known else [""]):
        for needed in map(Requirement, metadata.requires(name) or []):
            brought(needed, found, wanted)


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_all_that_is_installed_for_the_requirements_is_pinned_and_nothing_else(count: int) -> None:
    """Each file adds to those before it, as far as this system installs it."""
    found: dict[str, str] = {}
    for file in FILES[:count]:
        for line, _ in requirements(f"{file}.in").values():
            brought(Requirement(line), found)
    pinned = [(name, *pin) for file in FILES[:count] for name, pin in pins(f"{file}.txt").items()]
    here = [(name, version) for name, version, marker in pinned if marker is None or marker.evaluate()]
    assert sorted(here) == sorted(found.items())


def test_a_package_is_pinned_once_and_only_where_it_is_asked_for() -> None:
    pinned = [name for file in FILES for name in pins(f"{file}.txt")]
    assert len(pinned) == len({*pinned})
    for file in FILES:
        assert requirements(f"{file}.in").keys() <= {*pinned}
    assert pins(".github/cog-safe-push.txt").keys() >= requirements(".github/cog-safe-push.in").keys()


def test_markers_of_uv_become_markers_without_spaces(monkeypatch: pytest.MonkeyPatch) -> None:
    both = "platform_machine == 'x86_64' and sys_platform == 'linux'"
    assert write_requirements.pin(f"Some_thing==1.0 ; {both}") == 'some-thing==1.0;platform_machine=="x86_64"'
    assert write_requirements.pin("a==1 ; sys_platform == 'linux'") == 'a==1;platform_system=="Linux"'
    assert write_requirements.pin("a==1 ; sys_platform != 'emscripten'") == "a==1"
    assert write_requirements.pin("a==1 ; sys_platform == 'win32'") is None
    with pytest.raises(SystemExit, match="none of MARKERS"):
        write_requirements.pin("a==1 ; python_full_version < '3.12'")


def test_imports_inside_functions_and_relative_ones_are_found(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(f"{__name__}.ROOT", tmp_path)
    file = tmp_path / "controlnet/maps/lazy.py"
    file.parent.mkdir(parents=True)
    file.write_text("import a.b as c\ndef f():\n    from d.e import g\n    from . import h\n    from ..i import j\n")
    assert imported_names(file) == ["a.b", "d.e", "controlnet.maps", "controlnet.i"]
