"""Measures how well a bundle's pictures obey control map and prompt, on scenes that no training has seen.

The control map is drawn from the rendered scene, a picture is generated from it and the scene's caption, and the
evaluation network (judge.py) says how much of what the map asks for is in the picture. Beside it stand the floor, the
same picture scored against the maps of other scenes, and the ceiling, the rendered scene scored against its own map.
"""

import argparse
import io
import json
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from controlnet.annotators.tiny_network import TinyVisionModel
from controlnet.bundle import open_bundle
from controlnet.choice import BUNDLE
from controlnet.conditioners import draw_control_map
from controlnet.generation import Control, Generator, Request
from controlnet.loading import load_pretrained
from controlnet.manifest import WEIGHTS
from tinyworld import sheets
from tinyworld.dataset import HELD_OUT, SIZE, Sample, sample_of
from tinyworld.export import EVALUATOR
from tinyworld.hints import HINTS, draw_from_truth
from tinyworld.judge import READINGS, Judge, colour_of, wanted
from tinyworld.render import FIRST_SOLID, render
from tinyworld.scene import Scene, make_scene, recoloured
from tinyworld.things import COLOURS

OTHERS = 4
"""How many other scenes' maps a picture's floor is the mean over."""
JOINTS_IN_VIEW = 9
"""A scene says something about poses where this many joints of somebody can be seen."""
PIXELS_OF_LINES = 40
"""A scene says something about straight lines where so many pixels of them can be seen."""
MAIN_SOLIDS = {"ball", "box", "cone", "cylinder", "pyramid", "table", "chair", "tree", "house", "shirt"}
"""The solids that have the colour which the caption names, of things that have solids of other colours too."""

Fits = Callable[[Scene, Sample], bool]


@dataclass(frozen=True)
class Case:
    """A held-out scene: as it is, as a picture of the bundle's size, and its truth at 128 pixels."""

    scene: Scene
    picture: Image.Image
    sample: Sample


@dataclass(frozen=True)
class Quality:
    """One conditioner's figures, means over the scenes."""

    metric: str
    value: float
    """In the metric's own unit."""
    score: float
    floor: float
    ceiling: float
    share: float
    """(score − floor) / (ceiling − floor): 0 by chance, 1 as good as the rendered scene itself."""
    scenes: int


class Painter:
    """The bundle under test: draws control maps and generates pictures as a request with its defaults would."""

    def __init__(self, bundle_name: str, maps: str, weights: Path = WEIGHTS) -> None:
        """`maps`: "drawn", by the bundle's annotators from the scene's picture, or "truth", by the renderer."""
        self.bundle = open_bundle({BUNDLE: bundle_name}, weights)
        self.generator = Generator(self.bundle)
        self.annotators = self.bundle.annotators()
        self.maps = maps
        self.size = (self.bundle.manifest.defaults.resolution,) * 2

    def control_map(self, conditioner: str, case: Case) -> Image.Image:
        # canny and scribble have no truth: their maps are what their annotators make of a picture.
        if self.maps == "drawn" or HINTS[conditioner].from_picture is None:
            return draw_control_map(conditioner, case.picture, self.size, True, self.annotators)
        ready = draw_from_truth(HINTS[conditioner], case.sample)
        return draw_control_map(conditioner, ready, self.size, False, self.annotators)

    def paint(self, conditioner: str, control_map: Image.Image, prompt: str, seed: int) -> Image.Image:
        defaults = self.bundle.manifest.defaults
        request = Request(
            prompt=prompt,
            negative_prompt="",
            controls=(Control(conditioner, control_map),),
            num_outputs=1,
            num_inference_steps=defaults.num_inference_steps,
            guidance_scale=defaults.guidance_scale,
            scheduler=defaults.scheduler,
            seed=seed,
        )
        with redirect_stderr(io.StringIO()):  # no bar for each of hundreds of pictures
            return self.generator.generate(request)[0]


def shows_people(_: Scene, sample: Sample) -> bool:
    return bool(((sample.people[..., 2] > 0).sum(1) >= JOINTS_IN_VIEW).any())


def shows_lines(_: Scene, sample: Sample) -> bool:
    return int((sample.straight > 0).sum()) >= PIXELS_OF_LINES


def shows_anything(*_: object) -> bool:
    return True


SUBJECTS: dict[str, Fits] = {"openpose": shows_people, "mlsd": shows_lines}
"""Which scenes say something about a conditioner, where not all do."""


def shows_one_thing(scene: Scene, _: Sample) -> bool:
    return len(scene.things) == 1 and main_pixels(scene).sum() >= 100


def main_pixels(scene: Scene) -> np.ndarray:
    """(128, 128) bool: where the first thing's solids of its named colour are seen."""
    solids = scene.things[0].solids
    numbers = [FIRST_SOLID + i for i, solid in enumerate(solids) if solid.label in MAIN_SOLIDS]
    return np.isin(render(scene, SIZE).ids, numbers)


def held_out(size: int, fits: Fits = shows_anything) -> Iterator[Case]:
    """Scenes after the last that training may see, which `fits`, with pictures of `size` pixels a side."""
    seed = HELD_OUT
    while True:
        scene = make_scene(seed)
        sample = sample_of(scene)
        if fits(scene, sample):
            picture = sample.picture if size == SIZE else render(scene, size).picture
            yield Case(scene, Image.fromarray(picture), sample)
        seed += 1


def measure(conditioner: str, painter: Painter, judge: Judge, count: int) -> Quality:
    """Score `count` pictures of one conditioner; picture i has seed i."""
    compare = READINGS[conditioner].compare
    cases = list(islice(held_out(painter.size[0], SUBJECTS.get(conditioner, shows_anything)), count))
    asked, painted, source = [], [], []
    for i, case in enumerate(cases):
        control_map = painter.control_map(conditioner, case)
        picture = painter.paint(conditioner, control_map, case.scene.caption, i)
        asked.append(wanted(conditioner, small(control_map, exact=conditioner == "seg"), case.sample.people))
        painted.append(judge.found(conditioner, small(picture)))
        source.append(judge.found(conditioner, small(case.picture)))
    marks = np.array([compare(found, asked[i]) for i, found in enumerate(painted)])
    ceiling = np.mean([compare(found, asked[i])[1] for i, found in enumerate(source)])
    others = range(1, min(OTHERS, count - 1) + 1)
    floor = np.mean([compare(painted[i], asked[(i + step) % count])[1] for i in range(count) for step in others])
    value, score = marks.mean(0)
    share = (score - floor) / (ceiling - floor)
    return Quality(READINGS[conditioner].metric, *(float(v) for v in (value, score, floor, ceiling, share)), count)


def measure_colours(painter: Painter, judge: Judge, count: int) -> dict[str, float]:
    """How often the one thing of a scene has the colour that the prompt gives it, another one than it was rendered in.

    Controlled by canny, so that the thing is where it was; `ceiling` is how often the rendered thing's own colour is
    read right, `chance` that of a colour drawn blindly.
    """
    cases = list(islice(held_out(painter.size[0], shows_one_thing), count))
    right = read = 0
    for i, case in enumerate(cases):
        rng, old = np.random.default_rng(i), case.scene.things[0].colour
        new = str(rng.choice([name for name in COLOURS if name != old]))
        prompt = recoloured(case.scene.caption, rng, new, only_first=True)
        picture = painter.paint("canny", painter.control_map("canny", case), prompt, i)
        where = main_pixels(case.scene)
        right += colour_of(np.asarray(small(picture))[where]) == new
        read += colour_of(case.sample.picture[where]) == old
    return {"right": right / count, "chance": 1 / len(COLOURS), "ceiling": read / count, "scenes": count}


def small(picture: Image.Image, exact: bool = False) -> Image.Image:
    """As the evaluation network looks at it, 128 pixels a side."""
    if picture.size == (SIZE, SIZE):
        return picture
    return picture.resize((SIZE, SIZE), Image.Resampling.NEAREST if exact else Image.Resampling.LANCZOS)


def as_toml(qualities: dict[str, Quality], colours: dict[str, float] | None) -> str:
    """The figures as a manifest has them; the README's table is made from there."""
    tables: dict[str, dict[str, Any]] = {name: asdict(quality) for name, quality in qualities.items()}
    if colours:
        tables["prompt_colour"] = colours
    lines = []
    for name, figures in tables.items():
        lines += [f"[made.quality.{name}]"]
        lines += [
            f"{key} = {json.dumps(round(value, 3) if isinstance(value, float) else value, ensure_ascii=False)}"
            for key, value in figures.items()
        ]
        lines += [""]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="script/evaluate", description=__doc__.partition("\n")[0])
    parser.add_argument("--bundle", default="tiny", help="the bundle to measure")
    parser.add_argument("--weights", type=Path, default=WEIGHTS, help="folder of the bundle's manifest and files")
    parser.add_argument("--evaluator", type=Path, default=EVALUATOR, help="folder of the network that scores")
    parser.add_argument("--scenes", type=int, default=64, help="held-out scenes per conditioner, at least 2")
    parser.add_argument("--conditioner", action="append", default=[], choices=list(READINGS), help="only this one")
    parser.add_argument("--maps", choices=["drawn", "truth"], default="drawn", help="drawn by the bundle's annotators")
    parser.add_argument("--output", type=Path, default=Path("output/evaluation"), help="folder for figures and sheets")
    arguments = parser.parse_args()
    if arguments.scenes < 2:
        parser.error(f"--scenes: expected at least 2, since the floor needs another scene, got {arguments.scenes}")
    painter = Painter(arguments.bundle, arguments.maps, arguments.weights)
    judge = Judge(load_pretrained(TinyVisionModel, arguments.evaluator, torch.device("cpu")))
    names = [name for name in arguments.conditioner or READINGS if name in painter.annotators]
    qualities: dict[str, Quality] = {}
    for name in names:
        started = time.monotonic()
        qualities[name] = measure(name, painter, judge, arguments.scenes)
        print(f"{name}: {qualities[name]} in {time.monotonic() - started:.0f} s", flush=True)
    colours = measure_colours(painter, judge, arguments.scenes) if "canny" in names else None
    folder = arguments.output / arguments.bundle
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "quality.toml").write_text(as_toml(qualities, colours), encoding="utf-8")
    sheets.scenes(painter, names).save(folder / "scenes.png")
    sheets.photographs(painter, names).save(folder / "photographs.png")
    print(as_toml(qualities, colours) + f"\nIn {folder}/: quality.toml, scenes.png, photographs.png")


if __name__ == "__main__":
    main()
