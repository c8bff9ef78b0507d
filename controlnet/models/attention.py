"""Which implementation computes the attention of UNet and ControlNets: PyTorch's own, or that of xformers."""

import os
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

import torch
from diffusers.models.attention_processor import XFormersAttnProcessor

ATTENTION = "CONTROLNET_ATTENTION"
"""Environment variable: sdpa or xformers. If unset or empty, it is sdpa, PyTorch's scaled_dot_product_attention."""
_CHOICES = ("sdpa", "xformers")


class AttentionError(ValueError):
    """CONTROLNET_ATTENTION names no implementation, or one that this device or installation does not have."""


def asked_attention(device: torch.device, environ: Mapping[str, str] = os.environ) -> str:
    """The implementation for a device. Raises AttentionError."""
    name = environ.get(ATTENTION) or "sdpa"
    if name not in _CHOICES:
        raise AttentionError(f"{ATTENTION}: expected {', '.join(_CHOICES)} or nothing, got {name!r}.")
    if name == "xformers" and device.type != "cuda":
        raise AttentionError(f"{ATTENTION}=xformers needs a GPU, and this is a {device.type.upper()}. Use sdpa.")
    if name == "xformers" and find_spec("xformers") is None:
        raise AttentionError(f"{ATTENTION}=xformers: the package xformers is not installed. Install it, or use sdpa.")
    if name == "xformers":
        _try_xformers(device)
    return name


def _try_xformers(device: torch.device) -> None:
    """Raise AttentionError if xformers cannot compute attention on a GPU.

    Its kernels are built for one release of PyTorch and of CUDA. With others it can be imported, but has none.
    """
    from xformers.ops import memory_efficient_attention

    tokens = torch.zeros(1, 8, 1, 40, dtype=torch.float16, device=device)
    try:
        memory_efficient_attention(tokens, tokens, tokens)
    except (NotImplementedError, RuntimeError) as error:
        raise AttentionError(
            f"{ATTENTION}=xformers: the installed xformers has no kernel for this GPU and PyTorch {torch.__version__}."
            " Use sdpa."
        ) from error


def use_attention(model: Any, name: str) -> None:
    """Set the implementation of a diffusers model as it was loaded. Its copies have the same.

    With xformers the exact speedups of attention (controlnet/speedups) do not fit: keys and values of the prompt
    are computed at every step, and what precedes the first cross-attention is computed for both halves of guidance.
    """
    if name == "xformers":
        model.set_attn_processor(XFormersAttnProcessor())
