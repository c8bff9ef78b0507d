"""Trains the tiny bundle: VAE, then text encoder and UNet, then one ControlNet per conditioner.

Every stage writes RUNS/<stage>.pt as it goes and carries on from there when it is started again. The same seed, steps
and device give the same weights: batch i of a stage draws from a generator seeded by (stage, i).
"""

import argparse
import copy
import math
import time
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm

from tinyworld import models
from tinyworld.dataset import SIZE, Dataset, load_dataset
from tinyworld.hints import HINTS

RUNS = Path(__file__).resolve().parent.parent / "runs" / "tiny"
SEED = 20261124
EMA = 0.998
PROMPT_DROP = 0.1
"""Share of prompts replaced by the empty one, so that classifier-free guidance works (arXiv 2207.12598)."""
HINT_PROMPT_DROP = 0.3
"""More while a ControlNet learns, so that it reads the control map itself (arXiv 2302.05543, section 3.3)."""


@dataclass(frozen=True)
class Plan:
    """How long a stage trains."""

    steps: int
    batch: int
    rate: float


PLANS = {
    "vae": Plan(900, 32, 1e-3),
    "base": Plan(900, 32, 1e-3),
    "canny": Plan(1300, 24, 8e-4),
    "scribble": Plan(400, 24, 5e-4),
}
BASE_SHARE = 0.15
"""Share of samples without control while base and first ControlNet learn together."""
FIRST_NET = "canny"
"""Learns together with the base what a control map is; the other nets begin as copies of it."""
SMOKE_STEPS = 3


def train_stage(
    name: str,
    plan: Plan,
    modules: dict[str, nn.Module],
    loss_of: Callable[[torch.Generator, int], torch.Tensor],
    device: torch.device,
    folder: Path,
    until: int | None = None,
) -> dict[str, nn.Module]:
    """Train `modules` until the plan's steps are done, and return their averaged (EMA) copies in eval mode.

    `loss_of(generator, batch)` draws a batch and gives the loss. AdamW, 2% warm-up, cosine to zero. `until` stops
    earlier, at a step that saves a checkpoint (every 50), as if interrupted there.
    """
    averaged = {key: copy.deepcopy(module).eval().requires_grad_(False) for key, module in modules.items()}
    optimizer = torch.optim.AdamW(
        [p for m in modules.values() for p in m.parameters()], lr=plan.rate, weight_decay=1e-3
    )
    file, done, losses = folder / f"{name}.pt", 0, []
    if file.exists():
        state = torch.load(file, map_location=device, weights_only=True)
        done, losses = state["step"], state["losses"]
        optimizer.load_state_dict(state["optimizer"])
        for key, module in modules.items():
            module.load_state_dict(state["modules"][key])
            averaged[key].load_state_dict(state["averaged"][key])
    started = time.monotonic()
    for step in range(done, min(until or plan.steps, plan.steps)):
        generator = torch.Generator().manual_seed(zlib.crc32(f"{SEED}/{name}/{step}".encode()))
        for group in optimizer.param_groups:
            group["lr"] = plan.rate * _schedule(step, plan.steps)
        loss = loss_of(generator, plan.batch)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_([p for m in modules.values() for p in m.parameters()], 1.0)
        optimizer.step()
        losses.append(loss.item())
        _average(averaged, modules, min(EMA, (step + 1) / (step + 10)))
        if (step + 1) % 50 == 0 or step + 1 == plan.steps:
            recent = losses[-50:]
            pace = (time.monotonic() - started) / len(recent)
            print(f"{name} {step + 1}/{plan.steps} loss {sum(recent) / len(recent):.4f} {pace:.2f} s/step", flush=True)
            started = time.monotonic()
            _save(file, step + 1, losses, optimizer, modules, averaged)
    return averaged


def _schedule(step: int, steps: int) -> float:
    warm = max(1, steps // 50)
    return min(1.0, (step + 1) / warm) * (0.5 + 0.5 * math.cos(math.pi * step / steps))


@torch.no_grad()
def _average(averaged: dict[str, nn.Module], modules: dict[str, nn.Module], keep: float) -> None:
    for key, module in modules.items():
        for old, new in zip(averaged[key].parameters(), module.parameters(), strict=True):
            old.lerp_(new, 1 - keep)


def _save(file: Path, step: int, losses: list, optimizer, modules: dict[str, nn.Module], averaged: dict) -> None:
    state = {"step": step, "losses": losses, "optimizer": optimizer.state_dict()}
    state["modules"] = {key: module.state_dict() for key, module in modules.items()}
    state["averaged"] = {key: module.state_dict() for key, module in averaged.items()}
    partial = file.with_suffix(".partial")
    torch.save(state, partial)
    partial.replace(file)


def pictures(dataset: Dataset, rows: torch.Tensor, flips: torch.Tensor) -> torch.Tensor:
    """(B, 3, 128, 128) in [-1, 1], mirrored where `flips` says so."""
    batch = torch.from_numpy(dataset.pictures[rows.numpy()]).permute(0, 3, 1, 2).float() / 127.5 - 1
    return torch.where(flips[:, None, None, None], batch.flip(-1), batch)


def train_vae(dataset: Dataset, plan: Plan, device: torch.device, folder: Path) -> nn.Module:
    """On random 64-pixel crops; the network is fully convolutional and is used at any size."""
    torch.manual_seed(SEED)
    vae = models.make_vae().to(device)

    def loss_of(generator: torch.Generator, batch: int) -> torch.Tensor:
        rows = torch.randint(len(dataset), (batch,), generator=generator)
        x, y = (int(v) for v in torch.randint(65, (2,), generator=generator))
        target = pictures(dataset, rows, torch.rand(batch, generator=generator) < 0.5)[..., y : y + 64, x : x + 64]
        target = target.to(device)
        latents = vae.encode(target).latents
        noise = torch.randn(latents.shape, generator=generator).to(device)
        decoded = vae.decode(latents + 0.02 * noise).sample
        edges = sum((decoded.diff(dim=axis) - target.diff(dim=axis)).abs().mean() for axis in (-1, -2))
        return F.l1_loss(decoded, target) + F.mse_loss(decoded, target) + 0.5 * edges + 1e-3 * latents.square().mean()

    return train_stage("vae", plan, {"vae": vae}, loss_of, device, folder)["vae"]


@torch.no_grad()
def encode_dataset(vae: nn.Module, dataset: Dataset, device: torch.device, folder: Path) -> tuple[torch.Tensor, float]:
    """Latents of every picture and its mirror image, (2, N, C, 16, 16) fp16 of unit variance; the factor used."""
    file = folder / "latents.pt"
    if file.exists():
        state = torch.load(file, weights_only=True, mmap=True)
        if state["latents"].shape[1] == len(dataset):
            return state["latents"], state["factor"]
    # One tensor from the start: a list of small ones between the large temporaries fragments the heap by gigabytes.
    latents = torch.empty((2, len(dataset), models.LATENT_CHANNELS, *(SIZE // 8,) * 2))
    for flip in (0, 1):
        for rows in tqdm(torch.arange(len(dataset)).split(64), desc="encode"):
            batch = pictures(dataset, rows, torch.full((len(rows),), bool(flip)))
            latents[flip, rows] = vae.encode(batch.to(device)).latents.cpu()
    factor = 1 / latents.std().item()
    latents = (latents * factor).half()
    torch.save({"latents": latents, "factor": factor}, file)
    return latents, factor


@dataclass
class Noising:
    """The diffusion side of a step: draws latents, prompts, noise and times, and gives the v-prediction target."""

    latents: torch.Tensor
    tokens: torch.Tensor
    empty: torch.Tensor
    device: torch.device

    def __post_init__(self) -> None:
        self.scheduler = models.make_scheduler()

    def draw(self, generator: torch.Generator, batch: int, drop: float) -> tuple[torch.Tensor, ...]:
        """rows, flips, noisy latents, times, token ids, target."""
        rows = torch.randint(self.latents.shape[1], (batch,), generator=generator)
        flips = torch.randint(2, (batch,), generator=generator)
        clean = self.latents[flips, rows].float()
        noise = torch.randn(clean.shape, generator=generator)
        times = torch.randint(1000, (batch,), generator=generator)
        dropped = torch.rand(batch, generator=generator) < drop
        tokens = torch.where(dropped[:, None], self.empty, self.tokens[rows])
        noisy = self.scheduler.add_noise(clean, noise, times)
        target = self.scheduler.get_velocity(clean, noise, times)
        return rows, flips, *(x.to(self.device) for x in (noisy, times, tokens, target))


def train_base(noising: Noising, tokenizer, plan: Plan, device: torch.device, folder: Path) -> dict[str, nn.Module]:
    """Text encoder and UNet together."""
    torch.manual_seed(SEED + 1)
    text_encoder, unet = models.make_text_encoder(tokenizer).to(device), models.make_unet().to(device)

    def loss_of(generator: torch.Generator, batch: int) -> torch.Tensor:
        _, _, noisy, times, tokens, target = noising.draw(generator, batch, PROMPT_DROP)
        words = text_encoder(tokens).last_hidden_state
        return F.mse_loss(unet(noisy, times, encoder_hidden_states=words).sample, target)

    return train_stage("base", plan, {"text_encoder": text_encoder, "unet": unet}, loss_of, device, folder)


def train_controlnet(
    name: str,
    start: nn.Module,
    base: dict[str, nn.Module],
    noising: Noising,
    dataset: Dataset,
    plan: Plan,
    *,
    joint: bool,
    device: torch.device,
    folder: Path,
) -> dict[str, nn.Module]:
    """One ControlNet, beginning as a copy of `start`; returned with the base under their names.

    With `joint` the base goes on learning beside it (ControlNet's own "unlocked" training), part of the time without
    control, so that it still paints by itself; otherwise it is frozen, as in the paper.
    """
    controlnet = copy.deepcopy(start).to(device).train().requires_grad_(True)
    base = {key: copy.deepcopy(module).to(device).requires_grad_(joint) for key, module in base.items()}
    text_encoder, unet = base["text_encoder"], base["unet"]
    hint = HINTS[name]

    def loss_of(generator: torch.Generator, batch: int) -> torch.Tensor:
        rows, flips, noisy, times, tokens, target = noising.draw(generator, batch, HINT_PROMPT_DROP)
        control = hint(dataset, rows, flips, generator).to(device)
        used = (torch.rand(batch, generator=generator) >= (BASE_SHARE if joint else 0)).to(device)[:, None, None, None]
        words = text_encoder(tokens).last_hidden_state
        down, mid = controlnet(noisy, times, encoder_hidden_states=words, controlnet_cond=control, return_dict=False)
        predicted = unet(
            noisy,
            times,
            encoder_hidden_states=words,
            down_block_additional_residuals=[residual * used for residual in down],
            mid_block_additional_residual=mid * used,
        ).sample
        return F.mse_loss(predicted, target)

    learning = {"controlnet": controlnet, **(base if joint else {})}
    return base | train_stage(name, plan, learning, loss_of, device, folder)


def train(folder: Path, scenes: int, plans: dict[str, Plan], device: torch.device, only: Iterable[str]) -> dict:
    """All stages up to those named in `only` (empty: all), and what export needs: modules, tokenizer, latent factor."""
    wanted = set(only) or set(plans)
    dataset = load_dataset(folder / "data", scenes)
    tokenizer = models.make_tokenizer(dataset.captions)
    vae = train_vae(dataset, plans["vae"], device, folder)
    if wanted == {"vae"}:
        return {"vae": vae}
    latents, factor = encode_dataset(vae, dataset, device, folder)
    tokens = tokenizer(dataset.captions, padding="max_length", truncation=True, return_tensors="pt").input_ids
    empty = tokenizer("", padding="max_length", return_tensors="pt").input_ids[0]
    noising = Noising(latents, tokens, empty, device)
    base = train_base(noising, tokenizer, plans["base"], device, folder)
    trained = {"vae": vae, "tokenizer": tokenizer, "factor": factor, **base, "controlnets": {}}
    if wanted <= {"vae", "base"}:
        return trained
    torch.manual_seed(SEED + 2)
    start = models.make_controlnet(base["unet"])
    for name in HINTS:
        if name not in wanted and name != FIRST_NET:
            continue
        joint = name == FIRST_NET
        result = train_controlnet(
            name, start, base, noising, dataset, plans[name], joint=joint, device=device, folder=folder
        )
        trained["controlnets"][name] = result.pop("controlnet")
        if joint:
            base, start = result, trained["controlnets"][name]
    trained |= base
    return trained


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="script/train-tiny", description="Train the tiny bundle; carries on where it stopped."
    )
    parser.add_argument(
        "--stage", action="append", default=[], choices=list(PLANS), help="only this stage and what it builds on"
    )
    parser.add_argument("--smoke", action="store_true", help="the whole path with a few steps, in a folder of its own")
    parser.add_argument("--runs", type=Path, default=RUNS, help="folder for data and checkpoints")
    parser.add_argument("--scenes", type=int, default=10000, help="how many scenes to render")
    parser.add_argument("--export", type=Path, help="write the trained bundle into this folder")
    arguments = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    plans, scenes = PLANS, arguments.scenes
    if arguments.smoke:
        plans = {name: Plan(SMOKE_STEPS, 4, plan.rate) for name, plan in PLANS.items()}
        scenes = 32
    trained = train(arguments.runs, scenes, plans, device, arguments.stage)
    if arguments.export:
        from tinyworld.export import export

        export(trained, arguments.export)


if __name__ == "__main__":
    main()
