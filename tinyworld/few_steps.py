"""Trains a LoRA with which the tiny bundle paints in 4 to 8 steps, without an unconditional half, instead of 20 with.

Consistency distillation of a LoRA, after S. Luo et al., "LCM-LoRA: A Universal Stable-Diffusion Acceleration Module",
2023 (arXiv 2311.05556): from any point of a trajectory of the guided teacher, the student learns to predict its end.
There the student learns from its own prediction one step further on, because the way to the end is expensive. Here the
teacher is so small that it walks there itself, in four steps. (Learning from its own predictions, with 600 steps, the
student painted noise.) The ControlNets stay as they are, and take part: each batch is controlled by one of them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderTiny, ControlNetModel, UNet2DConditionModel
from peft import LoraConfig, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file
from torch import nn
from transformers import CLIPTextModel, CLIPTokenizer

from controlnet.maps.annotators.tiny_network import TinyVisionModel
from tinyworld.dataset import Scenes
from tinyworld.diffusion import Controlled, DrawControlled, Noising
from tinyworld.feed import SEED
from tinyworld.hints import HINTS
from tinyworld.latents import encode_scenes
from tinyworld.stages import Plan, half, train_stage

RANK = 16
LAYERS = [
    *("to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2"),
    *("conv1", "conv2", "conv_shortcut", "time_emb_proj", "downsamplers.0.conv", "upsamplers.0.conv"),
]
"""The layers that get a LoRA: those of the published LCM-LoRA."""
GRID = 20
"""Timesteps between two that are trained: those among which LCM's sampler chooses."""
EARLIEST = 119
"""Timestep below which no picture of 2 to 8 steps is looked at."""
WALK = 4
"""Steps in which the teacher walks from any point of a trajectory to its end."""
UNCONTROLLED = 0.1
"""Share of samples without control."""
HUBER = 1e-3
"""Below this error per value, the loss is quadratic."""
Residuals = tuple[list[torch.Tensor], torch.Tensor] | None
"""What a ControlNet adds to the UNet. None without control."""
Control = Callable[[torch.Tensor, torch.Tensor], Residuals]
"""Takes noisy latents and their timesteps."""


@dataclass(frozen=True)
class Denoiser:
    """Sees clean latents in noisy ones with a v-predicting UNet (arXiv 2202.00512)."""

    unet: nn.Module
    alphas: torch.Tensor
    """The noise schedule: ᾱ for each timestep."""

    def __call__(
        self, noisy: torch.Tensor, times: torch.Tensor, words: torch.Tensor, residuals: Residuals
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The clean latents and the noise."""
        down, mid = residuals or (None, None)
        with half(noisy.device):
            v = self.unet(
                noisy,
                times,
                encoder_hidden_states=words,
                down_block_additional_residuals=down,
                mid_block_additional_residual=mid,
            ).sample.float()
        a, s = self.shares(times)
        return a * noisy - s * v, s * noisy + a * v

    def shares(self, times: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """How much of the clean latents and of the noise is in noisy ones, each (B, 1, 1, 1)."""
        alphas = self.alphas[times][:, None, None, None]
        return alphas.sqrt(), (1 - alphas).sqrt()


@torch.no_grad()
def end_of_trajectory(
    teacher: Denoiser,
    noisy: torch.Tensor,
    times: torch.Tensor,
    words: tuple[torch.Tensor, torch.Tensor],
    control: Control,
    guidance_scale: float,
) -> torch.Tensor:
    """The clean latents to which DDIM (arXiv 2010.02502) leads in WALK equal steps.

    `words` are the embeddings of the prompts and of the empty one. Only the conditional half is controlled, as in the
    control mode "unbalanced".
    """
    for left in range(WALK, 0, -1):
        with_prompt = teacher(noisy, times, words[0], control(noisy, times))
        without = teacher(noisy, times, words[1], None)
        clean, noise = (w + guidance_scale * (p - w) for p, w in zip(with_prompt, without, strict=True))
        if left == 1:
            break
        times = times * (left - 1) // left
        a, s = teacher.shares(times)
        noisy = a * clean + s * noise
    return clean


def add_lora(unet: nn.Module, rank: int, earlier: Path) -> None:
    """Give a UNet a LoRA to be trained. It begins as the one in the file `earlier`, if that is there."""
    unet.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=LAYERS))
    if earlier.exists():
        tensors = {name.removeprefix("unet."): tensor.float() for name, tensor in load_file(earlier).items()}
        skipped = set_peft_model_state_dict(unet, tensors)
        if skipped.unexpected_keys:
            raise ValueError(f"{earlier} is no LoRA of this UNet: it has {', '.join(skipped.unexpected_keys[:3])}.")


def train_few_steps(
    bundle: Path, scenes: Scenes, guidance_scale: float, plan: Plan, device: torch.device, folder: Path, earlier: Path
) -> dict[str, torch.Tensor]:
    """The LoRA of a bundle's UNet, as peft names its tensors. `guidance_scale` is the teacher's. It continues from the
    one in the file `earlier`, if that is there."""

    def load(kind: type, part: str) -> nn.Module:
        loaded = kind.from_pretrained(bundle / part, variant="fp16", torch_dtype=torch.float32)
        return loaded.to(device).eval().requires_grad_(False)

    text_encoder, vae = load(CLIPTextModel, "text_encoder"), load(AutoencoderTiny, "vae")
    seeing = load(TinyVisionModel, "annotator/tiny")
    nets = {name: load(ControlNetModel, f"controlnet/{name}") for name in HINTS}
    tokenizer = CLIPTokenizer.from_pretrained(bundle / "tokenizer")
    own = folder / "few_steps"  # latents in `folder` may be of another VAE
    own.mkdir(exist_ok=True)
    latents, _ = encode_scenes(vae, scenes, device, own, vae.config["scaling_factor"])
    noising = OnGrid(latents, tokenizer, scenes.seen.words)
    alphas = noising.scheduler.alphas_cumprod.to(device)
    teacher, unet = Denoiser(load(UNet2DConditionModel, "unet"), alphas), load(UNet2DConditionModel, "unet")
    torch.manual_seed(SEED)
    add_lora(unet, RANK, earlier)
    student = Denoiser(unet, alphas)
    with torch.no_grad():
        empty = text_encoder(noising.empty[None].to(device)).last_hidden_state

    def loss_of(drawn: Controlled) -> torch.Tensor:
        noisy, times, used = drawn.batch.noisy, drawn.batch.times, drawn.used[:, None, None, None]

        def control(noisy: torch.Tensor, times: torch.Tensor) -> Residuals:
            with torch.no_grad(), half(device):
                down, mid = nets[drawn.name](
                    noisy, times, encoder_hidden_states=words, controlnet_cond=drawn.control, return_dict=False
                )
            return [residual * used for residual in down], mid * used

        with torch.no_grad():
            words = text_encoder(drawn.batch.tokens).last_hidden_state
        both = words, empty.expand_as(words)
        target = end_of_trajectory(teacher, noisy, times, both, control, guidance_scale)
        predicted, _ = student(noisy, times, words, control(noisy, times))
        return (((predicted - target) ** 2 + HUBER**2).sqrt() - HUBER).mean()

    draw = DrawControlled(noising, scenes, seeing, tuple(nets), prompt_drop=0.0, uncontrolled=UNCONTROLLED)
    trained = train_stage("few_steps", plan, {"unet": unet}, draw, loss_of, device, folder)["unet"]
    return get_peft_model_state_dict(trained)


class OnGrid(Noising):
    """At the timesteps among which LCM's sampler chooses; a quarter of them are those where every picture begins."""

    def draw_times(self, generator: torch.Generator, batch: int) -> torch.Tensor:
        times = torch.randint(EARLIEST // GRID, 1000 // GRID, (batch,), generator=generator) * GRID + GRID - 1
        times[: batch // 4] = 999
        return times
