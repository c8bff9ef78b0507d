"""The diffusion part of the training: text encoder and UNet, then the ControlNets together with them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from controlnet.maps.annotators.tiny_network import TinyVisionModel
from tinyworld import models
from tinyworld.dataset import Dataset
from tinyworld.hints import HINTS, control_maps, rows_with_people
from tinyworld.stages import SEED, Plan, begin_as, half, train_stage

PROMPT_DROP = 0.1
"""Share of prompts replaced by the empty one, for classifier-free guidance (arXiv 2207.12598)."""
HINT_PROMPT_DROP = 0.2
"""The same while ControlNets learn: more, to make them read the control map (arXiv 2302.05543, section 3.3)."""
NOISIEST = 600
"""The timestep from which on noisy latents hardly show a picture's colours."""
BASE_SHARE = 0.15
"""Share of samples without control while base and ControlNets learn together: the base must also paint alone."""


@dataclass
class Noising:
    """Draws the latents, prompts, noise and times of a step, and computes the v-prediction target."""

    latents: torch.Tensor
    tokens: torch.Tensor
    empty: torch.Tensor
    device: torch.device

    def __post_init__(self) -> None:
        self.scheduler = models.make_scheduler()

    def draw(
        self,
        generator: torch.Generator,
        batch: int,
        drop: float,
        favoured: torch.Tensor | None = None,
        noisiest: float = 0.0,
    ) -> tuple[torch.Tensor, ...]:
        """Rows, flips, noisy latents, times, token ids, target. Nine tenths of the rows are from `favoured`, if any. A
        share of `noisiest` of the times is taken from those with the most noise, NOISIEST and above."""
        rows = torch.randint(self.latents.shape[1], (batch,), generator=generator)
        if favoured is not None and len(favoured):
            chosen = favoured[torch.randint(len(favoured), (batch,), generator=generator)]
            rows = torch.where(torch.rand(batch, generator=generator) < 0.9, chosen, rows)
        flips = torch.randint(2, (batch,), generator=generator)
        clean = self.latents[flips, rows].float()
        noise = torch.randn(clean.shape, generator=generator)
        times = torch.randint(1000, (batch,), generator=generator)
        if noisiest:
            high = NOISIEST + times * (1000 - NOISIEST) // 1000
            times = torch.where(torch.rand(batch, generator=generator) < noisiest, high, times)
        dropped = torch.rand(batch, generator=generator) < drop
        tokens = torch.where(dropped[:, None], self.empty, self.tokens[rows])
        noisy = self.scheduler.add_noise(clean, noise, times)
        target = self.scheduler.get_velocity(clean, noise, times)
        return rows, flips, *(x.to(self.device) for x in (noisy, times, tokens, target))


def controlled(
    unet: nn.Module,
    net: nn.Module,
    noisy: torch.Tensor,
    times: torch.Tensor,
    words: torch.Tensor,
    control: torch.Tensor,
    used: torch.Tensor,
    **more: Any,
) -> torch.Tensor:
    """What the UNet predicts under the control maps `control`, where `used`, (B, 1, 1, 1), is 1. `more` is for it."""
    down, mid = net(noisy, times, encoder_hidden_states=words, controlnet_cond=control, return_dict=False)
    return unet(
        noisy,
        times,
        encoder_hidden_states=words,
        down_block_additional_residuals=[residual * used for residual in down],
        mid_block_additional_residual=mid * used,
        **more,
    ).sample


def train_base(
    noising: Noising, tokenizer, plan: Plan, device: torch.device, folder: Path, earlier: Path | None
) -> dict[str, nn.Module]:
    """Train text encoder and UNet together. `earlier` is a bundle to continue from."""
    torch.manual_seed(SEED + 1)
    text_encoder = begin_as(models.make_text_encoder(tokenizer), earlier and earlier / "text_encoder").to(device)
    unet = begin_as(models.make_unet(), earlier and earlier / "unet").to(device)

    def loss_of(generator: torch.Generator, batch: int) -> torch.Tensor:
        _, _, noisy, times, tokens, target = noising.draw(generator, batch, PROMPT_DROP)
        with half(device):
            words = text_encoder(tokens).last_hidden_state
            predicted = unet(noisy, times, encoder_hidden_states=words).sample
        return F.mse_loss(predicted.float(), target)

    return train_stage("base", plan, {"text_encoder": text_encoder, "unet": unet}, loss_of, device, folder)


def train_nets(
    stage: str,
    nets: dict[str, nn.Module],
    base: dict[str, nn.Module],
    noising: Noising,
    dataset: Dataset,
    annotator: TinyVisionModel | None,
    plan: Plan,
    device: torch.device,
    folder: Path,
    base_learns: bool = True,
) -> tuple[dict[str, nn.Module], dict[str, nn.Module]]:
    """Train the base and the ControlNets (by conditioner) together, and return both.

    Each batch trains one net. The base learns with all of them (the "unlocked" training of ControlNet's code). Frozen,
    as in the paper, a base this small never learns to paint the thin limbs of a skeleton.
    """
    base = {key: module.to(device).train(base_learns).requires_grad_(base_learns) for key, module in base.items()}
    nets = {name: net.to(device).train().requires_grad_(True) for name, net in nets.items()}
    text_encoder, unet = base["text_encoder"], base["unet"]
    people, names = rows_with_people(dataset), list(nets)
    weights = torch.tensor([HINTS[name].weight for name in names], dtype=torch.float)

    def loss_of(generator: torch.Generator, batch: int) -> torch.Tensor:
        name = names[int(torch.multinomial(weights, 1, generator=generator))]
        hint = HINTS[name]
        rows, flips, noisy, times, tokens, target = noising.draw(
            generator, batch, HINT_PROMPT_DROP, people if hint.people_only else None
        )
        control = control_maps(hint, annotator, dataset, rows, flips, generator).to(device)
        used = (torch.rand(batch, generator=generator) >= BASE_SHARE).to(device)[:, None, None, None]
        with half(device):
            words = text_encoder(tokens).last_hidden_state
            predicted = controlled(unet, nets[name], noisy, times, words, control, used)
        return F.mse_loss(predicted.float(), target)

    averaged = base | train_stage(stage, plan, base | nets if base_learns else nets, loss_of, device, folder)
    return {key: averaged[key] for key in base}, {name: averaged[name] for name in names}
