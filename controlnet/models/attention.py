"""Attention of UNet and ControlNets: which implementation computes it, PyTorch's own or that of xformers; its heads."""

from importlib.util import find_spec
from typing import Any

import torch
from diffusers.models.attention_processor import XFormersAttnProcessor

from controlnet.settings import Settings, SettingsError

ATTENTION = Settings.variable("attention")


def check_attention(name: str, device: torch.device) -> None:
    """Raise SettingsError for an implementation that this device or installation does not have."""
    if name == "xformers" and device.type != "cuda":
        raise SettingsError(f"{ATTENTION}=xformers needs a GPU, and this is a {device.type.upper()}. Use sdpa.")
    if name == "xformers" and find_spec("xformers") is None:
        raise SettingsError(f"{ATTENTION}=xformers: the package xformers is not installed. Install it, or use sdpa.")
    if name == "xformers":
        _try_xformers(device)


def _try_xformers(device: torch.device) -> None:
    """Raise SettingsError if xformers cannot compute attention on a GPU.

    Its kernels are built for one release of PyTorch and of CUDA. With others it can be imported, but has none.
    """
    from xformers.ops import memory_efficient_attention

    tokens = torch.zeros(1, 8, 1, 40, dtype=torch.float16, device=device)
    try:
        memory_efficient_attention(tokens, tokens, tokens)
    except (NotImplementedError, RuntimeError) as error:
        raise SettingsError(
            f"{ATTENTION}=xformers: the installed xformers has no kernel for this GPU and PyTorch {torch.__version__}."
            " Use sdpa."
        ) from error


def by_heads(states: torch.Tensor, heads: int) -> torch.Tensor:
    """(B, tokens, heads × d) as (B, heads, tokens, d)."""
    return states.unflatten(-1, (heads, -1)).transpose(1, 2)


def use_attention(model: Any, name: str) -> None:
    """Set the implementation of a diffusers model as it was loaded. Its copies have the same.

    With xformers the exact speedups of attention (controlnet/speedups) do not fit: keys and values of the prompt
    are computed at every step, and what precedes the first cross-attention is computed for both halves of guidance.
    """
    if name == "xformers":
        model.set_attn_processor(XFormersAttnProcessor())
