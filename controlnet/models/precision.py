"""The precision that the base model, the ControlNets and the safety checker work in. Annotators work in float32."""

import os
from collections.abc import Mapping

import torch

DTYPE = "CONTROLNET_DTYPE"
"""Environment variable: fp16, bf16 or fp32; unset or empty, working_dtype() chooses."""
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}


class PrecisionError(ValueError):
    """CONTROLNET_DTYPE names no precision, or one that the GPU does not have."""


def working_dtype(device: torch.device, environ: Mapping[str, str] = os.environ) -> torch.dtype:
    """fp16 on a GPU and fp32 on a CPU, unless CONTROLNET_DTYPE says otherwise. Raises PrecisionError.

    Why no card gets bf16 by itself: it is as large as fp16 and, where a GPU has it (from compute capability 8.0 on), as
    fast, so that only the model matters. Stable Diffusion 1.5 and its ControlNets stay within the range of fp16, in
    which they are published, and bf16 would round their weights from 11 significant bits to 8. With the tiny bundle and
    the same noise, four pictures had a PSNR of 60 dB against fp32 in fp16, and of 52 dB in bf16. bf16 is for models
    that overflow in fp16.

    A CPU is slow in half precision, where it has no instructions for it. The GTX 16 cards may give NaN in fp16 (PyTorch
    issue 77955), which the safety checker refuses: they need CONTROLNET_DTYPE=fp32.
    """
    named = environ.get(DTYPE)
    if not named:
        return torch.float16 if device.type == "cuda" else torch.float32
    if named not in DTYPES:
        raise PrecisionError(f"{DTYPE}: expected {', '.join(DTYPES)} or nothing, got {named!r}.")
    # On an older card PyTorch emulates bf16, in more time and memory than fp32.
    if named == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise PrecisionError(f"{DTYPE}=bf16: this GPU has no bf16, which came with compute capability 8.0. Use fp16.")
    return DTYPES[named]
