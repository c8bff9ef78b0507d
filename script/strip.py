"""script/make-strip: the pictures of the documentation, one strip per conditioner, made by the server with tiny."""

import argparse
import base64
import io
import os
import sys
from pathlib import Path

from PIL import Image

from controlnet.serving.output_files import decode_data_url
from controlnet.serving.server import Server
from controlnet.weights.manifest import BUNDLE
from tinyworld.sheets import square

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
TILE = 160
STRIPS: dict[str, tuple[str, tuple[str, ...]]] = {
    "canny": (
        "things.png",
        (
            "a green ball beside a red box in a grey room with a white floor",
            "a pink ball beside a black box in a yellow room with a green floor",
            "an orange ball beside a white box in a purple room with a blue floor",
        ),
    ),
    "hed": (
        "house.png",
        (
            "a white house with a red roof on sand under a blue sky",
            "a yellow house with a green roof on snow under a grey sky",
            "a purple house with a blue roof on grass under an orange sky",
        ),
    ),
    "mlsd": (
        "room.png",
        (
            "a red table in a white room with a brown floor",
            "a blue table in a yellow room with a grey floor",
            "a white table in a green room with a black floor",
        ),
    ),
    "depth": (
        "room.png",
        (
            "a green table in a pink room with a white floor",
            "a black table in an orange room with a yellow floor",
            "a yellow table in a blue room with a purple floor",
        ),
    ),
    "openpose": (
        "person.png",
        (
            "a person in a red shirt and blue trousers on grass under a blue sky",
            "a person in a white shirt and black trousers in a yellow room with a brown floor",
            "a person in a green shirt and orange trousers on snow under a grey sky",
        ),
    ),
    "scribble": (
        "doodle.png",
        (
            "a red house with a blue roof on grass under a blue sky",
            "a white house with a red roof on sand under an orange sky",
            "a green house with a brown roof on snow under a grey sky",
        ),
    ),
    "seg": (
        "house.png",
        (
            "a pink house with a black roof on asphalt under a black sky",
            "a blue house with a white roof on sand under an orange sky",
            "a red house with a grey roof on grass under a blue sky",
        ),
    ),
    "normal": (
        "things.png",
        (
            "a red ball and a blue box in a white room with a grey floor",
            "a yellow ball and a purple box in a green room with a brown floor",
            "a white ball and an orange box in a blue room with a black floor",
        ),
    ),
    "lineart": (
        "house.png",
        (
            "a yellow house with a red roof on grass under a blue sky",
            "a blue house with a black roof on snow under an orange sky",
            "a white house with a green roof on sand under a grey sky",
        ),
    ),
    "tile": (
        "things.png",
        (
            "a red ball beside a blue box in a yellow room",
            "a red ball and a blue box",
            "many things",
        ),
    ),
    "inpaint": (
        "person.png",
        (
            "a red ball on snow under a black sky",
            "a yellow pyramid on snow under a black sky",
            "a green box on snow under a black sky",
        ),
    ),
}
"""For each conditioner, the input picture (a file of examples/) and the prompts. Each prompt gives one result."""


def middle() -> str:
    """A mask with a white middle, as a data URL."""
    mask, buffer = Image.new("L", (128, 128)), io.BytesIO()
    mask.paste(255, (28, 40, 100, 124))
    mask.save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


MORE: dict[str, dict[str, object]] = {"inpaint": {"mask": middle()}}
"""Additional inputs for a conditioner's strip."""


def make(server: Server, conditioner: str) -> Image.Image:
    """The picture, its control map and the results, side by side."""
    file, prompts = STRIPS[conditioner]
    content = (EXAMPLES / file).read_bytes()
    tiles = [content]
    for prompt in prompts:
        inputs = {
            "prompt": prompt,
            "image": f"data:image/{file.split('.')[1]};base64,{base64.b64encode(content).decode()}",
            "conditioner": conditioner,
            "seed": 1,
            "return_control_map": True,
            "output_format": "png",
            **MORE.get(conditioner, {}),
        }
        _, answer = server.predict(inputs)
        if answer.get("status") != "succeeded":
            sys.exit(f"{conditioner}: {answer.get('error')}")
        control_map, picture = (decode_data_url(url)[0] for url in answer["output"])
        tiles += [picture] if len(tiles) > 1 else [control_map, picture]
    strip = Image.new("RGB", (TILE * len(tiles), TILE))
    for x, tile in enumerate(tiles):
        strip.paste(square(Image.open(io.BytesIO(tile)).convert("RGB"), TILE), (x * TILE, 0))
    return strip


def main() -> None:
    """The command line of script/make-strip."""
    parser = argparse.ArgumentParser(
        prog="script/make-strip", description="Write examples/strip-<conditioner>.jpg with the tiny bundle."
    )
    parser.add_argument("conditioner", nargs="*", metavar="CONDITIONER", help=f"default: {', '.join(STRIPS)}")
    chosen = parser.parse_args().conditioner or list(STRIPS)
    if unknown := [name for name in chosen if name not in STRIPS]:
        parser.error(f"script/strip.py has no strip for {', '.join(unknown)}: it has {', '.join(STRIPS)}.")
    with Server(dict(os.environ) | {BUNDLE: "tiny"}) as server:
        server.wait_ready()
        for conditioner in chosen:
            make(server, conditioner).save(EXAMPLES / f"strip-{conditioner}.jpg", quality=90)


if __name__ == "__main__":
    main()
