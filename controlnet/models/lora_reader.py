"""What the tensors of a LoRA file are to diffusers: its own converter, run on their names.

So a file's header shows what can be read, before a tensor is, and no list of names has to follow the converter's.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from diffusers.loaders import StableDiffusionLoraLoaderMixin
from diffusers.utils import (
    convert_state_dict_to_diffusers,
    convert_state_dict_to_peft,
    convert_unet_state_dict_to_peft,
)

from controlnet.weights.lora_files import Header, Lora, LoraError, Reading, lora_fault, read_header

NETWORKS = ("unet", "text_encoder", "text_encoder_2")
"""The networks that a LoRA may change. Stable Diffusion XL has the last."""
PART = ".lora_"
"""In the names that peft gives: between a layer's name and what the tensor is for that layer."""
_OF_PEFT = "base_model.model."
"""Before the names in peft's own files, whose settings are in another file. diffusers reads none."""


class _Name(str):
    """A tensor's name in the place of the tensor. The converter moves tensors, and reads alphas alone."""

    def item(self) -> "_Name":
        return self


def read_lora(lora: Lora, unet_config: Any) -> tuple[Header, Reading]:
    """What a file holds. Raises LoraError unless it may be a LoRA for a UNet with prompts of the width that it reads.

    Whether its layers are those of the base is not known then.
    """
    header = read_header(lora)
    reading = read_names(header.shapes, unet_config)
    if fault := lora_fault(header, reading, unet_config.cross_attention_dim):
        raise LoraError(f"{lora.name}: {fault}")
    return header, reading


def read_names(names: Iterable[str], unet_config: Any = None) -> Reading:
    """What a file with tensors of these names is to diffusers' load_lora_weights().

    The UNet's configuration says what the blocks are that kohya's scripts number for Stable Diffusion XL.
    """
    everything = tuple(names)
    # load_lora_weights() refuses a file with other names. Here they do not keep the others from being converted.
    left: Any = {name: _Name(name) for name in everything if "lora" in name}
    others = [name for name in everything if name not in left]
    try:
        read: Any = StableDiffusionLoraLoaderMixin.lora_state_dict(left, unet_config=unet_config)
    except KeyError as error:
        return Reading({}, {}, tuple(others), missing=str(error.args[0]))
    except (ValueError, IndexError):
        return Reading({}, {}, (*others, *left))  # the converter takes out of `left` what it knows
    converted, alphas = read
    prefixes = tuple(f"{network}." for network in NETWORKS)
    if not any(name.startswith(prefixes) for name in converted):
        # As unet.save_lora_adapter() writes it, and unet.load_lora_adapter() reads it.
        converted = {f"{prefixes[0]}{name}": own for name, own in converted.items()}
    tensors = {network: _of_network(network, converted) for network in NETWORKS}
    layers = {_stem(own): (network, layer_of(name)) for network in NETWORKS for name, own in tensors[network].items()}
    of_layers: dict[str, dict[str, str]] = {network: {} for network in NETWORKS}
    for own in (alphas or {}).values():
        if _stem(own) in layers:
            network, layer = layers[_stem(own)]
            of_layers[network][layer] = own
    known = {own for named in (*tensors.values(), *of_layers.values()) for own in named.values()}
    return Reading(tensors, of_layers, tuple(name for name in everything if name not in known))


def layer_of(name: str) -> str:
    """The layer of a tensor, by the name that peft gives the tensor."""
    return name.rpartition(PART)[0]


def _of_network(network: str, converted: Mapping[str, str]) -> dict[str, str]:
    """The tensors of one network, by the names under which diffusers' loader hands them to peft."""
    prefix = f"{network}."
    own: Any = {name.removeprefix(prefix): of for name, of in converted.items() if name.startswith(prefix)}
    if network == "unet":
        own = convert_unet_state_dict_to_peft(own)
    elif own:
        try:
            own = convert_state_dict_to_peft(convert_state_dict_to_diffusers(own))
        except ValueError:  # it knows none of these names
            return {}
        if network == "text_encoder":  # a module before transformers 5.6. The second one still has it.
            own = {name.removeprefix("text_model."): of for name, of in own.items()}
    return {name: of for name, of in own.items() if PART in name and not name.startswith(_OF_PEFT)}


def _stem(name: str) -> str:
    """What the tensors of one layer have in common in the files that name alphas: all before the first dot."""
    return name.partition(".")[0]
