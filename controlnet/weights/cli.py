"""The command line behind script/download-weights, script/verify-weights and script/lock-weights."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from controlnet.settings import SettingsError
from controlnet.weights.download import describe, download, lock
from controlnet.weights.files import verify
from controlnet.weights.lockfile import WeightsError
from controlnet.weights.manifest import WEIGHTS, Manifest, ManifestError, bundle_names


def _download(manifest: Manifest, root: Path) -> str:
    if manifest.embedded:
        return f"{manifest.name} is embedded: its files are in git, and there is nothing to download."
    download(manifest, root, say=print)
    return f"{manifest.name}: {len(manifest.needed_paths)} files in place and verified."


def _verify(manifest: Manifest, root: Path) -> str:
    verify(manifest, root)
    return f"{manifest.name}: {len(manifest.needed_paths)} files have the locked size and sha256."


def _lock(manifest: Manifest, root: Path) -> str:
    return describe(lock(manifest, root), manifest, root)


COMMANDS: dict[str, tuple[Callable[[Manifest, Path], str], str]] = {
    "download": (_download, "Download and verify a bundle's weights. If they have no lock, it is written first."),
    "verify": (_verify, "Compare the size and sha256 of a bundle's weights with its lock."),
    "lock": (_lock, "Write a bundle's lock from the hub's current files (embedded bundle: from its files on disk)."),
}


def main(arguments: list[str] | None = None, root: Path = WEIGHTS) -> int:
    """Run one command and return the exit status. An error is printed to stderr as one message."""
    parser = argparse.ArgumentParser(prog="python -m controlnet.weights.cli")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, (_, summary) in COMMANDS.items():
        command = commands.add_parser(name, prog=f"script/{name}-weights", description=summary, help=summary)
        known = ", ".join(bundle_names(root))
        command.add_argument("bundle", nargs="?", default="sd15", help=f"one of: {known} (default: %(default)s)")
    options = parser.parse_args(arguments)
    run, _ = COMMANDS[options.command]
    try:
        print(run(Manifest.read(root / f"{options.bundle}.toml"), root))
    except (WeightsError, ManifestError, SettingsError, OSError) as error:  # OSError: full disk, no write permission
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Stopped. Files that are whole are kept: run the same command again to continue.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
