"""A new process until its first picture, and loading alone, for script/bench/speed: in processor time."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from command_times import timed
from speed_clock import Times
from speed_sides import NEGATIVE, PROMPT, SEED, Setting

from controlnet.serving.server import ROOT
from controlnet.weights.manifest import BUNDLE, WEIGHTS

PLAIN = f"""
import sys
import torch
from diffusers import (AutoencoderKL, AutoencoderTiny, ControlNetModel, DDIMScheduler,
    StableDiffusionControlNetPipeline, UNet2DConditionModel)
from PIL import Image
from transformers import CLIPTextModel, CLIPTokenizer
folder, vae, conditioner, control_map, steps, file = sys.argv[1:]
half = {{"variant": "fp16"}}
pipeline = StableDiffusionControlNetPipeline(
    tokenizer=CLIPTokenizer.from_pretrained(folder, subfolder="tokenizer"),
    text_encoder=CLIPTextModel.from_pretrained(folder, subfolder="text_encoder", dtype=torch.float32, **half),
    unet=UNet2DConditionModel.from_pretrained(folder, subfolder="unet", torch_dtype=torch.float32, **half),
    vae=globals()[vae].from_pretrained(folder, subfolder="vae", torch_dtype=torch.float32, **half),
    controlnet=ControlNetModel.from_pretrained(
        folder, subfolder="controlnet/" + conditioner, torch_dtype=torch.float32, **half),
    scheduler=DDIMScheduler.from_pretrained(folder, subfolder="scheduler"),
    safety_checker=None, feature_extractor=None, requires_safety_checker=False)
pictures = pipeline({PROMPT!r}, negative_prompt={NEGATIVE!r}, image=Image.open(control_map),
    num_inference_steps=int(steps), guidance_scale=3.0, generator=torch.Generator().manual_seed({SEED})).images
pictures[0].save(file)
print(file, flush=True)
"""
"""A program as a user would write it, for one net."""


def first_picture(setting: Setting, rounds: int) -> dict[str, Times]:
    """script/predict and PLAIN with the tiny bundle, from the start of the process to its end.

    script/predict checks the files and loads every ControlNet and annotator, the other program one ControlNet.
    """
    conditioner = setting.conditioners[0]
    inputs = {
        "prompt": PROMPT,
        "negative_prompt": NEGATIVE,
        "image": f"@{setting.folder}/map.png",
        "conditioner": conditioner,
        "preprocess": "false",
        "resolution": str(setting.side),
        "num_inference_steps": str(setting.steps),
        "seed": str(SEED),
        "control_mode": "balanced",
    }
    pairs = [f"-i{name}={value}" for name, value in inputs.items()]
    given = [str(WEIGHTS / "tiny"), "AutoencoderTiny", conditioner, f"{setting.folder}/map.png", str(setting.steps)]
    return _in_turn(
        {
            "ours": [ROOT / "script/predict", *pairs, "-o", setting.folder / "output"],
            "plain": [sys.executable, "-c", PLAIN, *given, str(setting.folder / "plain.webp")],
        },
        rounds,
    )


def setup(bundle: str, root: Path, rounds: int) -> dict[str, Times]:
    """Loading all parts as script/bench/setup does, imports included; setup() also makes its warm-up picture."""
    command = [sys.executable, ROOT / "script/bench/setup_times.py", "--bundle", bundle, "--weights", root.resolve()]
    ways = {"ours": "setup()", "plain": "plain from_pretrained"}
    return _in_turn({side: [*command, "--way", way] for side, way in ways.items()}, rounds)


def _in_turn(commands: dict[str, Sequence[str | Path]], rounds: int) -> dict[str, Times]:
    runs: dict[str, list[float]] = {side: [] for side in commands}
    for number in range(rounds + 1):  # the first compiles modules and reads files
        for side, command in commands.items():
            seconds = timed([str(word) for word in command], os.environ | {BUNDLE: "tiny", "PYTHONPATH": "."}).processor
            if number > 0:
                runs[side].append(seconds)
    return {side: Times(tuple(each)) for side, each in runs.items()}
