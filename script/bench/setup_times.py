"""script/bench/setup: the time and memory that loading a bundle takes with setup() and with plain from_pretrained.

Each way runs in a new process: once cold, with the files dropped from the system's cache as after a reboot, and once
warm. Imports are not counted. Both ways load the same parts in the same precision to the same device. The .pth files
of annotators are loaded by this project both times. setup() leaves the ControlNets in their files on a CPU and in main
memory in low-memory mode, and the table says so. Its seconds include the first picture, the warm-up.
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from controlnet.bundle import Bundle, open_bundle
from controlnet.generation.generator import Generator
from controlnet.generation.safety import open_safety_checker
from controlnet.models.load_log import peak_memory
from controlnet.models.precision import working_dtype
from controlnet.settings import Settings
from controlnet.weights.manifest import WEIGHTS, Manifest

ROOM = 2e9
"""Bytes of memory that are left for the rest of the machine."""
UNKNOWN = " |" * 4
"""The empty cells of a row without measurements."""


class PlainBundle(Bundle):
    """A bundle whose models are loaded as diffusers and transformers document it, one after the other."""

    def read_ahead(self) -> None:
        pass

    def model(self, model_class: Any, part: str, mapped: bool = False, device: torch.device | None = None) -> Any:
        with self.log(part, self.files(part)):
            dtype: Any = {"dtype" if PreTrainedModel in model_class.__mro__ else "torch_dtype": self.dtype}
            variant = "fp16" if any(self.folder(part).glob("*.fp16.*")) else None
            model = model_class.from_pretrained(self.folder(part), variant=variant, local_files_only=True, **dtype)
            return model.to(device or self.device)


def load_ours(bundle: Bundle) -> Bundle:
    """Load as setup() in predict.py does. Returns the bundle that was loaded."""
    generator = Generator(bundle)
    kept = bundle.annotators(), open_safety_checker(bundle)
    bundle.log.summarise()
    generator.warm_up()
    del kept
    return bundle


def load_plain(bundle: Bundle) -> Bundle:
    """Load all parts with from_pretrained, all on the device in any mode. Returns the bundle that was loaded."""
    plain = PlainBundle(bundle.manifest, bundle.root, bundle.device, bundle.dtype)
    base = plain.base()
    kept = base, plain.controlnets(), plain.annotators(), open_safety_checker(plain)
    kept += (plain.references(base["unet"]),)
    plain.fast_lora(base["unet"])  # read at its first use, in both ways
    del kept
    return plain


WAYS: dict[str, Callable[[Bundle], Bundle]] = {"setup()": load_ours, "plain from_pretrained": load_plain}


def measure(way: str, name: str, root: Path) -> dict[str, Any]:
    """Load in this process. Returns seconds, peak memory, precision, and the place of the ControlNets."""
    started = time.perf_counter()
    with contextlib.redirect_stdout(sys.stderr):
        asked = Settings.read()
        loaded = WAYS[way](open_bundle(Settings(bundle=name, dtype=asked.dtype, low_memory=asked.low_memory), root))
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    seconds = time.perf_counter() - started
    precision = str(loaded.dtype).removeprefix("torch.")
    return {"seconds": seconds, "memory": peak_memory(), "precision": precision, "nets": where_nets_are(loaded)}


def where_nets_are(bundle: Bundle) -> str:
    """The place in which a bundle keeps its ControlNets until a request uses them."""
    if bundle.low_memory:
        return "main memory (low-memory mode)"
    in_files = bundle.device.type == "cpu" and not isinstance(bundle, PlainBundle)
    return "files" if in_files else bundle.device.type


def drop_from_cache(files: list[Path]) -> None:
    """Drop the files from the system's cache, so the next read comes from the disk."""
    for file in files:
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read_into_cache(files: list[Path]) -> None:
    """Read the files completely."""
    for file in files:
        with file.open("rb") as opened:
            while opened.read(1 << 24):
                pass


def shortage(size: int) -> str:
    """Why the CPU's memory is too small for `size` bytes of fp16 files; "" if it is large enough or unknown.

    Running out of memory may end other programs, too.
    """
    meminfo = Path("/proc/meminfo")
    if torch.cuda.is_available() or not meminfo.exists():
        return ""
    free = next(int(line.split()[1]) * 1024 for line in meminfo.read_text().splitlines() if "MemAvailable" in line)
    needed = size * working_dtype(torch.device("cpu")).itemsize / 2 + ROOM
    return f"not run: needs {needed / 1e9:.0f} GB" if needed > free else ""


def row(way: str, cold: bool, options: argparse.Namespace, files: list[Path]) -> str:
    """Measure one line of the table."""
    size = sum(file.stat().st_size for file in files)
    head = f"| {way} | {'cold' if cold else 'warm'} |"
    if way != "setup()" and (why := shortage(size)):
        return f"{head} {why} |{UNKNOWN}"
    (drop_from_cache if cold else read_into_cache)(files)
    arguments = ["--bundle", options.bundle, "--weights", str(options.weights), "--way", way]
    done = subprocess.run([sys.executable, __file__, *arguments], capture_output=True, text=True)
    if done.returncode:
        print(done.stderr, file=sys.stderr)
        return f"{head} failed with status {done.returncode} |{UNKNOWN}"
    got = json.loads(done.stdout.splitlines()[-1])
    speed = size / 1e9 / got["seconds"]
    return f"{head} {got['seconds']:.1f} | {speed:.2f} | {got['memory']} | {got['precision']} | {got['nets']} |"


def main() -> None:
    """The command line: a Markdown table, row by row."""
    parser = argparse.ArgumentParser(prog="script/bench/setup", description=__doc__)
    parser.add_argument("--bundle", default="sd15")
    parser.add_argument("--weights", metavar="DIR", type=Path, default=WEIGHTS, help="folder of bundle and manifest")
    parser.add_argument("--called-from", type=Path, default=Path(), help=argparse.SUPPRESS)
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.weights = options.called_from / options.weights
    if options.way:
        print(json.dumps(measure(options.way, options.bundle, options.weights)))
        return
    manifest = Manifest.read(options.weights / f"{options.bundle}.toml")
    files = [options.weights / part.bundle / path for part in manifest.needed_parts for path in part.paths]
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{os.cpu_count()} CPU cores"
    size = sum(file.stat().st_size for file in files)
    print(f"{options.bundle}: {len(manifest.needed_parts)} parts, {size / 1e9:.2f} GB of files; {device}\n")
    print("| way | files in cache | seconds | GB/s | peak memory | precision | ControlNets in |")
    print(f"|{' --- |' * 7}")
    for cold in (True, False):
        for way in WAYS:
            print(row(way, cold, options, files), flush=True)


if __name__ == "__main__":
    main()
