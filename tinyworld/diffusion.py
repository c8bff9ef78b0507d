"""The diffusion part of the training: text encoder and UNet, then the ControlNets together with them."""

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import CLIPTokenizer

from controlnet.maps.annotators.tiny_network import TinyVisionModel
from tinyworld import models
from tinyworld.dataset import PICTURE, SEEN, Scenes, Words
from tinyworld.feed import SEED
from tinyworld.hints import HINTS, control_maps, rows_with_people
from tinyworld.stages import Plan, begin_as, half, train_stage

PROMPT_DROP = 0.1
"""Share of prompts replaced by the empty one, for classifier-free guidance (arXiv 2207.12598)."""
HINT_PROMPT_DROP = 0.2
"""The same while ControlNets learn: more, to make them read the control map (arXiv 2302.05543, section 3.3)."""
BASE_SHARE = 0.15
"""Share of samples without control while base and ControlNets learn together: the base must also paint alone."""
SHORTER_SHARE = 0.35
"""Share of prompts that say less than the whole caption."""
SMALL_SHARE = 0.2
"""Share of steps with pictures of half the size, which take a quarter of the time."""


@dataclass(frozen=True)
class Batch:
    """What a step trains on. Tensors have a row for each picture."""

    rows: torch.Tensor
    dropped: torch.Tensor
    """True for an empty prompt."""
    noisy: torch.Tensor
    times: torch.Tensor
    tokens: torch.Tensor
    target: torch.Tensor


@dataclass
class Noising:
    """Draws the latents, prompts, noise and times of a step, and computes the v-prediction target."""

    latents: dict[int, torch.Tensor]
    """For each size of a picture, (N, C, size / 8, size / 8)."""
    tokenizer: CLIPTokenizer
    words: list[Words]

    def __post_init__(self) -> None:
        self.scheduler = models.make_scheduler()
        self.empty = models.tokens_of(self.tokenizer, [""])[0]
        most = max(len(each.captions) for each in self.words)
        told = [each.captions + each.captions[:1] * (most - len(each.captions)) for each in self.words]
        flat = models.tokens_of(self.tokenizer, [caption for each in told for caption in each])
        self.tokens = flat.view(len(told), most, -1)

    def draw(
        self,
        generator: torch.Generator,
        batch: int,
        drop: float,
        favoured: torch.Tensor | None = None,
        size: int = PICTURE,
    ) -> Batch:
        """Nine tenths of the rows are from `favoured`, if any. Most prompts are whole captions, some are shorter ones,
        and the share `drop` is empty."""
        latents, rows = self.latents[size], torch.randint(len(self.words), (batch,), generator=generator)
        if favoured is not None and len(favoured):
            chosen = favoured[torch.randint(len(favoured), (batch,), generator=generator)]
            rows = torch.where(torch.rand(batch, generator=generator) < 0.9, chosen, rows)
        clean = latents[rows].float()
        noise = torch.randn(clean.shape, generator=generator)
        times = self.draw_times(generator, batch)
        which = torch.randint(1, self.tokens.shape[1], (batch,), generator=generator)
        which *= torch.rand(batch, generator=generator) < SHORTER_SHARE
        dropped = torch.rand(batch, generator=generator) < drop
        tokens = torch.where(dropped[:, None], self.empty, self.tokens[rows, which])
        noisy = self.scheduler.add_noise(clean, noise, times)
        target = self.scheduler.get_velocity(clean, noise, times)
        return Batch(rows, dropped, noisy, times, tokens, target)

    def draw_times(self, generator: torch.Generator, batch: int) -> torch.Tensor:
        """The timesteps of a batch, (B,)."""
        return torch.randint(1000, (batch,), generator=generator)

    def of_any_size(self, generator: torch.Generator, batch: int) -> Batch:
        """Without control."""
        return self.draw(generator, batch, PROMPT_DROP, size=draw_size(generator))

    def say(self, batch: Batch, prompts: list[str | None]) -> None:
        """Replace the prompts of a batch that are not dropped by these, where there are any."""
        for i, prompt in enumerate(prompts):
            if prompt is not None and not batch.dropped[i]:
                batch.tokens[i] = models.tokens_of(self.tokenizer, [prompt])[0]


def draw_size(generator: torch.Generator) -> int:
    """Of a step's pictures: most are of the usual size."""
    return SEEN if float(torch.rand((), generator=generator)) < SMALL_SHARE else PICTURE


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
    noising: Noising, plan: Plan, device: torch.device, folder: Path, earlier: Path | None
) -> dict[str, nn.Module]:
    """Train text encoder and UNet together. `earlier` is a bundle to continue from."""
    torch.manual_seed(SEED + 1)
    text_encoder = models.make_text_encoder(noising.tokenizer)
    if earlier:
        text_encoder = models.with_words_of(text_encoder, noising.tokenizer, earlier)
    text_encoder, unet = text_encoder.to(device), begin_as(models.make_unet(), earlier and earlier / "unet").to(device)

    def loss_of(drawn: Batch) -> torch.Tensor:
        with half(device):
            words = text_encoder(drawn.tokens).last_hidden_state
            predicted = unet(drawn.noisy, drawn.times, encoder_hidden_states=words).sample
        return F.mse_loss(predicted.float(), drawn.target)

    modules = {"text_encoder": text_encoder, "unet": unet}
    return train_stage("base", plan, modules, noising.of_any_size, loss_of, device, folder)


@dataclass(frozen=True)
class Controlled:
    """A batch for one net, with its control maps."""

    name: str
    batch: Batch
    control: torch.Tensor
    """(B, 3, H, W), as the net gets them."""
    used: torch.Tensor
    """(B,): false for the samples that are painted without control."""


@dataclass
class DrawControlled:
    """Draws batches for nets, for some more often than for others (Hint.weight)."""

    noising: Noising
    scenes: Scenes
    annotator: TinyVisionModel | None
    names: tuple[str, ...]
    prompt_drop: float = HINT_PROMPT_DROP
    uncontrolled: float = BASE_SHARE

    def __post_init__(self) -> None:
        self.people = rows_with_people(self.scenes.seen)
        self.weights = torch.tensor([HINTS[name].weight for name in self.names], dtype=torch.float)
        if self.annotator is not None:  # it sees single pictures, and other processes have no GPU
            self.annotator = copy.deepcopy(self.annotator).cpu().eval().requires_grad_(False)

    def __call__(self, generator: torch.Generator, batch: int) -> Controlled:
        name = self.names[int(torch.multinomial(self.weights, 1, generator=generator))]
        hint, size = HINTS[name], draw_size(generator)
        favoured = self.people if hint.people_only else None
        drawn = self.noising.draw(generator, batch, self.prompt_drop, favoured, size)
        dataset = self.scenes.seen if size == SEEN else self.scenes.painted
        control, prompts = control_maps(hint, self.annotator, dataset, drawn.rows, generator)
        self.noising.say(drawn, prompts)
        return Controlled(name, drawn, control, torch.rand(batch, generator=generator) >= self.uncontrolled)


def train_nets(
    stage: str,
    nets: dict[str, nn.Module],
    base: dict[str, nn.Module],
    noising: Noising,
    scenes: Scenes,
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

    def loss_of(drawn: Controlled) -> torch.Tensor:
        noisy, times, used = drawn.batch.noisy, drawn.batch.times, drawn.used[:, None, None, None]
        with half(device):
            words = text_encoder(drawn.batch.tokens).last_hidden_state
            predicted = controlled(unet, nets[drawn.name], noisy, times, words, drawn.control, used)
        return F.mse_loss(predicted.float(), drawn.batch.target)

    draw, modules = DrawControlled(noising, scenes, annotator, tuple(nets)), base | nets if base_learns else nets
    averaged = base | train_stage(stage, plan, modules, draw, loss_of, device, folder)
    return {key: averaged[key] for key in base}, {name: averaged[name] for name in nets}
