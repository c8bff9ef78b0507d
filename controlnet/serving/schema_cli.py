"""script/write-schema: write the schema, or compare it with one written by `cog build`."""

import argparse
import importlib.metadata
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from controlnet.serving.schema import SchemaError, openapi_schema, write_schema


def differences(ours: Any, theirs: Any, place: str = "") -> Iterator[str]:
    """Yield a line for each place where two documents differ. 1 and 1.0 are equal."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        for key in sorted(ours.keys() | theirs.keys()):
            here = f"{place}.{key}" if place else key
            if key not in theirs:
                yield f"{here}: only ours has it"
            elif key not in ours:
                yield f"{here}: only Cog's has it"
            else:
                yield from differences(ours[key], theirs[key], here)
    elif isinstance(ours, bool) is not isinstance(theirs, bool) or ours != theirs:
        yield f"{place}: ours is {json.dumps(ours)}, Cog's is {json.dumps(theirs)}"


def compare(root: Path, file: Path) -> list[str]:
    """Return how the document in `file` differs from that of root/predict.py, ignoring the version of Cog."""
    ours, theirs = openapi_schema((root / "predict.py").read_text()), json.loads(file.read_text())
    for document in (ours, theirs):
        document.get("info", {}).pop("version", None)
    return list(differences(ours, theirs))


def main() -> None:
    """The command line of script/write-schema."""
    parser = argparse.ArgumentParser(prog="script/write-schema", description="Write .cog/openapi_schema.json.")
    parser.add_argument("--compare", metavar="FILE", type=Path, help="compare with a document that cog build wrote")
    options = parser.parse_args()
    try:
        if not options.compare:
            print(write_schema(Path.cwd(), importlib.metadata.version("cog")).relative_to(Path.cwd()))
        elif lines := compare(Path.cwd(), options.compare):
            sys.exit("\n".join(lines))
    except SchemaError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
