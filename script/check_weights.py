"""script/check-weights: load all files of a bundle and make one small picture with each of its conditioners.

If the bundle takes reference pictures, one is made like examples/coffee.jpg too.
"""

import argparse
import inspect
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import cog
from skimage import data, io

from controlnet.conditioners import BY_NAME
from controlnet.request.bundle_facts import BundleFacts
from controlnet.weights.manifest import BUNDLE


def requests(bundle: BundleFacts) -> dict[str, dict[str, Any]]:
    """What is drawn, by its name: the inputs that differ from picture to picture."""
    asked: dict[str, dict[str, Any]] = {name: {"conditioner": name} for name in bundle.conditioners}
    for name in asked:
        if BY_NAME[name].made_of == "holes":  # it needs something to repaint
            asked[name]["outpaint_right"] = 64
    if bundle.reference:
        asked["reference"] = {"reference_image": cog.Path("examples/coffee.jpg")}
    return asked


def draw(predictor: Any, image: Path, asked: dict[str, Any]) -> list[Path]:
    """Return the control map and one picture, made in 4 steps and with defaults for all inputs that are not `asked`."""
    signature = inspect.signature(type(predictor).predict)
    inputs = {name: parameter.default.default for name, parameter in signature.parameters.items() if name != "self"}
    inputs |= {"prompt": "a portrait of an astronaut", "image": cog.Path(image)} | asked
    inputs |= {"num_inference_steps": 4, "seed": 0, "return_control_map": True, "output_format": "png"}
    return predictor.predict(**inputs)


def main() -> None:
    """The command line. Exits with status 1 if a picture cannot be made."""
    parser = argparse.ArgumentParser(prog="script/check-weights", description=__doc__)
    parser.add_argument("bundle", nargs="?", default="sd15")
    parser.add_argument("-o", "--output", metavar="DIR", type=Path, default=Path("output/check-weights"))
    options = parser.parse_args()
    os.environ[BUNDLE] = options.bundle

    import predict  # after the environment has named the bundle

    predictor = predict.Predictor()
    predictor.setup()
    options.output.mkdir(parents=True, exist_ok=True)
    failed = False
    with tempfile.TemporaryDirectory() as folder:
        image = Path(folder) / "astronaut.png"
        io.imsave(image, data.astronaut())
        for name, asked in requests(predictor.model.bundle).items():
            try:
                control_map, picture = draw(predictor, image, asked)
            except Exception as error:  # any error: the others are still tried
                failed = True
                print(f"{name}: {type(error).__name__}: {error}", file=sys.stderr)
                continue
            for content, path in (("map", control_map), ("picture", picture)):
                shutil.copy(path, options.output / f"{name}-{content}.png")
            print(f"{name}: {options.output / f'{name}-picture.png'}")
    sys.exit(failed)


if __name__ == "__main__":
    main()
