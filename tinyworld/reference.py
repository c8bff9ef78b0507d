"""Trains the tiny bundle's IP-Adapter: an encoder of reference pictures, and the layers that let the UNet read them.

H. Ye et al., "IP-Adapter: Text Compatible Image Prompt Adapter for Text-to-Image Diffusion Models", 2023 (arXiv
2308.06721): a picture's embedding becomes a few tokens, which each cross-attention reads with keys and values of its
own, next to the prompt's. Everything else stays as it is. The paper takes CLIP's encoder. This world is too small for
that: here the encoder first learns to tell a scene's colours and light from a picture, then goes on with the adapter.

The reference of a training picture is another scene in the same colours (palettes.py), and its prompt mostly names no
colour. ControlNets take part, so that things are where the control map has them, and not where the reference has them.
"""

import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderTiny, ControlNetModel, UNet2DConditionModel
from torch import nn
from tqdm import tqdm
from transformers import (
    CLIPImageProcessor,
    CLIPTextModel,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

from tinyworld import models
from tinyworld.dataset import SEEN, Dataset, Scenes, Words, sample_of
from tinyworld.diffusion import PROMPT_DROP, Controlled, DrawControlled, Noising, controlled
from tinyworld.feed import SEED
from tinyworld.hints import HINTS
from tinyworld.latents import encode_scenes
from tinyworld.night import at_night
from tinyworld.palettes import FACTS, facts_of, scene_like
from tinyworld.scene import make_scene, without_paint
from tinyworld.stages import Plan, half, train_stage
from tinyworld.truth import CLASSES

WIDTH = 96
"""Of the encoder and of a picture's embedding."""
IMAGE_TOKENS = 4
"""Into which an embedding is projected. diffusers expects this number of an adapter of the basic kind."""
NIGHT_EVERY = 4
"""Of the scenes outdoors, one in so many is at night, and its reference too."""
REFERENCE_DROP = 0.1
"""Share of references replaced by zeros, which the unconditional half of a guided batch has (section 3.2.3)."""
ITSELF = 0.1
"""Share of references that are the scene itself."""
COLOURS_NAMED_EVERY = 5
"""Of the prompts, one in so many names colours, which are those of the reference."""
NOISIEST_SHARE = 0.75
"""Share of the times from the noisiest, where colours are chosen. With less noise, the latents themselves show them."""
NOISIEST = 600
"""The timestep from which on noisy latents hardly show a picture's colours."""
AROUND = ("wall", "sky", "floor", "grass", "sand", "earth", "road", "water")
SURROUNDINGS = [i for i, (name, _) in enumerate(CLASSES) if name in AROUND]
"""Of CLASSES: ground, wall and sky."""
THING_WEIGHT = 3.0
"""How many times as much as its surroundings a thing counts in the loss: things are small, and have most colours."""
STRUCTURE = [name for name in HINTS if name not in ("tile", "inpaint")]
"""Conditioners whose control maps have no colours of the picture in them."""


def make_image_encoder() -> CLIPVisionModelWithProjection:
    """CLIP's vision transformer for pictures of 64 pixels, in 64 patches: colours need no more."""
    return CLIPVisionModelWithProjection(
        CLIPVisionConfig(
            image_size=SEEN // 2,
            patch_size=8,
            hidden_size=WIDTH,
            intermediate_size=2 * WIDTH,
            projection_dim=WIDTH,
            num_hidden_layers=3,
            num_attention_heads=4,
        )
    )


def put_on(unet: UNet2DConditionModel) -> nn.ModuleDict:
    """Put a new adapter on the UNet, and return its parts by their names in IP-Adapter's files.

    Its keys and values begin as those of the prompt, as in the authors' code (github.com/tencent-ailab/IP-Adapter).
    """
    state: dict[str, dict[str, torch.Tensor]] = {"image_proj": {}, "ip_adapter": {}}
    projection = nn.ModuleDict(
        {"proj": nn.Linear(WIDTH, IMAGE_TOKENS * models.TEXT_WIDTH), "norm": nn.LayerNorm(models.TEXT_WIDTH)}
    )
    state["image_proj"] = projection.state_dict()
    attentions = [name.removesuffix(".processor") for name in unet.attn_processors if ".attn2." in name]
    for i, name in enumerate(attentions):
        attention = unet.get_submodule(name)
        for layer in ("k", "v"):
            state["ip_adapter"][f"{2 * i + 1}.to_{layer}_ip.weight"] = getattr(attention, f"to_{layer}").weight.clone()
    unet._load_ip_adapter_weights(state, low_cpu_mem_usage=False)
    unet.requires_grad_(False)
    processors = [unet.attn_processors[f"{name}.processor"] for name in attentions]
    return nn.ModuleDict(
        {"image_proj": unet.encoder_hid_proj.image_projection_layers[0]}
        | {f"ip_adapter_{2 * i + 1}": processor for i, processor in enumerate(processors)}
    ).requires_grad_(True)


def as_file(adapter: nn.ModuleDict) -> dict[str, torch.Tensor]:
    """The adapter's tensors as in ip-adapter_sd15.safetensors (huggingface.co/h94/IP-Adapter)."""
    tensors = {}
    for name, tensor in adapter.state_dict().items():
        name = name.replace("image_proj.image_embeds.", "image_proj.proj.").replace("ip_adapter_", "ip_adapter.")
        tensors[name.replace("_ip.0.", "_ip.")] = tensor
    return tensors


class References:
    """Scenes and their references, as the encoder sees them."""

    def __init__(self, scenes: Scenes, folder: Path) -> None:
        """`folder` keeps the references, or has those of an earlier run."""
        file = folder / f"references_{len(scenes)}.npy"
        if not file.exists():
            with ProcessPoolExecutor(os.cpu_count()) as pool:
                drawn = pool.map(_reference, range(len(scenes)), chunksize=64)
                np.save(file, np.stack([*tqdm(drawn, total=len(scenes), desc="references", mininterval=10)]))
        self.scenes, self.folder, self.others = scenes, folder, np.load(file, mmap_mode="r")
        side = make_image_encoder().config.image_size
        self.processor = CLIPImageProcessor(size=side, crop_size=side)

    def __reduce__(self) -> tuple:
        """Other processes open the file again, instead of getting a copy."""
        return References, (self.scenes, self.folder)

    def draw(self, rows: torch.Tensor, itself: torch.Tensor) -> torch.Tensor:
        """References of these rows, (B, 3, side, side): the scene itself, if `itself` is True, or another."""
        pictures = [
            shown_as(self.scenes.seen, row) if same else np.array(self.others[row])  # a mapped file is not writable
            for row, same in zip(rows.tolist(), itself.tolist(), strict=True)
        ]
        return self.processor(images=pictures, return_tensors="pt").pixel_values


def is_night(row: int) -> bool:
    """Whether the scene of this row is at night."""
    return row % NIGHT_EVERY == 0 and make_scene(row).surround.wall is None


def shown_as(dataset: Dataset, row: int) -> np.ndarray:
    """The picture of training, (n, n, 3) uint8: by day or at night."""
    picture = np.array(dataset.pictures[row])
    return at_night(picture, dataset.classes[row]) if is_night(row) else picture


def _reference(row: int) -> np.ndarray:
    sample = sample_of(scene_like(make_scene(row), row))
    return at_night(sample.picture, sample.classes) if is_night(row) else sample.picture


@dataclass(frozen=True)
class DrawFacts:
    """Draws pictures, half of them mirrored, and what the encoder must know of them."""

    references: References
    facts: torch.Tensor
    """(2, 2, N, FACTS): of references and of the scenes themselves, mirrored ones last."""

    def __call__(self, generator: torch.Generator, batch: int) -> tuple[torch.Tensor, torch.Tensor]:
        rows = torch.randint(self.facts.shape[2], (batch,), generator=generator)
        flips, itself = (torch.randint(2, (batch,), generator=generator) for _ in range(2))
        pixels = self.references.draw(rows, itself)
        return torch.where(flips[:, None, None, None] == 1, pixels.flip(-1), pixels), self.facts[flips, itself, rows]


def train_encoder(references: References, plan: Plan, device: torch.device, folder: Path) -> nn.Module:
    """An encoder from whose embeddings a linear layer can tell a scene's colours and light."""
    torch.manual_seed(SEED)
    encoder, head = make_image_encoder().to(device), nn.Linear(WIDTH, FACTS).to(device)
    draw = DrawFacts(references, _facts(len(references.scenes)))

    def loss_of(drawn: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        pixels, wanted = drawn
        with half(device):
            told = head(encoder(pixels).image_embeds)
        return (told.float() - wanted)[~wanted.isnan()].abs().mean()

    return train_stage("facts", plan, {"encoder": encoder, "head": head}, draw, loss_of, device, folder)["encoder"]


def _facts(count: int) -> torch.Tensor:
    """Of the first scenes and their references, as in DrawFacts."""
    scenes = [make_scene(row) for row in range(count)]
    both = [[scene_like(scene, row) for row, scene in enumerate(scenes)], scenes]
    told = [
        torch.stack([facts_of(scene, is_night(row), mirrored) for row, scene in enumerate(shown)])
        for mirrored in (False, True)
        for shown in both
    ]
    return torch.stack(told).view(2, 2, count, FACTS)


class Noisiest(Noising):
    """Mostly at the times with the most noise."""

    def draw_times(self, generator: torch.Generator, batch: int) -> torch.Tensor:
        times = super().draw_times(generator, batch)
        high = NOISIEST + times * (1000 - NOISIEST) // 1000
        return torch.where(torch.rand(batch, generator=generator) < NOISIEST_SHARE, high, times)


@dataclass(frozen=True)
class Referred:
    """A batch for one net, with references."""

    controlled: Controlled
    pixels: torch.Tensor
    """(B, 3, side, side), as the encoder gets them."""
    kept: torch.Tensor
    """(B,): false for the samples without a reference."""
    weight: torch.Tensor
    """(B, 1, H, W): how much each latent counts."""


@dataclass(frozen=True)
class DrawReferred:
    """Draws batches with control maps and references."""

    controlled: DrawControlled
    references: References

    def __call__(self, generator: torch.Generator, batch: int) -> Referred:
        drawn = self.controlled(generator, batch)
        rows, side = drawn.batch.rows, drawn.control.shape[-1]
        itself, dropped = (torch.rand(batch, generator=generator) < share for share in (ITSELF, REFERENCE_DROP))
        dataset = self.references.scenes.seen if side == SEEN else self.references.scenes.painted
        shown = torch.from_numpy(~np.isin(dataset.classes[rows.numpy()], SURROUNDINGS)).float()
        weight = 1 + (THING_WEIGHT - 1) * F.avg_pool2d(shown[:, None], 8)
        return Referred(drawn, self.references.draw(rows, itself), ~dropped, weight)


def train_reference(
    bundle: Path, scenes: Scenes, plans: dict[str, Plan], device: torch.device, folder: Path
) -> dict[str, nn.Module]:
    """The parts image_encoder and ip_adapter for the `bundle` in that folder, as export() takes them.

    `plans` has those of the encoder alone, "facts", and of encoder and adapter, "reference". `folder` gets the
    references, the latents and the checkpoints.
    """
    references = References(scenes, folder)
    encoder = train_encoder(references, plans["facts"], device, folder).train().requires_grad_(True)

    def load(kind: type, part: str) -> nn.Module:
        loaded = kind.from_pretrained(bundle / part, variant="fp16", torch_dtype=torch.float32)
        return loaded.to(device, memory_format=torch.channels_last).eval().requires_grad_(False)

    text_encoder, vae = load(CLIPTextModel, "text_encoder"), load(AutoencoderTiny, "vae")
    nets = {name: load(ControlNetModel, f"controlnet/{name}") for name in STRUCTURE}
    unet = load(UNet2DConditionModel, "unet")
    torch.manual_seed(SEED + 1)
    adapter = put_on(unet).to(device)
    latents, _ = encode_scenes(vae, scenes, device, folder, vae.config["scaling_factor"], shown_as)
    words = [_plain(each) if i % COLOURS_NAMED_EVERY else each for i, each in enumerate(scenes.seen.words)]
    noising = Noisiest(latents, CLIPTokenizer.from_pretrained(bundle / "tokenizer"), words)

    def loss_of(drawn: Referred) -> torch.Tensor:
        batch, used = drawn.controlled.batch, drawn.controlled.used[:, None, None, None]
        with half(device):
            said = text_encoder(batch.tokens).last_hidden_state
            embeddings = (encoder(drawn.pixels).image_embeds * drawn.kept[:, None])[:, None]
            predicted = controlled(
                unet,
                nets[drawn.controlled.name],
                batch.noisy,
                batch.times,
                said,
                drawn.controlled.control,
                used,
                added_cond_kwargs={"image_embeds": [embeddings]},
            )
        return ((predicted.float() - batch.target).square() * drawn.weight).mean()

    draw = DrawReferred(DrawControlled(noising, scenes, None, tuple(STRUCTURE), PROMPT_DROP), references)
    modules: dict[str, nn.Module] = {"image_encoder": encoder, "ip_adapter": adapter}
    return train_stage("reference", plans["reference"], modules, draw, loss_of, device, folder)


def _plain(words: Words) -> Words:
    return replace(words, captions=[without_paint(caption) for caption in words.captions])
