"""script/make-strip: the README's picture, made through the real server: picture, control map, two results a row."""

import base64
import io
import os
import sys
from pathlib import Path

from PIL import Image

from controlnet.choice import BUNDLE
from controlnet.client import decode_data_url
from controlnet.serving import Server

ROOT = Path(__file__).resolve().parents[1]
TILE = 256
ROWS = (
    ("doodle.png", "scribble", "a red house with a blue roof on grass under a blue sky"),
    ("doodle.png", "scribble", "a white house with a red roof on sand under an orange sky"),
    ("coffee.jpg", "scribble", "a white cylinder on a red background"),
    ("coffee.jpg", "scribble", "a blue ball on a yellow background"),
)


def tile(content: bytes) -> Image.Image:
    """A picture cut to a square of the strip."""
    picture = Image.open(io.BytesIO(content)).convert("RGB")
    side = min(picture.size)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    square = picture.crop((left, top, left + side, top + side))
    return square.resize((TILE, TILE), Image.Resampling.LANCZOS)


def main() -> None:
    """Writes examples/strip.png."""
    rows: dict[tuple[str, str], list[Image.Image]] = {}
    with Server(dict(os.environ) | {BUNDLE: "tiny"}) as server:
        server.wait_ready()
        for file, conditioner, prompt in ROWS:
            content = (ROOT / "examples" / file).read_bytes()
            image = f"data:image/{file.split('.')[1]};base64,{base64.b64encode(content).decode()}"
            inputs = {"prompt": prompt, "image": image, "conditioner": conditioner, "seed": 1}
            _, answer = server.predict(inputs | {"return_control_map": True, "output_format": "png"})
            if answer.get("status") != "succeeded":
                sys.exit(f"{file}: {answer.get('error')}")
            control_map, picture = (decode_data_url(url)[0] for url in answer["output"])
            rows.setdefault((file, conditioner), [tile(content), tile(control_map)]).append(tile(picture))
    strip = Image.new("RGB", (TILE * max(map(len, rows.values())), TILE * len(rows)))
    for y, row in enumerate(rows.values()):
        for x, picture in enumerate(row):
            strip.paste(picture, (x * TILE, y * TILE))
    strip.save(ROOT / "examples" / "strip.png", optimize=True)


if __name__ == "__main__":
    main()
