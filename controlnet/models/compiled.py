"""Layers of UNet and ControlNets compiled with torch.compile, if CONTROLNET_COMPILE=1.

On a GPU this is slower than the default, which has kernels and CUDA graphs instead (docs/speed.md).

Each region is one ResNet layer or one transformer block. Layers with tensors of the same shapes share one compiled
function, in the UNet, in every ControlNet and in the copies that LoRAs and low-memory mode make. What differs between
requests stays outside the regions: scales, the start and end of a control, control modes, masks and windows. Sizes of
pictures and lengths of prompts are variables of the compiled functions. Only a batch of 1 has functions of its own.

With the exact speedups (controlnet/models/exact) it is their forward methods that are compiled. Two results that those
keep with a tensor are computed at every step inside a region: keys and values of the prompt, and the activation of the
time embedding.
"""

import os
import shutil
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.resnet import ResnetBlock2D
from torch import nn

from controlnet.models.attention import ATTENTION
from controlnet.models.switch import is_on

COMPILE = "CONTROLNET_COMPILE"
"""Environment variable: 1 compiles the layers of UNet and ControlNets. If unset, empty or 0, they run as they are."""
REGIONS = (ResnetBlock2D, BasicTransformerBlock)
FUNCTIONS = 128
"""How many compiled functions all regions together may have. PyTorch's own limit is 8, and sd15 has more shapes."""


class CompileError(ValueError):
    """CONTROLNET_COMPILE is 1 where that cannot work."""


def asked_compile(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether layers are compiled. Raises SwitchError."""
    return is_on(COMPILE, environ, default=False)


def prepare_compiler(device: torch.device, environ: Mapping[str, str] = os.environ) -> None:
    """Set up torch.compile for this process.

    Raises CompileError if the compiler that it calls is not installed, or if xformers computes the attention.
    """
    if environ.get(ATTENTION) == "xformers":
        raise CompileError(f"{COMPILE}=1 and {ATTENTION}=xformers: expected one of them. Set {ATTENTION}=sdpa.")
    variable, name, language = ("CXX", "g++", "C++") if device.type == "cpu" else ("CC", "gcc", "C")
    if shutil.which(environ.get(variable) or name) is None:
        raise CompileError(
            f"{COMPILE}=1 needs a {language} compiler, and {environ.get(variable) or name} was not found. Add {name} to"
            f" the image (system_packages in cog.yaml), or unset {COMPILE}."
        )
    # Imported here, because it takes time that no one needs who does not compile.
    from torch._inductor import config as inductor
    from torch.fx.experimental import _config as shapes

    dynamo: Any = torch._dynamo.config
    dynamo.recompile_limit = FUNCTIONS
    shapes.use_duck_shape = False  # type: ignore[attr-defined]  # a square picture's sides are two variables, too
    inductor.compile_threads = 1  # a request must not start threads (controlnet/serving/input_files.py says why)


def give_contiguous(scheduler: Any) -> None:
    """Make the scheduler of one picture give the models latents in the usual order of memory.

    Those that come from a VAE's encoder may have the channels last, and regions would be compiled for that order, too.
    """
    scale = scheduler.scale_model_input
    scheduler.scale_model_input = lambda sample, timestep=None: scale(sample, timestep).contiguous()


def compile_regions(models: Iterable[nn.Module], backend: str = "inductor") -> None:
    """Have the regions of diffusers models compiled when they are first called. Regions that are so already stay.

    A copy of a model does not take this over, so this is called for every request. `backend` is torch.compile's.
    """
    for model in models:
        for layer in model.modules():
            if isinstance(layer, REGIONS) and layer._compiled_call_impl is None:
                layer.compile(fullgraph=True, dynamic=True, backend=backend)
