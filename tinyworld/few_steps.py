"""Trains a LoRA with which the tiny bundle paints in 4 to 8 steps instead of 20.

Latent consistency distillation of a LoRA: S. Luo et al., "LCM-LoRA: A Universal Stable-Diffusion Acceleration Module",
2023 (arXiv 2311.05556). The teacher is the bundle itself at its usual guidance scale, so the student needs no
unconditional half. The ControlNets stay as they are, and take part: each batch is controlled by one of them.
"""

from pathlib import Path

import torch
from diffusers import ControlNetModel, UNet2DConditionModel
from peft import LoraConfig, get_peft_model_state_dict
from torch import nn
from transformers import CLIPTextModel, CLIPTokenizer

from controlnet.maps.annotators.tiny_network import TinyVisionModel
from tinyworld import models
from tinyworld.dataset import Dataset
from tinyworld.diffusion import Noising
from tinyworld.hints import HINTS, control_maps, rows_with_people
from tinyworld.stages import Plan, half, train_stage

PLAN = Plan(1000, 12, 3e-4)
RANK = 16
LAYERS = [
    *("to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2"),
    *("conv1", "conv2", "conv_shortcut", "time_emb_proj", "downsamplers.0.conv", "upsamplers.0.conv"),
]
"""The layers that get a LoRA: those of the published LCM-LoRA."""
GRID = 20
"""Timesteps between two that are trained: those among which LCM's sampler chooses."""
WALK = 4
"""Steps in which the teacher walks from any point of a trajectory to its end."""
UNCONTROLLED = 0.1
"""Share of samples without control."""
HUBER = 1e-3
"""Below this error per value, the loss is quadratic."""


def train_few_steps(
    bundle: Path,
    dataset: Dataset,
    latents: torch.Tensor,
    guidance_scale: float,
    plan: Plan,
    device: torch.device,
    folder: Path,
) -> dict[str, torch.Tensor]:
    """The LoRA of a bundle's UNet, as peft names its tensors. `latents` are the dataset's, by the bundle's VAE."""
    tokenizer = CLIPTokenizer.from_pretrained(bundle / "tokenizer")
    noising = Noising(latents, *models.tokens_of(tokenizer, dataset.captions), device)
    load = {"variant": "fp16", "torch_dtype": torch.float32}
    text_encoder = CLIPTextModel.from_pretrained(bundle / "text_encoder", **load).to(device).eval()
    teacher = UNet2DConditionModel.from_pretrained(bundle / "unet", **load).to(device).eval().requires_grad_(False)
    nets = {
        name: ControlNetModel.from_pretrained(bundle / "controlnet" / name, **load).to(device).eval()
        for name in HINTS
        if (bundle / "controlnet" / name).exists()
    }
    seeing = TinyVisionModel.from_pretrained(bundle / "annotator" / "tiny", **load).to(device).eval()
    student = UNet2DConditionModel.from_pretrained(bundle / "unet", **load).to(device).eval().requires_grad_(False)
    torch.manual_seed(0)
    student.add_adapter(LoraConfig(r=RANK, lora_alpha=RANK, target_modules=LAYERS))
    people, names = rows_with_people(dataset), list(nets)
    alphas = noising.scheduler.alphas_cumprod.to(device)

    def clean_of(unet: nn.Module, noisy: torch.Tensor, times: torch.Tensor, words: torch.Tensor, residuals):
        """The clean latents and the noise that a UNet sees in noisy ones."""
        down, mid = residuals if residuals else (None, None)
        with half(device):
            v = unet(
                noisy,
                times,
                encoder_hidden_states=words,
                down_block_additional_residuals=down,
                mid_block_additional_residual=mid,
            ).sample.float()
        a, s = (x[:, None, None, None] for x in (alphas[times].sqrt(), (1 - alphas[times]).sqrt()))
        return a * noisy - s * v, s * noisy + a * v

    def residuals_of(net, noisy, times, words, control, used):
        with torch.no_grad(), half(device):
            down, mid = net(noisy, times, encoder_hidden_states=words, controlnet_cond=control, return_dict=False)
        return [residual * used for residual in down], mid * used

    def loss_of(generator: torch.Generator, batch: int) -> torch.Tensor:
        name = names[int(torch.randint(len(names), (1,), generator=generator))]
        hint = HINTS[name]
        rows, flips, _, _, tokens, _ = noising.draw(generator, batch, 0.0, people if hint.people_only else None)
        clean = noising.latents[flips, rows].float().to(device)
        noise = torch.randn(clean.shape, generator=generator).to(device)
        times = (torch.randint(5, 1000 // GRID, (batch,), generator=generator) + 1) * GRID - 1
        # A quarter of the batch begins where every picture begins, with noise alone.
        times[: batch // 4] = 999
        times = times.to(device)
        noisy = noising.scheduler.add_noise(clean, noise, times)
        control = control_maps(hint, seeing, dataset, rows, flips, generator).to(device)
        used = (torch.rand(batch, generator=generator) >= UNCONTROLLED).to(device)[:, None, None, None]
        with torch.no_grad(), half(device):
            words = text_encoder(tokens).last_hidden_state.float()
            empty = text_encoder(noising.empty[None].to(device)).last_hidden_state.float().expand_as(words)
        residuals = residuals_of(nets[name], noisy, times, words, control, used)
        with torch.no_grad():
            x, now, seen = noisy, times, residuals
            for left in range(WALK, 0, -1):
                clean, noise = clean_of(teacher, x, now, words, seen)
                clean0, noise0 = clean_of(teacher, x, now, empty, None)
                clean = clean0 + guidance_scale * (clean - clean0)
                noise = noise0 + guidance_scale * (noise - noise0)
                if left == 1:
                    break
                now = now * (left - 1) // left
                a, s = (v[:, None, None, None] for v in (alphas[now].sqrt(), (1 - alphas[now]).sqrt()))
                x = a * clean + s * noise
                seen = residuals_of(nets[name], x, now, words, control, used)
            target = clean
        predicted, _ = clean_of(student, noisy, times, words, residuals)
        return (((predicted - target) ** 2 + HUBER**2).sqrt() - HUBER).mean()

    averaged = train_stage("few_steps", plan, {"unet": student}, loss_of, device, folder)["unet"]
    return get_peft_model_state_dict(averaged)
