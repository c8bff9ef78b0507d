"""script/bench/full-size: a prediction with every conditioner of a bundle, and its latents compared with diffusers'.

With a random bundle (script/make-random-bundle) the pictures mean nothing, but the table shows that every full-size
part loads, runs and has an effect.
"""

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler, StableDiffusionControlNetPipeline
from PIL import Image

from controlnet.bundle import Bundle, open_bundle
from controlnet.conditioners import BY_NAME
from controlnet.generation.generator import Generator
from controlnet.generation.job import Job
from controlnet.maps.controls import Control
from controlnet.maps.drawing import draw_control_map
from controlnet.settings import Settings
from controlnet.stopwatch import Stopwatch
from controlnet.weights.manifest import WEIGHTS

PROMPT = "a bird"
PHOTO = Path(__file__).resolve().parents[2] / "examples" / "cat.jpg"


def job(control: Control, steps: int) -> Job:
    return Job(PROMPT, "", (control,), 1, steps, 7.5, "DDIM", seed=5)


def latents_of(generator: Generator, asked: Job) -> torch.Tensor:
    """The final latents of this project's generator."""
    kept: list[torch.Tensor] = []
    decode: Any = generator._decode
    generator._decode = lambda latents, pipeline: kept.append(latents) or decode(latents, pipeline)  # type: ignore[method-assign]
    try:
        generator.generate(asked)
    finally:
        generator._decode = decode  # type: ignore[method-assign]
    return kept[0]


def diffusers_latents(generator: Generator, control: Control, steps: int) -> torch.Tensor:
    """The final latents of diffusers' pipeline with the same components."""
    parts: dict[str, Any] = dict(generator.base) | {"safety_checker": None, "feature_extractor": None}
    parts["scheduler"] = DDIMScheduler.from_config(parts["scheduler"].config)
    controlnet = generator.controlnets[control.conditioner]
    pipeline: Any = StableDiffusionControlNetPipeline(**parts, controlnet=controlnet, requires_safety_checker=False)
    return pipeline(
        PROMPT,
        image=control.control_map,
        num_inference_steps=steps,
        guidance_scale=7.5,
        controlnet_conditioning_scale=control.scale,
        generator=torch.Generator("cpu").manual_seed(5),
        output_type="latent",
    ).images


def row(bundle: Bundle, generator: Generator, annotators: Any, name: str, options: argparse.Namespace) -> str:
    """Measure one line of the table."""
    size = (options.side, options.side)
    started = time.perf_counter()
    control_map = draw_control_map(name, Image.open(PHOTO).convert("RGB"), size, True, annotators)
    drawn = time.perf_counter() - started
    phases: dict[str, float] = {}
    holes = Image.new("L", size, 255) if BY_NAME[name].made_of == "holes" else None
    control = Control(name, control_map, holes=holes)
    timed = Stopwatch(lambda phase, seconds: phases.__setitem__(phase, float(seconds)))
    started = time.perf_counter()
    generator.generate(job(control, options.steps), timed)
    whole = time.perf_counter() - started
    cells = [f"{drawn:.1f}", f"{phases['timing.denoise']:.1f}", f"{phases['timing.decode']:.1f}", f"{whole:.1f}"]
    if name in options.compare:
        ours, own = (
            latents_of(generator, job(control, options.steps)),
            diffusers_latents(generator, control, options.steps),
        )
        without = latents_of(generator, job(Control(name, control_map, scale=0.0), options.steps))
        cells += [f"{(ours - own).abs().max():.1e}", f"{(ours - without).abs().max():.2g}"]
    return f"| {name} | {' | '.join(cells + [''] * (6 - len(cells)))} |"


def main() -> None:
    """The command line: a Markdown table, row by row."""
    parser = argparse.ArgumentParser(prog="script/bench/full-size", description=__doc__)
    parser.add_argument("--bundle", default="sd15")
    parser.add_argument("--weights", metavar="DIR", type=Path, default=WEIGHTS, help="folder of bundle and manifest")
    parser.add_argument("--called-from", type=Path, default=Path(), help=argparse.SUPPRESS)
    parser.add_argument("--side", type=int, default=256, help="side of the pictures in pixels")
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--compare", action="append", default=[], help="a conditioner to compare with diffusers")
    options = parser.parse_args()
    bundle = open_bundle(Settings(bundle=options.bundle), options.called_from / options.weights)
    generator, annotators = Generator(bundle), bundle.annotators()
    print("| conditioner | map, s | denoising, s | decoding, s | generating, s | from diffusers' | from none |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name in bundle.manifest.conditioners:
        print(row(bundle, generator, annotators, name, options), flush=True)
    print(f"\nprecision {bundle.dtype}, torch {torch.__version__}, {sys.platform}")


if __name__ == "__main__":
    main()
