"""Trains LoRAs for a tiny bundle: the one for few steps, which belongs to the bundle, and an example of a look."""

from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline

from controlnet.weights.manifest import Manifest
from tinyworld import few_steps, night
from tinyworld.dataset import Scenes
from tinyworld.stages import Plan

LORAS = {"few_steps": "weights/tiny/lora/fast/pytorch_lora_weights.safetensors", "night": "examples/night.safetensors"}
"""For each LoRA, where the committed one is, from which its training continues."""


def train_lora(
    name: str, runs: Path, scenes: Scenes, bundle: Path, device: torch.device, plan: Plan, file: Path
) -> None:
    """Train a LoRA, a key of LORAS, for the `bundle` in that folder, next to its manifest, and write it to `file`.

    It continues from the checkpoints in `runs`, or from the committed one.
    """
    earlier = Path(LORAS[name])
    if name == "night":
        tensors = night.train_night(bundle, scenes, plan, device, runs, earlier)
    else:
        guidance_scale = Manifest.read(bundle.with_suffix(".toml")).defaults.guidance_scale
        tensors = few_steps.train_few_steps(bundle, scenes, guidance_scale, plan, device, runs, earlier)
    file.parent.mkdir(parents=True, exist_ok=True)
    halves = {key: tensor.to("cpu", torch.float16) for key, tensor in tensors.items()}
    StableDiffusionPipeline.save_lora_weights(file.parent, unet_lora_layers=halves, weight_name=file.name)
