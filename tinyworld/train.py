"""Trains the tiny bundle: VAE, then text encoder and UNet, then one ControlNet per conditioner.

Every stage writes RUNS/<stage>.pt as it goes and carries on from there when it is started again. The same seed, steps
and device give the same weights: batch i of a stage draws from a generator seeded by (stage, i).
"""

import argparse
import copy
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm
from transformers import CLIPTokenizer

from controlnet.annotators.tiny_network import TinyVisionModel
from tinyworld import models
from tinyworld.dataset import SIZE, Dataset, load_dataset
from tinyworld.export import EVALUATOR, export
from tinyworld.hints import HINTS, control_maps, rows_with_people
from tinyworld.plots import plot_losses
from tinyworld.stages import SEED, Plan, begin_as, half, train_stage
from tinyworld.vision import train_vision

RUNS = Path(__file__).resolve().parent.parent / "runs" / "tiny"
PROMPT_DROP = 0.1
"""Share of prompts replaced by the empty one, so that classifier-free guidance works (arXiv 2207.12598)."""
HINT_PROMPT_DROP = 0.3
"""More while a ControlNet learns, so that it reads the control map itself (arXiv 2302.05543, section 3.3)."""


NET = Plan(450, 24, 5e-4)
FIRST_NET = "canny"
"""Learns together with the base what a control map is; the other nets begin as copies of it."""
PLANS = {
    "vae": Plan(2400, 32, 1e-3),
    "annotator": Plan(800, 16, 1e-3),
    "evaluator": Plan(800, 16, 1e-3),
    "base": Plan(3200, 32, 1e-3),
    **dict.fromkeys(HINTS, NET),
    FIRST_NET: Plan(2800, 24, 8e-4),
    "openpose": Plan(1750, 24, 5e-4),  # thin limbs are the most to learn
}
BASE_SHARE = 0.15
"""Share of samples without control while base and first ControlNet learn together."""
SMOKE_STEPS = 3


def pictures(dataset: Dataset, rows: torch.Tensor, flips: torch.Tensor) -> torch.Tensor:
    """(B, 3, 128, 128) in [-1, 1], mirrored where `flips` says so."""
    batch = torch.from_numpy(dataset.pictures[rows.numpy()]).permute(0, 3, 1, 2).float() / 127.5 - 1
    return torch.where(flips[:, None, None, None], batch.flip(-1), batch)


def train_vae(dataset: Dataset, plan: Plan, device: torch.device, folder: Path, start: Path | None) -> nn.Module:
    """On random 64-pixel crops; the network is fully convolutional and is used at any size."""
    torch.manual_seed(SEED)
    vae = begin_as(models.make_vae(), start and start / "vae").to(device, memory_format=torch.channels_last)

    def loss_of(generator: torch.Generator, batch: int) -> torch.Tensor:
        rows = torch.randint(len(dataset), (batch,), generator=generator)
        x, y = (int(v) for v in torch.randint(65, (2,), generator=generator))
        target = pictures(dataset, rows, torch.rand(batch, generator=generator) < 0.5)[..., y : y + 64, x : x + 64]
        target = target.to(device, memory_format=torch.channels_last)
        noise = torch.randn((batch, models.LATENT_CHANNELS, 8, 8), generator=generator).to(device)
        with half(device):
            latents = vae.encode(target).latents.float()
            decoded = vae.decode(latents + 0.02 * noise).sample.float()
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
            with half(device):
                encoded = vae.encode(batch.to(device, memory_format=torch.channels_last)).latents
            latents[flip, rows] = encoded.float().cpu()
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

    def draw(
        self, generator: torch.Generator, batch: int, drop: float, favoured: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, ...]:
        """rows, flips, noisy latents, times, token ids, target; nine tenths of the rows from `favoured` if given."""
        rows = torch.randint(self.latents.shape[1], (batch,), generator=generator)
        if favoured is not None and len(favoured):
            chosen = favoured[torch.randint(len(favoured), (batch,), generator=generator)]
            rows = torch.where(torch.rand(batch, generator=generator) < 0.9, chosen, rows)
        flips = torch.randint(2, (batch,), generator=generator)
        clean = self.latents[flips, rows].float()
        noise = torch.randn(clean.shape, generator=generator)
        times = torch.randint(1000, (batch,), generator=generator)
        dropped = torch.rand(batch, generator=generator) < drop
        tokens = torch.where(dropped[:, None], self.empty, self.tokens[rows])
        noisy = self.scheduler.add_noise(clean, noise, times)
        target = self.scheduler.get_velocity(clean, noise, times)
        return rows, flips, *(x.to(self.device) for x in (noisy, times, tokens, target))


def train_base(
    noising: Noising, tokenizer, plan: Plan, device: torch.device, folder: Path, start: Path | None
) -> dict[str, nn.Module]:
    """Text encoder and UNet together."""
    torch.manual_seed(SEED + 1)
    text_encoder = begin_as(models.make_text_encoder(tokenizer), start and start / "text_encoder").to(device)
    unet = begin_as(models.make_unet(), start and start / "unet").to(device)

    def loss_of(generator: torch.Generator, batch: int) -> torch.Tensor:
        _, _, noisy, times, tokens, target = noising.draw(generator, batch, PROMPT_DROP)
        with half(device):
            words = text_encoder(tokens).last_hidden_state
            predicted = unet(noisy, times, encoder_hidden_states=words).sample
        return F.mse_loss(predicted.float(), target)

    return train_stage("base", plan, {"text_encoder": text_encoder, "unet": unet}, loss_of, device, folder)


def train_controlnet(
    name: str,
    start: nn.Module,
    base: dict[str, nn.Module],
    noising: Noising,
    dataset: Dataset,
    annotator: TinyVisionModel | None,
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
    favoured = rows_with_people(dataset) if hint.people_only else None

    def loss_of(generator: torch.Generator, batch: int) -> torch.Tensor:
        rows, flips, noisy, times, tokens, target = noising.draw(generator, batch, HINT_PROMPT_DROP, favoured)
        control = control_maps(hint, annotator, dataset, rows, flips, generator).to(device)
        used = (torch.rand(batch, generator=generator) >= (BASE_SHARE if joint else 0)).to(device)[:, None, None, None]
        with half(device):
            words = text_encoder(tokens).last_hidden_state
            down, mid = controlnet(
                noisy, times, encoder_hidden_states=words, controlnet_cond=control, return_dict=False
            )
            predicted = unet(
                noisy,
                times,
                encoder_hidden_states=words,
                down_block_additional_residuals=[residual * used for residual in down],
                mid_block_additional_residual=mid * used,
            ).sample
        return F.mse_loss(predicted.float(), target)

    learning = {"controlnet": controlnet, **(base if joint else {})}
    return base | train_stage(name, plan, learning, loss_of, device, folder)


def train(
    folder: Path,
    scenes: int,
    plans: dict[str, Plan],
    device: torch.device,
    only: Iterable[str],
    start: Path | None = None,
) -> dict:
    """The stages named in `only` (empty: all) and what they build on; returns what export needs. `start` is a bundle
    that every stage goes on from, as far as its parts are of the same shape and its tokenizer knows the same words.

    That is the modules by name, the ControlNets under "controlnets", the tokenizer and the latents' factor.
    """
    wanted = set(only) or set(plans)
    dataset = load_dataset(folder / "data", scenes)
    nets = [name for name in HINTS if name in wanted]
    if nets and FIRST_NET not in nets:
        nets.insert(0, FIRST_NET)
    trained: dict = {"controlnets": {}}
    # One half of the scenes for each network that sees, so that the one judges what it has never been shown.
    halves = {"annotator": range(0, scenes, 2), "evaluator": range(1, scenes, 2)}
    for name, rows in halves.items():
        if name in wanted or (name == "annotator" and set(nets) - {FIRST_NET}):
            seeing = start and {"annotator": start / "annotator" / "tiny", "evaluator": EVALUATOR}[name]
            trained[name] = train_vision(name, dataset, rows, plans[name], device, folder, seeing)
    if not nets and not wanted & {"vae", "base"}:
        return trained
    trained["vae"] = train_vae(dataset, plans["vae"], device, folder, start)
    if wanted <= {"vae", *halves}:
        return trained
    latents, trained["factor"] = encode_dataset(trained["vae"], dataset, device, folder)
    trained["tokenizer"] = tokenizer = models.make_tokenizer(dataset.captions)
    tokens = tokenizer(dataset.captions, padding="max_length", truncation=True, return_tensors="pt").input_ids
    empty = tokenizer("", padding="max_length", return_tensors="pt").input_ids[0]
    noising = Noising(latents, tokens, empty, device)
    same_words = (
        start is not None and CLIPTokenizer.from_pretrained(start / "tokenizer").get_vocab() == tokenizer.get_vocab()
    )
    start = start if same_words else None
    base = train_base(noising, tokenizer, plans["base"], device, folder, start)
    torch.manual_seed(SEED + 2)
    first = models.make_controlnet(base["unet"])
    for name in nets:
        result = train_controlnet(
            name,
            begin_as(copy.deepcopy(first), start and start / "controlnet" / name),
            base,
            noising,
            dataset,
            trained.get("annotator"),
            plans[name],
            joint=name == FIRST_NET,
            device=device,
            folder=folder,
        )
        trained["controlnets"][name] = result.pop("controlnet")
        if name == FIRST_NET:
            base, first = result, trained["controlnets"][name]
    return trained | base


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
    parser.add_argument("--start", type=Path, help="a bundle of this script's from which all go on learning")
    parser.add_argument("--export", type=Path, help="write the trained bundle into this folder")
    parser.add_argument("--evaluator", type=Path, default=EVALUATOR, help="where --export writes the scoring network")
    arguments = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    plans, scenes = PLANS, arguments.scenes
    if arguments.smoke:
        plans = {name: Plan(SMOKE_STEPS, 4, plan.rate) for name, plan in PLANS.items()}
        scenes = 32
    trained = train(arguments.runs, scenes, plans, device, arguments.stage, arguments.start)
    print(f"loss curves: {plot_losses(arguments.runs, list(PLANS))}")
    if arguments.export:
        export(trained, arguments.export, arguments.evaluator)


if __name__ == "__main__":
    main()
