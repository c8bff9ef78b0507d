"""Trains the tiny bundle: VAE, then text encoder and UNet, then one ControlNet per conditioner together with them.

Pictures have 256 pixels to a side, in a fifth of the steps 128. Annotators and the scoring network see them at 128.

Every stage saves checkpoints in RUNS/<stage>.pt and continues from there if it runs again. The same seed, steps, device
and tokenizer give the same weights: batch i of a stage draws from a generator seeded by (stage, i).
"""

import argparse
import copy
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from transformers import CLIPTokenizer

from tinyworld import models, one_net, reference
from tinyworld.dataset import PICTURE, Scenes, load_scenes
from tinyworld.diffusion import Noising, train_base, train_nets
from tinyworld.export import EVALUATOR, export
from tinyworld.feed import SEED
from tinyworld.hints import HINTS
from tinyworld.latents import encode_scenes, pictures
from tinyworld.loras import LORAS, train_lora
from tinyworld.one_net import FIRST_NET
from tinyworld.plans import CONTINUED, FROM_NOTHING, RENDERING, within
from tinyworld.plots import plot_losses
from tinyworld.stages import Plan, begin_as, half, train_stage
from tinyworld.vision import train_vision

ROOT = Path(__file__).resolve().parent.parent
RUNS = ROOT / "runs" / "tiny"
TINY = ROOT / "weights" / "tiny"
STAGES = ("vae", "annotator", "evaluator", "base", "first", "nets")
SMOKE_STEPS = 3
CROP = 96
"""Side of the crops that the VAE learns from: it is fully convolutional and works at any size."""


@dataclass(frozen=True)
class DrawCrops:
    """Draws parts of pictures, (B, 3, CROP, CROP), and noise for their latents."""

    scenes: Scenes

    def __call__(self, generator: torch.Generator, batch: int) -> tuple[torch.Tensor, torch.Tensor]:
        rows = torch.randint(len(self.scenes), (batch,), generator=generator)
        x, y = (int(v) for v in torch.randint(PICTURE - CROP + 1, (2,), generator=generator))
        whole = pictures(self.scenes.painted, rows)
        noise = torch.randn((batch, models.LATENT_CHANNELS, *(CROP // 8,) * 2), generator=generator)
        return whole[..., y : y + CROP, x : x + CROP].contiguous(), noise


def train_vae(scenes: Scenes, plan: Plan, device: torch.device, folder: Path, earlier: Path | None) -> nn.Module:
    torch.manual_seed(SEED)
    vae = begin_as(models.make_vae(), earlier and earlier / "vae").to(device, memory_format=torch.channels_last)
    if earlier:  # not a weight, so begin_as() leaves it: the other networks know latents of this scale
        vae.register_to_config(scaling_factor=type(vae).load_config(earlier / "vae")["scaling_factor"])

    def loss_of(drawn: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        target, noise = drawn[0].to(memory_format=torch.channels_last), drawn[1]
        with half(device):
            latents = vae.encode(target).latents.float()
            decoded = vae.decode(latents + 0.02 * noise).sample.float()
        edges = sum((decoded.diff(dim=axis) - target.diff(dim=axis)).abs().mean() for axis in (-1, -2))
        return F.l1_loss(decoded, target) + F.mse_loss(decoded, target) + 0.5 * edges + 1e-3 * latents.square().mean()

    return train_stage("vae", plan, {"vae": vae}, DrawCrops(scenes), loss_of, device, folder)["vae"]


def train(
    folder: Path,
    scenes: Scenes,
    plans: dict[str, Plan],
    device: torch.device,
    only: Iterable[str],
    earlier: Path | None = None,
) -> dict:
    """Train the stages named in `only` and those they build on; empty means all. Returns what export() needs: the
    modules by name, the ControlNets under "controlnets", the tokenizer and the factor of the latents.

    `earlier` is a bundle from which every stage continues if its parts have the same shape. Its tokenizer is kept if it
    knows all words. The stages on which those in `only` build are then taken from it unchanged.
    """
    wanted, count = set(only) or set(STAGES), len(scenes)
    trained: dict = {}

    def plan_of(stage: str) -> Plan:
        return plans[stage] if stage in wanted or earlier is None else replace(plans[stage], steps=0)

    # Half of the scenes for each vision network, so that the evaluator has never seen what the annotator learnt from.
    halves = {"annotator": range(0, count, 2), "evaluator": range(1, count, 2)}
    for name, rows in halves.items():
        if name in wanted or (name == "annotator" and "nets" in wanted):
            seeing = earlier and {"annotator": earlier / "annotator" / "tiny", "evaluator": EVALUATOR}[name]
            trained[name] = train_vision(name, scenes, rows, plan_of(name), device, folder, seeing)
    if wanted <= {*halves}:
        return trained
    trained["vae"] = train_vae(scenes, plan_of("vae"), device, folder, earlier)
    if wanted <= {"vae", *halves}:
        return trained
    kept = trained["vae"].config.scaling_factor if earlier and not plan_of("vae").steps else None
    latents, trained["factor"] = encode_scenes(trained["vae"], scenes, device, folder, kept)
    words = scenes.seen.words
    trained["tokenizer"] = _tokenizer([caption for each in words for caption in each.captions], folder, earlier)
    noising = Noising(latents, trained["tokenizer"], words)
    base = train_base(noising, plan_of("base"), device, folder, earlier)
    if wanted & {"first", "nets"}:
        torch.manual_seed(SEED + 2)
        net = begin_as(models.make_controlnet(base["unet"]), earlier and earlier / "controlnet" / FIRST_NET)
        seeing = trained.get("annotator")
        base, nets = train_nets(
            "first", {FIRST_NET: net}, base, noising, scenes, seeing, plan_of("first"), device, folder
        )
        if "nets" in wanted:
            nets = {
                name: begin_as(copy.deepcopy(nets[FIRST_NET]), earlier and earlier / "controlnet" / name)
                for name in HINTS
            }
            base, nets = train_nets("nets", nets, base, noising, scenes, seeing, plans["nets"], device, folder)
        trained["controlnets"] = nets
    return {"controlnets": {}} | trained | base


def train_net(
    name: str, folder: Path, scenes: Scenes, plan: Plan, device: torch.device, earlier: Path
) -> dict[str, dict[str, nn.Module]]:
    """One ControlNet for the bundle `earlier`, as export() takes it. Its latents and checkpoints have their own folder,
    because those of other runs may be of another VAE."""
    own = folder / f"net_{name}"
    own.mkdir(exist_ok=True)
    vae = train_vae(scenes, replace(plan, steps=0), device, own, earlier)
    latents, _ = encode_scenes(vae, scenes, device, own, vae.config["scaling_factor"])
    return {"controlnets": {name: one_net.train_one_net(name, earlier, scenes, latents, plan, device, own)}}


def train_reference(
    folder: Path, scenes: Scenes, plans: dict[str, Plan], device: torch.device, earlier: Path
) -> dict[str, nn.Module]:
    """The IP-Adapter for the bundle `earlier` and its encoder, as export() takes them."""
    own = folder / "reference"
    own.mkdir(exist_ok=True)
    return reference.train_reference(earlier, scenes, plans, device, own)


def _tokenizer(captions: list[str], folder: Path, earlier: Path | None) -> CLIPTokenizer:
    """The tokenizer of the run in `folder`, if there is one. Else the earlier bundle's, if it knows all words, or a new
    one, which is saved in `folder`.

    The tokenizers library numbers tokens in a different order each time, so a stage that runs again would read other
    words than it has learnt.
    """
    kept = folder / "tokenizer"
    if kept.exists():
        return CLIPTokenizer.from_pretrained(kept)
    if earlier and models.knows(CLIPTokenizer.from_pretrained(earlier / "tokenizer"), captions):
        return CLIPTokenizer.from_pretrained(earlier / "tokenizer")
    models.make_tokenizer(captions).save_pretrained(kept)
    return CLIPTokenizer.from_pretrained(kept)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="script/train-tiny", description="Train the tiny bundle; continues where it stopped."
    )
    parser.add_argument(
        "--stage",
        action="append",
        default=[],
        choices=STAGES,
        help="only this stage and what it builds on; with --start, vae and first need --steps",
    )
    parser.add_argument(
        "--steps",
        action="append",
        default=[],
        nargs=2,
        metavar=("STAGE", "N"),
        help="train this stage for N steps instead of its usual number; give another N to continue it",
    )
    parser.add_argument(
        "--minutes",
        type=float,
        help="on a GPU: everything, both LoRAs too, and the IP-Adapter if there is one, within so many minutes, "
        "from --start to --export",
    )
    parser.add_argument("--smoke", action="store_true", help="all stages, a few steps each; choose a separate --runs")
    parser.add_argument("--runs", type=Path, default=RUNS, help="folder for data and checkpoints")
    parser.add_argument("--scenes", type=int, default=10000, help="how many scenes to render")
    parser.add_argument("--net", choices=list(HINTS), help="only this ControlNet, for the bundle of --start")
    parser.add_argument("--lora", choices=list(LORAS), help="only this LoRA, for the bundle of --start")
    parser.add_argument("--reference", action="store_true", help="only the IP-Adapter, for the bundle of --start")
    parser.add_argument("--start", type=Path, help="a bundle made by this script, from which all stages continue")
    parser.add_argument("--export", type=Path, help="folder for the trained bundle, or file for the LoRA")
    parser.add_argument("--evaluator", type=Path, default=EVALUATOR, help="where --export writes the scoring network")
    arguments = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    plans, count = dict(CONTINUED if arguments.start else FROM_NOTHING), arguments.scenes
    if arguments.minutes:
        plans = within(arguments.minutes)
    for stage, steps in arguments.steps:
        if stage not in plans or not steps.isdigit():
            parser.error(f"--steps: expected a stage of {', '.join(plans)} and a number, got {stage} {steps}")
        plans[stage] = replace(plans[stage], steps=int(steps))
    if arguments.smoke:
        plans = {name: replace(plan, steps=SMOKE_STEPS, batch=4) for name, plan in plans.items()}
        count = 32
    if (arguments.net or arguments.lora or arguments.reference) and not arguments.start:
        parser.error("--net, --lora and --reference need --start, the bundle for which they train")
    if arguments.minutes and not (arguments.start and arguments.export):
        parser.error("--minutes needs --start and --export")
    if arguments.minutes and arguments.export.resolve() != TINY:
        parser.error("--minutes also writes both LoRAs to their usual places, so it needs --export weights/tiny")
    rendering = RENDERING * 60 * arguments.minutes if arguments.minutes else None
    scenes = load_scenes(arguments.runs / "data", count, rendering)

    def lora(name: str, bundle: Path, file: Path) -> None:
        train_lora(name, arguments.runs, scenes, bundle, device, plans[name], file)

    if arguments.lora:
        return lora(arguments.lora, arguments.start, arguments.export or Path(LORAS[arguments.lora]))
    if arguments.net:
        trained = train_net(arguments.net, arguments.runs, scenes, plans["net"], device, arguments.start)
    elif arguments.reference:
        trained = train_reference(arguments.runs, scenes, plans, device, arguments.start)
    else:
        trained = train(arguments.runs, scenes, plans, device, arguments.stage, arguments.start)
        print(f"loss curves: {plot_losses(arguments.runs, STAGES)}")
    if arguments.export:
        export(trained, arguments.export, arguments.evaluator)
    if arguments.minutes:
        for name, file in LORAS.items():
            lora(name, arguments.export, Path(file))
        if (arguments.start / "ip_adapter").exists():
            export(train_reference(arguments.runs, scenes, plans, device, arguments.export), arguments.export)


if __name__ == "__main__":
    main()
