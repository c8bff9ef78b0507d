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
from dataclasses import replace
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
from tinyworld.dataset import SIZE, Dataset, sample_of
from tinyworld.diffusion import BASE_SHARE, PROMPT_DROP, Noising, controlled
from tinyworld.few_steps import latents_of
from tinyworld.hints import HINTS, control_maps, rows_with_people
from tinyworld.night import at_night
from tinyworld.palettes import FACTS, facts_of, scene_like
from tinyworld.scene import colourless, make_scene
from tinyworld.stages import SEED, Plan, half, train_stage
from tinyworld.truth import CLASSES

PLANS = {"facts": Plan(3000, 48, 1e-3), "reference": Plan(2200, 16, 1e-3)}
"""Of the encoder alone, and of encoder and adapter. About half an hour on one core, after the scenes are rendered."""
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
FIRST_THING = [name for name, _ in CLASSES].index("tree")
"""Of CLASSES, the first that is not ground, wall or sky."""
THING_WEIGHT = 3.0
"""How many times as much as its surroundings a thing counts in the loss: things are small, and have most colours."""
STRUCTURE = [name for name in HINTS if name not in ("tile", "inpaint")]
"""Conditioners whose control maps have no colours of the picture in them."""


def make_image_encoder() -> CLIPVisionModelWithProjection:
    """CLIP's vision transformer for pictures of 64 pixels, in 64 patches."""
    return CLIPVisionModelWithProjection(
        CLIPVisionConfig(
            image_size=SIZE // 2,
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
    """The pictures of training and their references, as the encoder sees them."""

    def __init__(self, dataset: Dataset, folder: Path) -> None:
        """`folder` keeps the references, or has those of an earlier run."""
        file = folder / f"references_{len(dataset)}.npy"
        if not file.exists():
            with ProcessPoolExecutor(os.cpu_count()) as pool:
                drawn = pool.map(_reference, range(len(dataset)), chunksize=64)
                np.save(file, np.stack([*tqdm(drawn, total=len(dataset), desc="references")]))
        self.dataset, self.others = dataset, np.load(file, mmap_mode="r")
        self.nights = torch.tensor([is_night(row) for row in range(len(dataset))])
        side = make_image_encoder().config.image_size
        self.processor = CLIPImageProcessor(size=side, crop_size=side)

    def picture(self, row: int) -> np.ndarray:
        """The picture of training, (128, 128, 3) uint8, by day or at night."""
        picture = self.dataset.pictures[row]
        return at_night(picture, self.dataset.classes[row]) if self.nights[row] else picture

    def draw(self, rows: torch.Tensor, flips: torch.Tensor, itself: torch.Tensor) -> torch.Tensor:
        """References of these rows, (B, 3, side, side): the scene itself, if `itself` is True, or another. Mirrored if
        `flips` is 1."""
        pictures = [
            np.array(self.picture(row) if same else self.others[row])  # those in a mapped file are not writable
            for row, same in zip(rows.tolist(), itself.tolist(), strict=True)
        ]
        pixels = self.processor(images=pictures, return_tensors="pt").pixel_values
        return torch.where(flips[:, None, None, None] == 1, pixels.flip(-1), pixels)


def is_night(row: int) -> bool:
    """Whether the scene of this row is at night."""
    return row % NIGHT_EVERY == 0 and make_scene(row).surround.wall is None


def _reference(row: int) -> np.ndarray:
    sample = sample_of(scene_like(make_scene(row), row))
    return at_night(sample.picture, sample.classes) if is_night(row) else sample.picture


def train_encoder(references: References, plan: Plan, device: torch.device, folder: Path) -> nn.Module:
    """An encoder from whose embeddings a linear layer can tell a scene's colours and light."""
    torch.manual_seed(SEED)
    encoder, head = make_image_encoder().to(device), nn.Linear(WIDTH, FACTS).to(device)
    scenes = [make_scene(row) for row in range(len(references.dataset))]
    both = [[scene_like(scene, row) for row, scene in enumerate(scenes)], scenes]
    facts = torch.stack(
        [
            torch.stack([facts_of(scene, is_night(row), mirrored) for row, scene in enumerate(shown)])
            for mirrored in (False, True)
            for shown in both
        ]
    )

    def loss_of(generator: torch.Generator, batch: int) -> torch.Tensor:
        rows = torch.randint(len(scenes), (batch,), generator=generator)
        flips, itself = (torch.randint(2, (batch,), generator=generator) for _ in range(2))
        pixels, wanted = references.draw(rows, flips, itself).to(device), facts[2 * flips + itself, rows].to(device)
        with half(device):
            told = head(encoder(pixels).image_embeds)
        return (told.float() - wanted)[~wanted.isnan()].abs().mean()

    return train_stage("facts", plan, {"encoder": encoder, "head": head}, loss_of, device, folder)["encoder"]


def _latents(vae: nn.Module, references: References, device: torch.device, folder: Path) -> torch.Tensor:
    file = folder / f"latents_{len(references.dataset)}.pt"
    if not file.exists():
        painted = np.stack([references.picture(row) for row in range(len(references.dataset))])
        torch.save(latents_of(vae, replace(references.dataset, pictures=painted), device).half(), file)
    return torch.load(file, weights_only=True)


def train_reference(
    bundle: Path, dataset: Dataset, plans: dict[str, Plan], device: torch.device, folder: Path
) -> dict[str, nn.Module]:
    """The parts image_encoder and ip_adapter for the `bundle` in that folder, as export() takes them.

    `plans` are as PLANS. `folder` gets the references and the checkpoints.
    """
    references = References(dataset, folder)
    encoder = train_encoder(references, plans["facts"], device, folder).train().requires_grad_(True)

    def load(kind: type, part: str) -> nn.Module:
        loaded = kind.from_pretrained(bundle / part, variant="fp16", torch_dtype=torch.float32)
        return loaded.to(device, memory_format=torch.channels_last).eval().requires_grad_(False)

    text_encoder, vae = load(CLIPTextModel, "text_encoder"), load(AutoencoderTiny, "vae")
    nets = {name: load(ControlNetModel, f"controlnet/{name}") for name in STRUCTURE}
    unet = load(UNet2DConditionModel, "unet")
    torch.manual_seed(SEED + 1)
    adapter = put_on(unet).to(device)
    tokenizer = CLIPTokenizer.from_pretrained(bundle / "tokenizer")
    captions = [colourless(each) if i % COLOURS_NAMED_EVERY else each for i, each in enumerate(dataset.captions)]
    noising = Noising(_latents(vae, references, device, folder), *models.tokens_of(tokenizer, captions), device)
    people = rows_with_people(dataset)
    weights = torch.tensor([HINTS[name].weight for name in STRUCTURE], dtype=torch.float)

    def loss_of(generator: torch.Generator, batch: int) -> torch.Tensor:
        def chosen(share: float) -> torch.Tensor:
            return torch.rand(batch, generator=generator) < share

        name = STRUCTURE[int(torch.multinomial(weights, 1, generator=generator))]
        hint = HINTS[name]
        rows, flips, noisy, times, tokens, target = noising.draw(
            generator, batch, PROMPT_DROP, people if hint.people_only else None, NOISIEST_SHARE
        )
        control = control_maps(hint, None, dataset, rows, flips, generator).to(device)
        used = (~chosen(BASE_SHARE)).to(device)[:, None, None, None]
        pixels = references.draw(rows, flips, chosen(ITSELF)).to(device)
        kept = (~chosen(REFERENCE_DROP)).to(device)[:, None]
        with half(device):
            words = text_encoder(tokens).last_hidden_state
            embeddings = (encoder(pixels).image_embeds * kept)[:, None]
            predicted = controlled(
                unet, nets[name], noisy, times, words, control, used, added_cond_kwargs={"image_embeds": [embeddings]}
            )
        shown = torch.from_numpy(dataset.classes[rows.numpy()] >= FIRST_THING).float()
        shown = F.avg_pool2d(torch.where(flips[:, None, None] == 1, shown.flip(-1), shown)[:, None], 8).to(device)
        return ((predicted.float() - target).square() * (1 + (THING_WEIGHT - 1) * shown)).mean()

    modules: dict[str, nn.Module] = {"image_encoder": encoder, "ip_adapter": adapter}
    return train_stage("reference", plans["reference"], modules, loss_of, device, folder)
