"""LoRAs: copies of the base model's networks with LoRAs added to their weights.

E. Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", 2021. diffusers and peft read the file and compute
what it adds to each weight.

A LoRA is never put on the shared networks. A copy of a network shares all their numbers, and gets new numbers for the
layers that the LoRA changes. So nothing has to be taken off again, and a request that is cancelled at any moment
cannot leave a part of a LoRA behind. The copy has the same layers as the network itself. So everything that works on
those layers, such as controlnet/models/exact, works on it without knowing of LoRAs, and a step takes the same time.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers.loaders import StableDiffusionLoraLoaderMixin
from diffusers.loaders.peft import PeftAdapterMixin
from diffusers.utils import (
    convert_state_dict_to_diffusers,
    convert_state_dict_to_peft,
    convert_unet_state_dict_to_peft,
    recurse_remove_peft_layers,
    set_weights_and_activate_adapters,
)
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file
from torch import nn

from controlnet.models.packed import tensors_of, with_tensors
from controlnet.weights.lora_files import Lora, LoraError, check_lora

Base = Mapping[str, Any]
"""The base model's parts, by the names that diffusers' pipelines give them."""
Tensors = Mapping[str, torch.Tensor]
_PREFIX = "base"  # diffusers' loader wants one, to take it off again
_ADAPTER = "lora"
_ADVICE = "Send a LoRA that was made for this kind of model."


class AdaptedBase:
    """The base model with the LoRAs of a request. The last combination is kept for the next request."""

    def __init__(self, base: Base) -> None:
        self._base = base
        self._key: tuple[tuple[str, float], ...] = ()
        self._kept = base

    def of(self, loras: Sequence[Lora]) -> Base:
        """The base with `loras`, which act together; the order does not matter. Without any, it is the base itself.

        Raises LoraError if a file is no LoRA for this base, or if a part of it would not act. The networks of another
        combination are freed first, so memory never holds two.
        """
        acting = sorted((lora for lora in loras if lora.scale), key=lambda lora: lora.key)
        key = tuple(lora.key for lora in acting)
        if not key:
            return self._base
        if key != self._key:
            self._key, self._kept = (), self._base
            # Only a complete one is kept: this request may be cancelled here.
            self._kept = adapted(self._base, acting)
            self._key = key
        return self._kept


class _Networks(PeftAdapterMixin, nn.Module):
    """The networks that LoRAs change, as one module that diffusers' loader works on."""

    def __init__(self, base: Base) -> None:
        """They share all tensors with those of the base, but are other modules."""
        super().__init__()
        self.unet, self.text_encoder = (
            with_tensors(network, [tensor.detach() for tensor in tensors_of(network)])
            for network in (base["unet"], base["text_encoder"])
        )

    @property
    def adapted_layers(self) -> list[LoraLayer]:
        return [module for module in self.modules() if isinstance(module, LoraLayer)]


@torch.no_grad()
def adapted(base: Base, loras: Sequence[Lora]) -> Base:
    """A base with `loras`, whose networks share all unchanged tensors with those of `base`. Raises LoraError."""
    networks = _Networks(base)
    for lora in loras:
        check_lora(lora, base["unet"].config.cross_attention_dim)
        _attach(networks, lora)
        _merge(networks, lora)
    return {**base, "unet": networks.unet, "text_encoder": networks.text_encoder}


def _attach(networks: _Networks, lora: Lora) -> None:
    """Let diffusers add the LoRA's layers. Raises LoraError unless each layer of the file has its place."""
    try:
        tensors, alphas = _as_peft(lora, hasattr(networks.text_encoder, "text_model"))
        networks.load_lora_adapter(
            {f"{_PREFIX}.{name}": tensor for name, tensor in tensors.items()},
            prefix=_PREFIX,
            network_alphas={f"{_PREFIX}.{name}": alpha for name, alpha in alphas.items()},
            adapter_name=_ADAPTER,
            low_cpu_mem_usage=True,
        )
    except (ValueError, KeyError, RuntimeError, IndexError) as error:
        raise LoraError(f"{lora.name}: its layers do not fit this base model. {_ADVICE}") from error
    found = len([name for name in tensors if name.endswith(".lora_A.weight")])
    if (fitting := len(networks.adapted_layers)) != found:
        raise LoraError(f"{lora.name}: only {fitting} of its {found} layers fit this base model. {_ADVICE}")


def _merge(networks: _Networks, lora: Lora) -> None:
    """Add what the LoRA's layers compute to the weights, and remove these layers. Raises LoraError."""
    set_weights_and_activate_adapters(networks, [_ADAPTER], [lora.scale])
    try:
        for layer in networks.adapted_layers:
            layer.merge(safe_merge=True)  # into new tensors: those that it has are shared with the base
    except ValueError as error:
        message = f"{lora.name}: some of its numbers are infinite or no numbers. The file is broken."
        raise LoraError(message) from error
    recurse_remove_peft_layers(networks)
    del networks.peft_config


def _as_peft(lora: Lora, nested: bool) -> tuple[Tensors, Mapping[str, float]]:
    """The file's tensors with the names that peft gives them, and its alphas, by layer.

    `nested`: the text encoder's layers are in a module text_model, as they were before transformers 5.6.
    """
    # In float32, because peft computes the products in the precision of the file.
    read = {name: tensor.float() for name, tensor in load_file(lora.file).items()}
    converted: Any = StableDiffusionLoraLoaderMixin.lora_state_dict(read)
    tensors, alphas = converted
    text = {name: tensor for name, tensor in tensors.items() if name.startswith("text_encoder.")}
    unet = {name: tensor for name, tensor in tensors.items() if name not in text}
    if not any(".lora_A." in name for name in unet):
        unet = convert_unet_state_dict_to_peft(unet)
    text = convert_state_dict_to_peft(convert_state_dict_to_diffusers(text)) if text else {}

    def place(name: str) -> str:
        return name if nested else name.replace("text_encoder.text_model.", "text_encoder.", 1)

    named = unet | {place(name): tensor for name, tensor in text.items()}
    return named, {place(name): alpha for name, alpha in (alphas or {}).items()}
