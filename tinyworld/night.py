"""Trains examples/night.safetensors, a LoRA with which the tiny bundle paints every scene at night.

It is trained as people train LoRAs for Stable Diffusion: on pictures of one look with their usual captions, without
ControlNets. Everything but the LoRA stays as it is.
"""

from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderTiny, UNet2DConditionModel
from peft import get_peft_model_state_dict
from transformers import CLIPTextModel, CLIPTokenizer

from tinyworld.dataset import Dataset, Scenes
from tinyworld.diffusion import Batch, Noising
from tinyworld.few_steps import add_lora
from tinyworld.stages import Plan, half, train_stage
from tinyworld.truth import CLASSES

RANK = 8
NIGHT = np.array([0.20, 0.26, 0.50], np.float32)
"""How much of red, green and blue is left."""
LAMP = np.array([255, 214, 110], np.float32)
"""Of lit windows."""
SKY = np.array([[6, 8, 30], [34, 42, 92]], np.float32)
"""At the top and at the horizon."""
MOON, RADIUS = (0.78, 0.14), 0.06
"""Where it stands and how large it is, as shares of the picture's side."""


def at_night(picture: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """The picture of a scene, (n, n, 3) uint8, as it looks at night: dark blue, with a moon and lit windows.

    `classes` are the indices into CLASSES of what each pixel shows.
    """
    size, number = len(picture), {name: index for index, (name, _) in enumerate(CLASSES)}
    dark = picture.astype(np.float32) * NIGHT
    height = np.linspace(0, 1, size, dtype=np.float32)[:, None, None]
    heaven = SKY[0] + (SKY[1] - SKY[0]) * height + np.zeros((size, size, 3), np.float32)
    x, y = (round(share * size) for share in MOON)
    cv2.circle(heaven, (x, y), round(RADIUS * size), (236, 232, 205), -1, cv2.LINE_AA)
    dark = np.where((classes == number["sky"])[..., None], heaven, dark)
    dark = np.where((classes == number["windowpane"])[..., None], LAMP, dark)
    return dark.clip(0, 255).astype(np.uint8)


@torch.no_grad()
def night_latents(vae: AutoencoderTiny, dataset: Dataset, device: torch.device) -> torch.Tensor:
    """(N, C, n / 8, n / 8), scaled as the bundle's."""
    rows = []
    for i in range(len(dataset)):
        picture = at_night(dataset.pictures[i], dataset.classes[i])
        pixels = torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 127.5 - 1
        encoded: torch.Tensor = vae.encode(pixels.to(device)).latents
        rows.append(encoded * vae.config["scaling_factor"])
    return torch.cat(rows).cpu()


def train_night(
    bundle: Path, scenes: Scenes, plan: Plan, device: torch.device, folder: Path, earlier: Path
) -> dict[str, torch.Tensor]:
    """The LoRA of a bundle's UNet, as peft names its tensors. It continues from the one in the file `earlier`, if that
    is there."""
    tokenizer = CLIPTokenizer.from_pretrained(bundle / "tokenizer")
    vae = AutoencoderTiny.from_pretrained(bundle / "vae", variant="fp16", torch_dtype=torch.float32).to(device).eval()
    load = {"variant": "fp16", "torch_dtype": torch.float32}
    text_encoder = CLIPTextModel.from_pretrained(bundle / "text_encoder", **load).to(device).eval()
    unet = UNet2DConditionModel.from_pretrained(bundle / "unet", **load).to(device).requires_grad_(False)
    torch.manual_seed(0)
    add_lora(unet, RANK, earlier)
    latents = {each.size: night_latents(vae, each, device) for each in (scenes.painted, scenes.seen)}
    noising = Noising(latents, tokenizer, scenes.seen.words)

    def loss_of(drawn: Batch) -> torch.Tensor:
        with torch.no_grad():
            words = text_encoder(drawn.tokens).last_hidden_state
        with half(device):
            predicted = unet(drawn.noisy, drawn.times, encoder_hidden_states=words).sample
        return F.mse_loss(predicted.float(), drawn.target)

    trained = train_stage("night", plan, {"unet": unet}, noising.of_any_size, loss_of, device, folder)["unet"]
    return get_peft_model_state_dict(trained)
