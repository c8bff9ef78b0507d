"""Trains LoRAs for a tiny bundle: the one for few steps, which belongs to the bundle, and an example of a look."""

from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline

from controlnet.weights.manifest import Manifest
from tinyworld import few_steps, night
from tinyworld.dataset import load_scenes
from tinyworld.stages import Plan

LORAS = {"few_steps": "weights/tiny/lora/fast/pytorch_lora_weights.safetensors", "night": "examples/night.safetensors"}
"""For each LoRA, where the committed one is."""
SMOKE = Plan(3, 4, 1e-3)


def train_lora(name: str, runs: Path, scenes: int, bundle: Path, device: torch.device, smoke: bool, file: Path) -> None:
    """Train a LoRA, a key of LORAS, for the `bundle` in that folder, next to its manifest, and write it to `file`.

    It continues from the checkpoints in `runs`, where the rendered scenes are too.
    """
    rendered = load_scenes(runs / "data", scenes)
    if name == "night":
        plan = SMOKE if smoke else night.PLAN
        tensors = night.train_night(bundle, rendered, plan, device, runs)
    else:
        plan = SMOKE if smoke else few_steps.PLAN
        guidance_scale = Manifest.read(bundle.with_suffix(".toml")).defaults.guidance_scale
        tensors = few_steps.train_few_steps(bundle, rendered, guidance_scale, plan, device, runs)
    file.parent.mkdir(parents=True, exist_ok=True)
    halves = {key: tensor.to("cpu", torch.float16) for key, tensor in tensors.items()}
    StableDiffusionPipeline.save_lora_weights(file.parent, unet_lora_layers=halves, weight_name=file.name)
