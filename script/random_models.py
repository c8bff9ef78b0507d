"""Configurations for script/random_bundle.py and the tests: those of the published models, and small ones.

The published models are Stable Diffusion 1.5 (stable-diffusion-v1-5/stable-diffusion-v1-5) and its ControlNets 1.1. The
values are those of their config.json files.
"""

from collections.abc import Mapping
from typing import Any

import torch
from diffusers import AutoencoderKL, ControlNetModel, ControlNetUnionModel, UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from torch import nn
from transformers import (
    CLIPConfig,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

from controlnet.conditioners import CONDITIONERS

Sizes = dict[str, dict[str, Any]]
"""By part, the arguments of its class. For "tokenizer" the size of its vocabulary and the most tokens that it gives."""

FULL: Sizes = {
    "unet": {
        "sample_size": 64,
        "in_channels": 4,
        "out_channels": 4,
        "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        "block_out_channels": (320, 640, 1280, 1280),
        "layers_per_block": 2,
        "attention_head_dim": 8,
        "cross_attention_dim": 768,
        "norm_num_groups": 32,
    },
    "controlnet": {"conditioning_embedding_out_channels": (16, 32, 96, 256)},
    "vae": {
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "block_out_channels": (128, 256, 512, 512),
        "layers_per_block": 2,
        "latent_channels": 4,
        "norm_num_groups": 32,
        "sample_size": 512,
    },
    "tokenizer": {"tokens": 49408, "length": 77},
    "text_encoder": {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "projection_dim": 768,
    },
    "image_encoder": {
        "hidden_size": 1280,
        "intermediate_size": 5120,
        "num_hidden_layers": 32,
        "num_attention_heads": 16,
        "image_size": 224,
        "patch_size": 14,
        "projection_dim": 1024,
        "hidden_act": "gelu",
    },
    "ip_adapter": {"inner": 768, "tokens": 16},
    "safety_checker": {
        "vision_config": {
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "image_size": 224,
            "patch_size": 14,
        },
        "projection_dim": 768,
    },
}

_SMALL_CLIP = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_hidden_layers": 2}
SMALL: Sizes = {
    "unet": {
        "sample_size": 8,
        "in_channels": 4,
        "out_channels": 4,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
        "attention_head_dim": 4,
        "cross_attention_dim": 16,
        "norm_num_groups": 4,
    },
    "controlnet": {"conditioning_embedding_out_channels": (4, 4, 8, 8)},
    "vae": {
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "block_out_channels": (4, 4, 4, 4),
        "layers_per_block": 1,
        "latent_channels": 4,
        "norm_num_groups": 2,
        "sample_size": 64,
    },
    "tokenizer": {"tokens": 600, "length": 32},
    "text_encoder": _SMALL_CLIP | {"projection_dim": 16},
    "image_encoder": _SMALL_CLIP | {"image_size": 32, "patch_size": 8, "projection_dim": 8},
    "ip_adapter": {"inner": 64, "tokens": 3},
    "safety_checker": {
        "vision_config": _SMALL_CLIP | {"image_size": 32, "patch_size": 8},
        "text_config": _SMALL_CLIP | {"vocab_size": 20, "bos_token_id": 0, "eos_token_id": 1},
        "projection_dim": 8,
    },
}

SHARED_WITH_UNET = (
    "in_channels",
    "down_block_types",
    "block_out_channels",
    "layers_per_block",
    "attention_head_dim",
    "cross_attention_dim",
    "norm_num_groups",
    "use_linear_projection",
    "transformer_layers_per_block",
    "addition_embed_type",
    "addition_time_embed_dim",
    "projection_class_embeddings_input_dim",
)
"""The settings that a ControlNet shares with the UNet, because it is a copy of the UNet's encoder. Not every UNet has
them all."""
UNION = "controlnet/union"
"""The part that is one ControlNet for several conditioners."""
POOLED = tuple(f"controlnet/{conditioner.name}" for conditioner in CONDITIONERS if conditioner.pooled)
"""ControlNets with global average pooling."""


def build(part: str, sizes: Sizes) -> nn.Module:
    """The model of a part on the meta device, so it takes no memory. Raises KeyError if the part has no model."""
    with torch.device("meta"):
        if part.startswith("controlnet/"):
            shared = {name: sizes["unet"][name] for name in SHARED_WITH_UNET if name in sizes["unet"]}
            if part == UNION:
                return ControlNetUnionModel(**shared, **sizes["union"])
            return ControlNetModel(**shared, **sizes["controlnet"], global_pool_conditions=part in POOLED)
        return _BUILD[part](sizes)


def _text_encoder(sizes: Sizes) -> CLIPTextModel:
    return CLIPTextModel(_text_config(sizes, "text_encoder"))


def _text_config(sizes: Sizes, part: str) -> CLIPTextConfig:
    tokens, length = sizes["tokenizer"]["tokens"], sizes["tokenizer"]["length"]
    # CLIP's begin and end tokens are the last two. It pads with the end token, the second one of Stable Diffusion XL
    # with "!".
    marks = {
        "bos_token_id": tokens - 2,
        "eos_token_id": tokens - 1,
        "pad_token_id": 0 if part == "text_encoder_2" else tokens - 1,
    }
    return CLIPTextConfig(vocab_size=tokens, max_position_embeddings=length, **marks, **sizes[part])


_BUILD = {
    "unet": lambda sizes: UNet2DConditionModel(**sizes["unet"]),
    "vae": lambda sizes: AutoencoderKL(**sizes["vae"]),
    "text_encoder": _text_encoder,
    "text_encoder_2": lambda sizes: CLIPTextModelWithProjection(_text_config(sizes, "text_encoder_2")),
    "image_encoder": lambda sizes: CLIPVisionModelWithProjection(CLIPVisionConfig(**sizes["image_encoder"])),
    "safety_checker": lambda sizes: StableDiffusionSafetyChecker(CLIPConfig(**sizes["safety_checker"])),
}


def random_tensors(model: nn.Module, seed: int, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """random_numbers() for every tensor of a model's state dict."""
    return random_numbers({name: tuple(like.shape) for name, like in model.state_dict().items()}, seed, dtype)


def random_numbers(shapes: Mapping[str, tuple[int, ...]], seed: int, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Seeded random numbers for tensors of these shapes. No tensor is all zero.

    This includes a ControlNet's zero convolutions. With zeros in them its output would be zero, and a comparison would
    prove nothing. Convolutions and linear layers roughly keep the variance of their inputs (arXiv 1502.01852).
    """
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in shapes.items():
        drawn = torch.randn(shape, generator=generator)
        if drawn.ndim > 1:
            # 4 in the layers that read the map: SiLU's slope at 0 is one half, so the map would fade in eight layers.
            gain = 4 if "cond_embedding" in name else 2 if drawn.ndim == 4 else 1
            drawn *= (gain / drawn[0].numel()) ** 0.5
        else:
            drawn *= 0.02
            drawn += not name.endswith("bias")  # the weights of norms, and the thresholds of the safety checker
        tensors[name] = drawn.to(dtype)
    return tensors
