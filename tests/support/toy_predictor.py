"""A small predictor for tests of the server and the client: it prints, counts, fails or waits as requested.

A wait ends before its time once the file that the prompt names is there.
"""

from pathlib import Path

SOURCE = """
import os
import sys
import tempfile
import time
from typing import Optional

from cog import BasePredictor, Input, Path

MODES = ["echo", "fail", "bar", "type"]


class Predictor(BasePredictor):
    def setup(self):
        print("loading part 1 of 2")
        if os.environ.get("TOY_SETUP") == "fail":
            time.sleep(0.5)  # coglet loses what a setup prints in the instant before it fails
            raise ValueError("unet is missing; script/download-weights fetches it.")
        print("loading part 2 of 2")

    def predict(
        self,
        prompt: str = Input(description="What to say."),
        image: Optional[Path] = Input(default=None, description="A file."),
        mode: str = Input(default="echo", choices=MODES, description="What to do."),
        count: int = Input(default=1, ge=1, le=4, description="How many."),
        seconds: float = Input(default=0, ge=0, le=60, description="How long."),
        loud: bool = Input(default=False, description="In capitals."),
    ) -> list[Path]:
        if mode == "fail":
            raise ValueError("a 1x1 picture is too small; send one of at least 16 pixels.")
        if mode == "bar":
            print("seed: 4294967295")
            print("ignored: loud (only for echo)")
        try:
            end = time.monotonic() + seconds
            while time.monotonic() < end and not (os.path.isabs(prompt) and os.path.exists(prompt)):
                time.sleep(0.01)
        except BaseException as error:
            print("cleaning up after", type(error).__name__)
            raise
        if mode == "bar":
            for step in range(3):
                sys.stderr.write(f"\\r{50 * step}%|###| {step}/2")
                sys.stderr.flush()
        self.record_metric("seed", 4294967295)
        self.record_metric("worker", os.getpid())
        files = []
        for index in range(count):
            path = os.path.join(tempfile.mkdtemp(), f"out.{['webp', 'jpg', 'png', 'png'][index]}")
            content = open(image, "rb").read() if image and mode == "echo" else prompt.encode()
            content = content.upper() if loud else content
            content = f"{type(image).__module__} {image}".encode() if mode == "type" else content
            open(path, "wb").write(content)
            files.append(Path(path))
        return files
"""

ENVIRON = {"CONTROLNET_BUNDLE": "toy"}


def write(folder: Path) -> Path:
    """Write SOURCE to folder/predict.py and return the folder, for use as the root of a server."""
    (folder / "predict.py").write_text(SOURCE)
    return folder
