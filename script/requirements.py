"""script/write-requirements: the .txt of each .in, with the version of all that is pulled in, by `uv pip compile`.

Cog reads a requirement up to its first space, and uv writes spaces around markers. So each marker is replaced with one
of MARKERS that says the same on all systems that ENVIRONMENTS has, or is left out if it holds on all of them.
"""

import itertools
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
FILES = {
    "requirements": ("3.11", []),
    "requirements-batch": ("3.11", ["requirements"]),
    "requirements-playground": ("3.11", ["requirements", "requirements-batch"]),
    "requirements-dev": ("3.11", ["requirements", "requirements-batch", "requirements-playground"]),
    ".github/cog-safe-push": ("3.12", []),
}
"""Of each pair of files without their endings: the oldest Python, and those whose packages it leaves out."""
SYSTEMS = [("Linux", "linux", "x86_64"), ("Linux", "linux", "aarch64"), ("Darwin", "darwin", "arm64")]
PYTHONS = ["3.11", "3.12", "3.13"]
ENVIRONMENTS = [
    {
        "platform_system": system,
        "sys_platform": platform,
        "platform_machine": machine,
        "os_name": "posix",
        "python_version": python,
        "python_full_version": f"{python}.0",
    }
    for (system, platform, machine), python in itertools.product(SYSTEMS, PYTHONS)
]
MARKERS = [
    "",
    'platform_machine=="x86_64"',  # Linux: torch has no wheel for Intel Macs
    'platform_system=="Linux"',
    'python_version>="3.12"',
]


def holds(marker: Marker | None) -> list[bool]:
    """Where a marker holds, one value for each of ENVIRONMENTS."""
    return [marker is None or marker.evaluate(dict(environment)) for environment in ENVIRONMENTS]


def name_of(line: str) -> str:
    """The normalized name of the package of a requirement."""
    return canonicalize_name(Requirement(line).name)


def pin(line: str) -> str | None:
    """A line of uv's as a line for Cog: name==version, or name==version;marker. None if it holds nowhere."""
    requirement = Requirement(line)
    wanted = holds(requirement.marker)
    if not any(wanted):
        return None
    for marker in MARKERS:
        if holds(Marker(marker) if marker else None) == wanted:
            return f"{name_of(line)}{requirement.specifier}" + (f";{marker}" if marker else "")
    sys.exit(f"{line}: none of MARKERS in script/requirements.py says this.")


def compiled(name: str, arguments: Iterable[str]) -> list[str]:
    """The lines for name.txt."""
    python, others = FILES[name]
    target = ROOT / f"{name}.txt"
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "pins.txt"
        if target.exists():
            shutil.copy(target, output)  # uv keeps its versions
        command = ["uv", "pip", "compile", "--quiet", "--universal", "--python-version", python]
        command += ["--no-annotate", "--no-header", "--output-file", str(output)]
        for other in others:
            command += ["--constraints", f"{other}.txt"]
        if subprocess.run([*command, *arguments, f"{name}.in"], cwd=ROOT).returncode != 0:
            sys.exit(1)
        lines = output.read_text().splitlines()
    elsewhere = {name_of(line) for other in others for line in (ROOT / f"{other}.txt").read_text().splitlines()[1:]}
    return [pinned for line in lines if name_of(line) not in elsewhere and (pinned := pin(line))]


def main() -> None:
    """The command line. Arguments go to `uv pip compile`."""
    for name in FILES:
        lines = compiled(name, sys.argv[1:])
        head = f"# Written by script/write-requirements from {Path(name).name}.in."
        (ROOT / f"{name}.txt").write_text("\n".join([head, *lines]) + "\n")


if __name__ == "__main__":
    main()
