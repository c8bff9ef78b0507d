"""go_fast and LoRAs give the latents of diffusers' own pipeline with the same files: small random ones of sd15."""

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, LCMScheduler, StableDiffusionControlNetPipeline
from PIL import Image
from random_loras import ATTENTION, random_layers, save_kohya
from safetensors.torch import load_file
from skimage import data
from support.latents import latents
from support.loras import TEXT

from controlnet.bundle import open_bundle
from controlnet.generation.generator import Generator
from controlnet.generation.job import Job
from controlnet.maps.controls import Control
from controlnet.settings import Settings
from controlnet.weights.files import sha256
from controlnet.weights.lora_files import Lora

MAP = Image.fromarray(data.astronaut()).resize((64, 64))
STEPS, GUIDANCE = 4, 1.5
FAST = "sd15/lora/fast/pytorch_lora_weights.safetensors"


@pytest.fixture(scope="module")
def generator(sd15_root: Path) -> Generator:
    return Generator(open_bundle(Settings(bundle="sd15"), sd15_root))


def ours(generator: Generator, **job) -> torch.Tensor:
    return latents(generator, Job("a bird", "", (Control("canny", MAP),), 1, STEPS, GUIDANCE, seed=5, **job))[0]


def diffusers(generator: Generator, root: Path, scheduler: type, files: dict[Path, float]) -> torch.Tensor:
    """With LoRAs put on by diffusers, each with its scale, on networks that are loaded again."""
    parts = open_bundle(Settings(bundle="sd15"), root).base()
    parts |= {"scheduler": scheduler.from_config(parts["scheduler"].config)}
    pipeline = StableDiffusionControlNetPipeline(
        **parts,
        controlnet=generator.controlnets["canny"],
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    for i, file in enumerate(files):
        pipeline.load_lora_weights(load_file(file), adapter_name=f"lora_{i}")
    if files:
        pipeline.set_adapters([f"lora_{i}" for i in range(len(files))], [*files.values()])
    return pipeline(
        "a bird",
        image=torch.from_numpy(np.asarray(MAP, np.float32) / 255).permute(2, 0, 1)[None],
        num_inference_steps=STEPS,
        guidance_scale=GUIDANCE,
        generator=torch.Generator().manual_seed(5),
        output_type="latent",
    ).images


@pytest.fixture
def lora(generator: Generator, tmp_path: Path) -> Path:
    unet, text_encoder = generator.base["unet"], generator.base["text_encoder"]
    layers = {"unet": random_layers(unet, ATTENTION), "text_encoder": random_layers(text_encoder, TEXT)}
    return save_kohya(tmp_path / "lora.safetensors", layers, alpha=2.0)


def test_go_fast_equals_diffusers_with_the_lora_of_the_bundle(generator: Generator, sd15_root: Path) -> None:
    fast = ours(generator, scheduler="LCM", go_fast=True)
    assert (fast - diffusers(generator, sd15_root, LCMScheduler, {sd15_root / FAST: 1.0})).abs().max() <= 1e-4
    assert (fast - ours(generator, scheduler="LCM")).abs().max() > 1e-2


@pytest.mark.parametrize("go_fast", [False, True])
def test_a_lora_equals_diffusers(generator: Generator, sd15_root: Path, lora: Path, go_fast: bool) -> None:
    files, scheduler, kind = {lora: 0.7}, "DDIM", DDIMScheduler
    if go_fast:
        files[sd15_root / FAST] = 1.0
        scheduler, kind = "LCM", LCMScheduler
    asked = Lora(lora, sha256(lora), 0.7)
    made = ours(generator, scheduler=scheduler, loras=(asked,), go_fast=go_fast)
    assert (made - diffusers(generator, sd15_root, kind, files)).abs().max() <= 1e-4
    assert (made - ours(generator, scheduler=scheduler, go_fast=go_fast)).abs().max() > 1e-2
