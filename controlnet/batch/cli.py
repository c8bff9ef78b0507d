"""The command line of script/batch."""

import argparse
import os
import sys
from pathlib import Path

from controlnet.batch.folder import URI, FolderError, join, plain
from controlnet.batch.jobs import Batch, BatchError, read_jobs
from controlnet.batch.leader import RayLost, lead
from controlnet.serving.arguments import typed_value
from controlnet.serving.schema import openapi_schema
from controlnet.settings import Settings, SettingsError
from controlnet.weights.files import check
from controlnet.weights.lockfile import WeightsError
from controlnet.weights.manifest import WEIGHTS, Manifest, ManifestError, choose_bundle

ROOT = Path(__file__).resolve().parents[2]
Json = dict


def main(arguments: list[str] | None = None) -> int:
    """Run a batch. Returns 0 if every job succeeded, 1 if some failed, and 130 if it was stopped.

    2 says that it could not start, or that its results could not be written, and 3 that Ray was lost.
    """
    options = _parser().parse_args(arguments)
    try:
        return _run(options)
    except (BatchError, FolderError, WeightsError, ManifestError, SettingsError) as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except RayLost as error:
        print(f"\n{error}", file=sys.stderr)
        return 3


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="script/batch",
        description="Make the pictures of many requests. The same command carries on where the last run ended. "
        "The bundle is CONTROLNET_BUNDLE.",
    )
    parser.add_argument("jobs", help="JSON lines or a CSV with a request in each line, or a folder of pictures")
    parser.add_argument("out", help="folder for the pictures and results.jsonl; a path, or a URI such as s3://…")
    parser.add_argument(
        "-i", "--input", action="append", default=[], metavar="NAME=VALUE", help="an input of all jobs without it"
    )
    parser.add_argument("--prompt", help="the same as -i prompt=…")
    parser.add_argument("--actors", type=_positive, help="how many models work at once (default: as many as fit)")
    parser.add_argument("--address", help="of a Ray cluster, such as auto or HOST:6379 (default: this machine alone)")
    parser.add_argument("--folder", default=".", help=argparse.SUPPRESS)
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("expected at least 1")
    return number


def _run(options: argparse.Namespace) -> int:
    schemas = openapi_schema((ROOT / "predict.py").read_text("utf-8"))["components"]["schemas"]
    bundle, reason = choose_bundle(Settings.read().bundle)
    if reason:
        print(f"bundle {bundle}: {reason}", file=sys.stderr)
    manifest = Manifest.read(WEIGHTS / f"{bundle}.toml")
    if not options.address:
        check(manifest, WEIGHTS)
    source, out = (_from(options.folder, place) for place in (options.jobs, options.out))
    known_as = "+".join([bundle, *sorted(manifest.options)])
    jobs = read_jobs(source, known_as, _shared(options, schemas), schemas)
    files = frozenset(name for name, field in schemas["Input"]["properties"].items() if field.get("format") == "uri")

    batch = Batch(
        jobs, out, bundle, files, manifest.cpu_threads, options.actors, options.address, environ=dict(os.environ)
    )
    counts = lead(batch)
    print(f"{join(options.out, 'results.jsonl')}: {counts['succeeded']} succeeded, {counts['failed']} failed")
    if counts["left"]:
        print(f"{counts['left']} jobs are left: the same command carries on.", file=sys.stderr)
        return 130
    return 1 if counts["failed"] else 0


def _from(folder: str, place: str) -> str:
    place = plain(place)
    return place if URI.match(place) else str(Path(folder) / Path(place).expanduser())


def _shared(options: argparse.Namespace, schemas: Json) -> Json:
    """The inputs of all jobs, from -i and --prompt."""
    pairs = options.input + ([f"prompt={options.prompt}"] if options.prompt is not None else [])
    shared: Json = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals or name not in schemas["Input"]["properties"]:
            raise BatchError(f"-i takes NAME=VALUE with the name of an input, got {pair!r}.")
        shared[name] = _from(options.folder, text) if _is_file(name, schemas) else typed_value(text, name, schemas)
    return shared


def _is_file(name: str, schemas: Json) -> bool:
    return schemas["Input"]["properties"][name].get("format") == "uri"


if __name__ == "__main__":
    sys.exit(main())
