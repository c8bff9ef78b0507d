"""script/check-weights: load all files of a bundle and make one small picture with each of its conditioners."""

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
from controlnet.weights.manifest import BUNDLE


def draw(predictor: Any, image: Path, conditioner: str) -> list[Path]:
    """Return the control map and one picture, made in 4 steps and with defaults for all other inputs."""
    signature = inspect.signature(type(predictor).predict)
    inputs = {name: parameter.default.default for name, parameter in signature.parameters.items() if name != "self"}
    inputs |= {"prompt": "a portrait of an astronaut", "image": cog.Path(image), "conditioner": conditioner}
    inputs |= {"num_inference_steps": 4, "seed": 0, "return_control_map": True, "output_format": "png"}
    if BY_NAME[conditioner].made_of == "holes":  # it needs something to repaint
        inputs["outpaint_right"] = 64
    return predictor.predict(**inputs)


def main() -> None:
    """The command line. Exits with status 1 if a conditioner gives no picture."""
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
        for conditioner in predictor.model.bundle.manifest.conditioners:
            try:
                control_map, picture = draw(predictor, image, conditioner)
            except Exception as error:  # any error: the other conditioners are still tried
                failed = True
                print(f"{conditioner}: {type(error).__name__}: {error}", file=sys.stderr)
                continue
            for content, path in (("map", control_map), ("picture", picture)):
                shutil.copy(path, options.output / f"{conditioner}-{content}.png")
            print(f"{conditioner}: {options.output / f'{conditioner}-picture.png'}")
    sys.exit(failed)


if __name__ == "__main__":
    main()
