"""What a file of tensors is, told by their names and shapes: a checkpoint, a ControlNet, a VAE, or something else."""

import os
import pickle
import zipfile
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.loaders.single_file_utils import (
    LDM_CONTROLNET_KEY,
    LDM_UNET_KEY,
    LDM_VAE_KEYS,
)
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from controlnet.families.family import family_of

FIRST_LAYER = f"{LDM_UNET_KEY}input_blocks.0.0.weight"
HINT_LAYERS = (
    f"{LDM_CONTROLNET_KEY}input_hint_block.0.weight", "input_hint_block.0.weight",
    "controlnet_cond_embedding.conv_in.weight",
)  # fmt: skip
"""Names of a ControlNet's first layer, which sees the control map: those that diffusers reads, and its own."""
TEXT_ENCODERS = ("cond_stage_model.", "conditioner.")
"""How the names of a text encoder's tensors begin, of whatever kind it is."""
FIRST_ENCODER, SECOND_ENCODER = "conditioner.embedders.0.", "conditioner.embedders.1."
"""The same for Stable Diffusion XL's two. Its refiner has the second one alone, and it is the first there."""
EXPECTED = (
    "expected a checkpoint of Stable Diffusion 1.5 or XL, a VAE for either, or a ControlNet for 1.5, in one "
    ".safetensors file, as CivitAI has them"
)
PICKLED = (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
"""How pickled files begin: as zip files, or as bare pickles of a protocol that is in use."""
V_PREDICTION, ZERO_SNR = "v_pred", "ztsnr"
"""Tensors of these names mark a checkpoint that predicts v, and one that was trained to zero SNR besides; web UIs read
them too."""
EDM = ("edm_mean", "edm_vpred.")
"""How the names of tensors begin that mark a checkpoint with the noise of EDM (arXiv 2206.00364)."""
OF_XL = (
    FIRST_ENCODER, SECOND_ENCODER, *(f"{key}label_emb." for key in (LDM_UNET_KEY, LDM_CONTROLNET_KEY)), "label_emb.",
    "add_embedding.",
)  # fmt: skip
"""Beginnings of names that only files of Stable Diffusion XL, and few that are refused anyway, have."""
OF_TRAINING = (
    "model_ema.", *(f"{key}{part}" for key in ("", *LDM_VAE_KEYS) for part in ("loss.", "model_ema.")),
    "alphas_cumprod", "betas", "log_one_minus", "logvar", "lvlb_weights", "posterior_", "sqrt_", "denoiser.",
    "embedding_manager.",
)  # fmt: skip
"""Beginnings of names that checkpoints also have and that generating does not need."""
PREDICTION_KEYS = ("modelspec.prediction_type", "modelspec.predict_key")
"""Keys of the metadata that say what a UNet predicts. ComfyUI writes the second one."""
OF_CLIP = (".position_ids", "logit_scale", "text_projection", "text_projection.weight")
"""Endings of names that text encoders also have, for other uses."""


class CheckpointError(ValueError):
    """A file that cannot be imported. The message says what it is and what was expected."""


@dataclass(frozen=True)
class Contents:
    """The tensors of a file, which stay in it until they are read."""

    tensors: Mapping[str, torch.Tensor]
    metadata: Mapping[str, str]
    """Of the header of a .safetensors file."""

    def begins(self, *prefixes: str) -> list[str]:
        """The names of tensors that begin with one of `prefixes`."""
        return [name for name in self.tensors if name.startswith(prefixes)]

    def needless(self, name: str) -> bool:
        """Whether generating does not need the tensor of that name, whatever it holds."""
        kept = name.startswith(OF_TRAINING) or (name.startswith(TEXT_ENCODERS) and name.endswith(OF_CLIP))
        return kept or name in (V_PREDICTION, ZERO_SNR)

    @property
    def widths(self) -> set[int]:
        """How many numbers its layers of cross-attention take for each token of a prompt."""
        layers = [tensor for name, tensor in self.tensors.items() if name.endswith("attn2.to_k.weight")]
        return {layer.shape[-1] for layer in layers if layer.ndim}

    @property
    def family(self) -> str:
        """The family of a checkpoint or ControlNet, as controlnet/families names it. A VAE does not show its own."""
        return "sdxl" if self.begins(*OF_XL) or WIDTHS["sdxl"] in self.widths else "sd15"

    @property
    def prediction_type(self) -> str | None:
        """What the file says that its UNet predicts, as diffusers calls it. None if it says nothing."""
        said = next((self.metadata[key].lower() for key in PREDICTION_KEYS if key in self.metadata), "")
        if V_PREDICTION in self.tensors or said in ("v", "v_prediction"):
            return "v_prediction"
        return "epsilon" if said in ("e", "eps", "epsilon") else None

    @property
    def zero_snr(self) -> bool:
        """Whether the file says that it was trained to zero SNR, which counts only if it predicts v."""
        return ZERO_SNR in self.tensors


def read_contents(file: Path) -> Contents:
    """The tensors of a .safetensors file, or of a pickled one that holds nothing else. Raises CheckpointError."""
    if not file.is_file():
        raise CheckpointError(f"{file.name} is a folder." if file.is_dir() else f"There is no file {file.name}.")
    if os.fsencode(file) != str(file).encode(errors="replace"):
        raise CheckpointError(f"The name of {file.name} is not text in UTF-8, which is needed to open it: rename it.")
    with file.open("rb") as opened:
        begins = opened.read(2)
    if begins in PICKLED:
        return Contents(_unpickled(file), {})
    try:
        with safe_open(file, "pt") as opened:
            metadata = opened.metadata() or {}
        return Contents(load_file(file), metadata)
    except SafetensorError:
        raise CheckpointError(f"{file.name} is not a whole .safetensors file (cut short?): {EXPECTED}.") from None


def _unpickled(file: Path) -> dict[str, torch.Tensor]:
    """Read by PyTorch's unpickler for tensors, which runs no code of the file's."""
    try:
        read: Any = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except pickle.UnpicklingError:
        raise CheckpointError(
            f"{file.name} is a pickled file with more than tensors in it, and opening that could run code: {EXPECTED}. "
            "Get that one, or convert it where nothing can be lost."
        ) from None
    except Exception as error:  # damaged files raise whatever their bytes lead to
        raise CheckpointError(f"{file.name} is not a whole pickled file (cut short?): {EXPECTED}.") from error
    while isinstance(read, Mapping) and isinstance(read.get("state_dict"), Mapping):
        read = read["state_dict"]
    tensors = read.items() if isinstance(read, Mapping) else ()
    return {name: tensor for name, tensor in tensors if isinstance(name, str) and isinstance(tensor, torch.Tensor)}


def kind_of(file: Path, contents: Contents) -> str:
    """ "checkpoint", "controlnet" or "vae". Raises CheckpointError, which names what the file is, for anything else."""
    names = list(contents.tensors)
    if contents.begins(LDM_CONTROLNET_KEY):  # also if a whole checkpoint is around it, as in the first ControlNets
        wrong = next((words for words, fits in OTHER_CONTROLNETS.items() if fits(names)), None)
        kind = "controlnet"
    elif FIRST_LAYER in contents.tensors:  # whatever else is in it, is said later
        wrong, kind = None, "checkpoint"
    else:
        wrong = next((words for words, fits in {**OTHERS, **OTHER_CONTROLNETS}.items() if fits(names)), None)
        kind = next((kind for kind, fits in KINDS.items() if fits(names)), None)
    if wrong or kind is None:
        raise CheckpointError(f"{file.name} is {wrong or 'of a kind that is not known here'}: {EXPECTED}.")
    return kind


def check_family(file: Path, kind: str, contents: Contents, base: str, family: str, unet: Mapping[str, int]) -> None:
    """Raise CheckpointError, which names what the file is for, unless it goes with the bundle `base` of that family.

    `unet` has in_channels and cross_attention_dim of the base's UNet: the channels of latents that it takes, and the
    numbers for each token of a prompt.
    """
    if kind == "vae":  # they look alike in all families
        return
    channels, own = unet["in_channels"], contents.family
    what = (_odd_checkpoint if kind == "checkpoint" else _odd_controlnet)(contents, channels)
    title, wanted = (family_of(name).title for name in (own, family))
    if not what and kind == "controlnet" and own == "sdxl":
        raise CheckpointError(
            f"{file.name} is a ControlNet of {title}, which is not imported: a manifest can name its repository "
            "(docs/bring-your-own.md)."
        )
    if not what and own == family and contents.widths != {unet["cross_attention_dim"]}:
        widths = ", ".join(map(str, sorted(contents.widths)))
        what = f"{NAMED[kind]} for another text encoder than the bundle's ({widths} wide)"
    if what:
        raise CheckpointError(f"{file.name} is {what}: {EXPECTED}.")
    if own != family:
        raise CheckpointError(
            f"{file.name} is {NAMED[kind]} of {title}, and {base} is {wanted}: leave --base out, or name a bundle "
            f"that is {title}."
        )


def _odd_checkpoint(contents: Contents, channels: int) -> str | None:
    """In words, a checkpoint that goes with no bundle. None if there is nothing odd in it."""
    shape = tuple(contents.tensors[FIRST_LAYER].shape)
    if len(shape) != 4:
        return f"no checkpoint that can be read, because its first layer has the shape {shape}"
    task = TASKS.get(shape[1]) if shape[1] != channels else None
    refiner = contents.begins(f"{FIRST_ENCODER}model.") and not contents.begins(SECOND_ENCODER)
    if said := f"of {REFINER}" if refiner else _other_family(contents):
        return f"a checkpoint {said}{f' ({task})' if task else ''}"
    if contents.begins(*EDM):
        return "a checkpoint for the noise of EDM, as Playground 2.5 and CosXL are, which no sampler here knows"
    if shape[1] == channels:
        return None
    return f"{f'an {task} checkpoint' if task else 'a checkpoint'} whose UNet takes {shape[1]} channels, not {channels}"


def _odd_controlnet(contents: Contents, channels: int) -> str | None:
    """In words, a ControlNet that goes with no bundle. None if there is nothing odd in it."""
    if said := _other_family(contents):
        return f"a ControlNet {said}"
    layers = [contents.tensors[name] for name in HINT_LAYERS if name in contents.tensors]
    others = [layer.shape[1] for layer in layers if layer.ndim == 4 and layer.shape[1] != 3]
    return f"a ControlNet for control maps of {others[0]} channels, and here they have 3" if others else None


def _other_family(contents: Contents) -> str | None:
    """Which family a file is for, in words. None if it may be one that a bundle has."""
    if not contents.widths:
        return "without layers that read a prompt"
    return next((f"of {FAMILIES[each]}" for each in sorted(contents.widths) if each in FAMILIES), None)


TASKS = {9: "inpainting", 8: "InstructPix2Pix", 5: "depth-to-image", 7: "upscaling"}
"""What a UNet is for, by its number of input channels, if it is not the usual one."""
REFINER = "the refiner of Stable Diffusion XL"
FAMILIES = {1024: "Stable Diffusion 2", 1280: REFINER}
"""Those that no bundle is of, by the width of the keys of cross-attention."""
WIDTHS = {"sd15": 768, "sdxl": 2048}
"""The same of those that bundles are of, by their names in controlnet/families."""
NAMED = {"checkpoint": "a checkpoint", "controlnet": "a ControlNet", "vae": "a VAE"}
"""The kinds of files that are imported, in words."""

Fits = Callable[[Collection[str]], bool]


def _any(*parts: str) -> Fits:
    return lambda names: any(part in name for name in names for part in parts)


def _all(*prefixes: str) -> Fits:
    return lambda names: all(name.startswith(prefixes) for name in names)


KINDS: Mapping[str, Fits] = {
    "controlnet": _any("input_hint_block.", "zero_convs.", "controlnet_cond_embedding.", "controlnet_down_blocks."),
    "vae": _all("encoder.", "decoder.", "quant_conv.", "post_quant_conv.", *LDM_VAE_KEYS, "loss.", "model_ema."),
}
"""What is imported besides checkpoints, with what tells it by the tensors' names."""
OTHER_CONTROLNETS: Mapping[str, Fits] = {
    "a Control-LoRA, which is no whole ControlNet": lambda names: "lora_controlnet" in names,
    "the difference of a ControlNet from a checkpoint, which is no whole one": lambda names: "difference" in names,
}
OTHERS: Mapping[str, Fits] = {
    "empty": lambda names: not names,
    "a LoHa or LoKr, which changes a checkpoint": _any("hada_w", "lokr_w"),
    "a LoRA, which is sent with a request (lora_weights)": _any("lora_down", "lora_up", "lora_A", "lora_B", ".lora."),
    "an embedding (textual inversion)": lambda names: {*names} <= {"emb_params", "clip_l", "clip_g", "string_to_param"},
    "an IP-Adapter": _any("ip_adapter.", "to_k_ip."),
    "a T2I-Adapter": _all("adapter.", "body.", "conv_in."),
    "a motion module of AnimateDiff": _any("motion_modules."),
    "a checkpoint of FLUX": _any("double_blocks.", "single_transformer_blocks."),
    "a checkpoint of Stable Diffusion 3": _any("joint_blocks.", "joint_transformer_blocks."),
    "a text encoder alone": _all("text_model.", *TEXT_ENCODERS, "text_projection"),
    "a UNet alone, in the layout of diffusers": lambda names: (
        _any("down_blocks.0.resnets.0.")(names) and not KINDS["controlnet"](names)
    ),
}
"""Files that are none of these, in words, with what tells them by the tensors' names."""
