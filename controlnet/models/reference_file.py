"""Whether the file of an adapter for reference pictures goes with a UNet and an image encoder.

diffusers reads unknown tensors in silence, and a file for another encoder fails only at the first request.
"""

from collections.abc import Mapping
from typing import Any

import torch

from controlnet.models.loading import WeightsMismatch, check_tensors

Shapes = dict[str, tuple[int, ...]]
_HEAD = 64
"""Channels of each head in the layers that read the picture ("plus"), in the published files and for diffusers."""
_LAYERS = 4
"""How many such layers diffusers knows."""
_BASIC_TOKENS = 4


def check_adapter(tensors: Mapping[str, torch.Tensor], unet: Any, encoder: Any) -> None:
    """Raise WeightsMismatch unless the tensors are those of IP-Adapter, basic or "plus", for a UNet and an encoder.

    `encoder` is the configuration of a CLIPVisionModelWithProjection.
    """
    expected = of_layers(unet)
    width = unet.config.cross_attention_dim
    if "image_proj.latents" in tensors:
        expected |= of_plus(tuple(tensors["image_proj.latents"].shape), width, encoder.hidden_size)
    elif "image_proj.proj.weight" in tensors:
        expected |= of_basic(width, encoder.projection_dim)
    else:
        raise WeightsMismatch(
            "ip_adapter: it is of a kind that cannot be used here. Use the file of IP-Adapter or of IP-Adapter plus, in"
            " .safetensors. Those for faces (FaceID, full face) need other encoders."
        )
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    check_tensors(
        "ip_adapter",
        expected.keys() - shapes.keys(),
        shapes.keys() - expected.keys(),
        [name for name, shape in shapes.items() if expected.get(name, shape) != shape],
    )


def of_layers(unet: Any) -> Shapes:
    """The keys and values of each cross-attention. They are numbered 1, 3, 5 … in the UNet's order."""
    names = [name.removesuffix(".processor") for name in unet.attn_processors if name.endswith("attn2.processor")]
    shapes: Shapes = {}
    for number, name in enumerate(names):
        shape = tuple(unet.get_submodule(name).to_k.weight.shape)
        shapes |= {f"ip_adapter.{2 * number + 1}.{kind}.weight": shape for kind in ("to_k_ip", "to_v_ip")}
    return shapes


def of_basic(width: int, embedding: int) -> Shapes:
    weight, norm = (_BASIC_TOKENS * width, embedding), (width,)
    return {
        "image_proj.proj.weight": weight,
        "image_proj.proj.bias": weight[:1],
        "image_proj.norm.weight": norm,
        "image_proj.norm.bias": norm,
    }


def of_plus(latents: tuple[int, ...], width: int, states: int) -> Shapes:
    """`latents` is (1, tokens, inner), and `states` the width of the encoder's hidden states."""
    inner = latents[-1]
    attended = inner // _HEAD * _HEAD
    shapes: Shapes = {
        "latents": (1, *latents[1:]),
        "proj_in.weight": (inner, states),
        "proj_in.bias": (inner,),
        "proj_out.weight": (width, inner),
        "proj_out.bias": (width,),
        "norm_out.weight": (width,),
        "norm_out.bias": (width,),
    }
    for layer in range(_LAYERS):
        norms = ("0.norm1", "0.norm2", "1.0")
        shapes |= {f"layers.{layer}.{norm}.{kind}": (inner,) for norm in norms for kind in ("weight", "bias")}
        shapes |= {
            f"layers.{layer}.0.to_q.weight": (attended, inner),
            f"layers.{layer}.0.to_kv.weight": (2 * attended, inner),
            f"layers.{layer}.0.to_out.weight": (inner, attended),
            f"layers.{layer}.1.1.weight": (4 * inner, inner),
            f"layers.{layer}.1.3.weight": (inner, 4 * inner),
        }
    return {f"image_proj.{name}": shape for name, shape in shapes.items()}
