"""LoRAs: copies of the base model's networks with LoRAs added to their weights.

E. Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", 2021. diffusers and peft read the file and compute
what it adds to each weight.

A LoRA is never put on the shared networks. A copy of a network shares all their numbers, and gets new numbers for the
layers that the LoRA changes. So nothing has to be taken off again, and a request that is cancelled at any moment
cannot leave a part of a LoRA behind. The copy has the same layers as the network itself. So everything that works on
those layers, such as controlnet/speedups, works on it without knowing of LoRAs, and a step takes the same time.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers.utils import recurse_remove_peft_layers
from peft import LoraConfig, inject_adapter_in_model, set_peft_model_state_dict
from safetensors import safe_open

from controlnet.models.lora_fit import fit_fault
from controlnet.models.lora_reader import NETWORKS, layer_of, read_lora
from controlnet.models.lora_strength import Strength, header_strengths
from controlnet.models.packed import shared_copy
from controlnet.weights.lora_files import Header, Lora, LoraError, Reading

Base = Mapping[str, Any]
"""The base model's parts, by the names that diffusers' pipelines give them."""
_ADAPTER = "of_the_request"


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


@torch.no_grad()
def adapted(base: Base, loras: Sequence[Lora]) -> Base:
    """A base with `loras`, whose networks share all unchanged tensors with those of `base`.

    Raises LoraError, also if the GPU has no room for the changed tensors.
    """
    networks = {name: shared_copy(base[name]) for name in NETWORKS if name in base}
    fitting = [_fitting(lora, networks) for lora in loras]
    _check_room([part for parts in fitting for part in parts], base["unet"].device)
    for parts in fitting:
        for part in parts:
            part.attach()
            part.merge()
    return {**base, **networks}


def _check_room(parts: "Sequence[_Part]", device: torch.device) -> None:
    """Raise LoraError if a GPU has no room for the weights that LoRAs change. Those of SDXL may take 4.4 GB."""
    if device.type != "cuda":
        return
    weights = {part.network.get_submodule(name).weight for part in parts for name in part.layers}
    needed = sum(weight.nbytes for weight in weights)
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    free = torch.cuda.mem_get_info(device)[0] + unused
    if needed > free:
        names = " and ".join(dict.fromkeys(part.lora.name for part in parts))
        raise LoraError(
            f"{names}: it changes {needed / 1e9:.1f} GB of weights, and this server's GPU has {free / 1e9:.1f} GB free."
            " Send a LoRA that changes fewer layers, or run the container on a larger GPU."
        )


def check_fit(base: Base, lora: Lora) -> None:
    """Raise LoraError unless all of a file would act on this base. Reads its header alone."""
    _fitting(lora, base)


def _fitting(lora: Lora, networks: Mapping[str, Any]) -> "list[_Part]":
    """What a LoRA does to each network. Raises LoraError unless each of its tensors has its place there."""
    header, reading = read_lora(lora, networks["unet"].config)
    if fault := fit_fault(header, reading, networks):
        raise LoraError(f"{lora.name}: {fault}")
    return [_Part(lora, header, reading, name, networks[name]) for name in NETWORKS if reading.tensors[name]]


class _Part:
    """What a LoRA does to one network, which is a copy."""

    def __init__(self, lora: Lora, header: Header, reading: Reading, name: str, network: Any) -> None:
        """`name` is the network's in the file. Raises LoraError for a header that does not go with its tensors."""
        self.lora, self.network = lora, network
        self.names, self.alphas = reading.tensors[name], reading.alphas[name]
        self.shapes = {peft: header.shapes[own] for peft, own in self.names.items()}
        ends = {peft: shape for peft, shape in self.shapes.items() if peft.endswith(".lora_B.weight")}
        self.ranks = {layer_of(peft): shape[1] for peft, shape in ends.items() if len(shape) > 1}
        # Alphas among the tensors are what every program reads, so they count.
        metadata = {} if any(reading.alphas.values()) else header.metadata
        self.dora = any("lora_magnitude_vector" in peft for peft in self.shapes)
        self.strengths = header_strengths(lora, metadata, name, self.ranks, self.dora)

    @property
    def layers(self) -> set[str]:
        """Those that it changes, by their names in the network."""
        return {layer_of(name) for name in self.shapes}

    def attach(self) -> None:
        """Let peft add the LoRA's layers, without numbers."""
        usual = Counter(self.ranks.values()).most_common(1)[0][0]
        config = LoraConfig(
            r=usual,
            rank_pattern={f"^{re.escape(layer)}": rank for layer, rank in self.ranks.items() if rank != usual},
            target_modules=[*self.layers],
            use_dora=self.dora,
            lora_bias=any(name.endswith("lora_B.bias") for name in self.shapes),
            init_lora_weights=False,
            inference_mode=True,
        )
        names: Any = self.shapes  # peft looks at names alone
        inject_adapter_in_model(config, self.network, _ADAPTER, low_cpu_mem_usage=True, state_dict=names)

    def merge(self) -> None:
        """Add what the layers compute to the weights, and remove these layers. Raises LoraError."""
        with safe_open(self.lora.file, "pt") as opened:
            # In float32, because peft computes the products in the precision of the file.
            own = {peft: opened.get_tensor(of).float() for peft, of in self.names.items()}
            alphas = {layer: Strength(float(opened.get_tensor(of))) for layer, of in self.alphas.items()}
        set_peft_model_state_dict(self.network, own, _ADAPTER, low_cpu_mem_usage=True)
        try:
            for name, strength in (self.strengths | alphas).items():
                layer = self.network.get_submodule(name)
                layer.lora_alpha[_ADAPTER], layer.use_rslora[_ADAPTER] = strength.alpha, strength.stabilized
                layer.set_scale(_ADAPTER, self.lora.scale)
                # Into new tensors, because those that it has are shared with the base.
                layer.merge(safe_merge=True, adapter_names=[_ADAPTER])
        except ValueError as error:
            message = f"{self.lora.name}: some of its numbers are infinite or NaN. The file is broken."
            raise LoraError(message) from error
        recurse_remove_peft_layers(self.network)
        del self.network.peft_config
