"""script/make-strip: the strips of examples/, one per conditioner, made by the server with tiny."""

import argparse
import base64
import io
import os
import sys
from pathlib import Path

from PIL import Image

from controlnet.serving.api import decode_data_url
from controlnet.serving.server import Server
from controlnet.weights.manifest import BUNDLE
from tinyworld.sheets import square

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
TILE = 160
STRIPS: dict[str, tuple[str, tuple[str, ...]]] = {
    "canny": (
        "person.png",
        (
            "a person in a red shirt and white trousers on grass under an orange sky",
            "a person in a yellow shirt and red trousers on snow under a grey sky",
            "a person in a purple shirt and black trousers on sand under a blue sky",
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
            "a red house with a blue roof next to a green tree on grass under a blue sky",
            "a white house with a red roof next to a green tree on sand under an orange sky",
            "a yellow house with a brown roof next to a green tree on snow under a grey sky",
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
        "house.png",
        (
            "a red house with a grey roof on grass under a blue sky",
            "a blue house with a white roof on sand under an orange sky",
            "a pink house with a brown roof on snow under a grey sky",
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

UNCONVINCING = ("seg", "tile", "inpaint")
"""Their strips are not in the documentation: tiny does not paint them well enough to show what they are for."""


def middle() -> str:
    """A mask with a white middle, as a data URL."""
    mask, buffer = Image.new("L", (128, 128)), io.BytesIO()
    mask.paste(255, (28, 40, 100, 124))
    mask.save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


LORA_SCALES = (0, 0.5, 1, -0.5)
LORA_PROMPT = "a yellow house with a brown roof next to a green tree on grass under a blue sky"
"""Of the strip of examples/night.safetensors."""
REFERENCES = ("coffee.jpg", "room.png", "person.png")
REFERENCE_PROMPT = "a house"
"""Of the strip that shows reference pictures, files of examples/."""
ENLARGED: dict[str, object] = {
    "prompt": "a blue house with a pink roof next to a green tree on sand under an orange sky",
    "conditioner": "scribble",
    "go_fast": True,
}
"""Inputs of the strip that shows upscale."""
WIDE = 384
"""Side of its two pictures, pixels of the large one."""
CORNER = (330, 350)
"""Left and upper side of what they show."""
MORE: dict[str, dict[str, object]] = {"inpaint": {"mask": middle()}}
"""Additional inputs for a conditioner's strip."""


def night() -> tuple[str, str, list[dict[str, object]]]:
    """The conditioner, the picture and the inputs of the strip that shows a LoRA at several scales."""
    lora = base64.b64encode((EXAMPLES / "night.safetensors").read_bytes()).decode()
    inputs: dict[str, object] = {
        "prompt": LORA_PROMPT,
        "lora_weights": f"data:application/octet-stream;base64,{lora}",
    }
    return "scribble", "doodle.png", [inputs | {"lora_scale": scale} for scale in LORA_SCALES]


def like() -> tuple[str, str, list[dict[str, object]]]:
    """The conditioner, the picture and the inputs of the strip that shows reference pictures."""
    inputs: dict[str, object] = {"prompt": REFERENCE_PROMPT, "reference_scale": 1}
    return "scribble", "doodle.png", [inputs | {"reference_image": data_url(file)} for file in REFERENCES]


SPECIAL = {"night": night, "reference": like}
"""The strips of one conditioner that show something else."""


def data_url(file: str) -> str:
    """A file of examples/."""
    return f"data:image/{file.split('.')[1]};base64,{base64.b64encode((EXAMPLES / file).read_bytes()).decode()}"


def example(file: str) -> Image.Image:
    """A picture of examples/."""
    return Image.open(EXAMPLES / file).convert("RGB")


def pictures_of(server: Server, inputs: dict[str, object]) -> list[Image.Image]:
    """What a request returns. Exits with its error if it fails."""
    _, answer = server.predict({"seed": 1, "output_format": "png", **inputs})
    if answer.get("status") != "succeeded":
        sys.exit(f"{inputs['conditioner']}: {answer.get('error')}")
    return [Image.open(io.BytesIO(decode_data_url(url)[0])).convert("RGB") for url in answer["output"]]


def upscale(server: Server) -> Image.Image:
    """The same part of a picture that is merely enlarged, and of one with upscale 4."""
    inputs = ENLARGED | {"image": data_url("doodle.png")}
    small, large = (pictures_of(server, inputs | more)[0] for more in ({}, {"upscale": 4.0}))
    enlarged = small.resize(large.size, Image.Resampling.LANCZOS)
    return tiled([[each.crop((*CORNER, CORNER[0] + WIDE, CORNER[1] + WIDE)) for each in (enlarged, large)]], WIDE)


def tiled(rows: list[list[Image.Image]], side: int) -> Image.Image:
    """Rows of pictures, each `side` pixels wide and high."""
    strip = Image.new("RGB", (side * len(rows[0]), side * len(rows)))
    for y, row in enumerate(rows):
        for x, tile in enumerate(row):
            strip.paste(square(tile, side), (x * side, y * side))
    return strip


def make(server: Server, name: str) -> Image.Image:
    """The picture, its control map and the results, side by side; reference pictures are above their results."""
    if name == "upscale":
        return upscale(server)
    if name in SPECIAL:
        conditioner, file, results = SPECIAL[name]()
    else:
        conditioner, (file, prompts) = name, STRIPS[name]
        results = [{"prompt": prompt} for prompt in prompts]
    usual = {"image": data_url(file), "conditioner": conditioner, "return_control_map": True}
    made = [pictures_of(server, usual | MORE.get(conditioner, {}) | result) for result in results]
    painted = [made[0][0], *(picture for _, picture in made)]
    if name == "reference":
        return tiled([[example(file), *map(example, REFERENCES)], painted], TILE)
    return tiled([[example(file), *painted]], TILE)


def main() -> None:
    """The command line of script/make-strip."""
    parser = argparse.ArgumentParser(
        prog="script/make-strip", description="Write examples/strip-<name>.jpg with the tiny bundle."
    )
    known = [*STRIPS, *SPECIAL, "upscale"]
    parser.add_argument(
        "name",
        nargs="*",
        metavar="NAME",
        help=f"a conditioner, night, reference or upscale; default: {', '.join(known)}",
    )
    chosen = parser.parse_args().name or known
    if unknown := [name for name in chosen if name not in known]:
        parser.error(f"script/strip.py has no strip for {', '.join(unknown)}: it has {', '.join(known)}.")
    with Server(dict(os.environ) | {BUNDLE: "tiny"}) as server:
        server.wait_ready()
        for name in chosen:
            make(server, name).save(EXAMPLES / f"strip-{name}.jpg", quality=90)


if __name__ == "__main__":
    main()
