"""Trains one more ControlNet for a tiny bundle: it learns alone, and the base and the other nets stay as they are.

The base is frozen, as in ControlNet's paper (arXiv 2302.05543), so the pictures of all other conditioners keep every
byte. Training all nets together (train.py) makes better nets. Use it if the base may change.
"""

from pathlib import Path

import torch
from torch import nn
from transformers import CLIPTokenizer

from controlnet.maps.annotators.tiny_network import TinyVisionModel
from tinyworld import models
from tinyworld.dataset import Scenes
from tinyworld.diffusion import Noising, train_base, train_nets
from tinyworld.hints import HINTS
from tinyworld.stages import Plan, begin_as

NO_STEPS = Plan(0, 1, 1e-3)
FIRST_NET = "canny"
"""The conditioner whose net every other begins as a copy of, unless the bundle has one of its name already."""


def train_one_net(
    name: str,
    bundle: Path,
    scenes: Scenes,
    latents: dict[int, torch.Tensor],
    plan: Plan,
    device: torch.device,
    folder: Path,
) -> nn.Module:
    """The ControlNet of conditioner `name`, a key of HINTS, for the `bundle` in that folder.

    `latents` are the scenes', by the bundle's VAE (latents.encode_scenes). `folder` gets the checkpoints.
    Raises ValueError if HINTS has no such conditioner.
    """
    if name not in HINTS:
        raise ValueError(f"tinyworld/hints.py has no hint for {name!r}: it has {', '.join(HINTS)}.")
    tokenizer = CLIPTokenizer.from_pretrained(bundle / "tokenizer")
    noising = Noising(latents, tokenizer, scenes.seen.words)
    base = train_base(noising, NO_STEPS, device, folder, bundle)
    own = bundle / "controlnet" / name
    net = begin_as(models.make_controlnet(base["unet"]), own if own.exists() else bundle / "controlnet" / FIRST_NET)
    seeing = TinyVisionModel.from_pretrained(bundle / "annotator" / "tiny", variant="fp16", torch_dtype=torch.float32)
    stage = f"net_{name}"
    _, nets = train_nets(
        stage, {name: net}, base, noising, scenes, seeing.to(device).eval(), plan, device, folder, base_learns=False
    )
    return nets[name]
