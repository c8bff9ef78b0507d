"""LoRA files as diffusers writes them, and what diffusers makes of a file."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from diffusers.utils import convert_state_dict_to_diffusers
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from random_loras import Layers
from safetensors.torch import save_file

from controlnet.bundle import open_bundle
from controlnet.settings import Settings

CONVOLUTIONS = ("conv1", "conv2", "downsamplers.0.conv", "proj_in", "time_emb_proj")
TEXT = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1")
"""Ends of names of layers."""
Weights = dict[str, torch.Tensor]


def tiny_pipeline() -> Any:
    """diffusers' pipeline with networks of its own."""
    none: Any = None
    parts: Any = open_bundle(Settings(bundle="tiny")).base()
    return StableDiffusionPipeline(**parts, safety_checker=none, feature_extractor=none, requires_safety_checker=False)


def weights_of(parts: Mapping[str, Any]) -> Weights:
    """All numbers of the networks that a LoRA may change."""
    names = ("unet", "text_encoder")
    return {f"{name}.{key}": tensor.clone() for name in names for key, tensor in parts[name].state_dict().items()}


def apart(first: Weights, second: Weights) -> float:
    """The largest difference of two numbers."""
    assert first.keys() == second.keys()
    return max(float((tensor - second[key]).abs().max()) for key, tensor in first.items())


def by_diffusers(file: Path, scale: float = 1.0) -> Weights:
    """The weights with a LoRA, as diffusers loads the file and merges it."""
    pipeline = tiny_pipeline()
    pipeline.load_lora_weights(str(file))
    pipeline.fuse_lora(lora_scale=scale)
    pipeline.unload_lora_weights()
    return weights_of({"unet": pipeline.unet, "text_encoder": pipeline.text_encoder})


def trained(network: Any, config: LoraConfig) -> dict[str, torch.Tensor]:
    """The tensors of a LoRA that was added to a network as diffusers' training scripts do, with random numbers."""
    network.add_adapter(config)
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in network.named_parameters():
            if ".lora_" in name:
                tensor.normal_(std=0.1, generator=draw)
    return get_peft_model_state_dict(network)


def saved_by_diffusers(
    folder: Path, unet: LoraConfig, text_encoder: LoraConfig | None = None, own_names: bool = False
) -> Path:
    """A file with settings in its header. `own_names`: the tensors have diffusers' names, in place of peft's."""
    pipeline, saved = tiny_pipeline(), dict[str, Any]()
    for part, config in (("unet", unet), ("text_encoder", text_encoder)):
        if config is not None:
            network = getattr(pipeline, part)
            tensors = trained(network, config)
            saved[f"{part}_lora_layers"] = convert_state_dict_to_diffusers(tensors) if own_names else tensors
            saved[f"{part}_lora_adapter_metadata"] = network.peft_config["default"].to_dict()
    pipeline.save_lora_weights(str(folder), **saved)
    return folder / "pytorch_lora_weights.safetensors"


def save_diffusers(file: Path, layers: Mapping[str, Layers]) -> Path:
    """Write the layers of "unet" and "text_encoder" as diffusers does."""
    tensors = {}
    for network, own in layers.items():
        for name, (down, up) in own.items():
            tensors[f"{network}.{name}.lora_A.weight"] = down
            tensors[f"{network}.{name}.lora_B.weight"] = up
    save_file(tensors, file)
    return file
