"""Random LoRA files, in the layout of kohya's scripts."""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
"""The layers of attention, by the ends of their names."""
LCM = (
    *ATTENTION,
    *("proj_in", "proj_out", "ff.net.0.proj", "ff.net.2", "time_emb_proj"),
    *("conv1", "conv2", "conv_shortcut", "downsamplers.0.conv", "upsamplers.0.conv"),
)
"""Those of the published LCM-LoRA."""
Layers = dict[str, tuple[torch.Tensor, torch.Tensor]]
"""Layer → the two matrices, (rank, inputs, ...) and (outputs, rank, ...)."""


def random_layers(
    network: nn.Module, endings: tuple[str, ...], seed: int = 0, rank: int = 4, size: float = 0.3
) -> Layers:
    """For each layer whose name ends so. `size` is about how much it changes, relative to its own numbers."""
    generator, found = torch.Generator().manual_seed(seed), {}
    for name, layer in network.named_modules():
        if not name.endswith(endings):
            continue
        weight = layer.get_parameter("weight")
        inputs = weight.shape[1:]
        down = torch.randn((rank, *inputs), generator=generator)
        up = torch.randn((weight.shape[0], rank, *(1,) * (len(inputs) - 1)), generator=generator)
        # 1 / sqrt(inputs): about the size of the layer's own numbers (random_models.py), which may be on no device.
        found[name] = (down, up * size / (rank * inputs.numel()) ** 0.5)
    return found


def save_kohya(file: Path, layers: Mapping[str, Layers], alpha: float, metadata: dict[str, str] | None = None) -> Path:
    """Write the layers of "unet" and "text_encoder" as kohya's scripts do: with underscores for dots.

    What acts is the product of the matrices times alpha / rank. That factor is divided out here.
    """
    tensors: dict[str, torch.Tensor] = {}
    for network, own in layers.items():
        prefix = {"unet": "lora_unet_", "text_encoder": "lora_te_text_model_"}[network]
        for name, (down, up) in own.items():
            key = prefix + name.replace(".", "_")
            tensors[f"{key}.lora_down.weight"] = down
            tensors[f"{key}.lora_up.weight"] = up * (down.shape[0] / alpha)
            tensors[f"{key}.alpha"] = torch.tensor(alpha, dtype=down.dtype)
    save_file(tensors, file, metadata)
    return file
