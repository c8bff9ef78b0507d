"""Whether the layers of a LoRA's file are those of the base model, by the file's header."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from controlnet.models.lora_reader import NETWORKS, PART, layer_of
from controlnet.weights.lora_files import Header, Reading, Shape

_ADVICE = "Send a LoRA that was made for this kind of model."
_LAYERS = (nn.Linear, nn.Conv2d)
"""What may have a LoRA. peft can put one on an embedding too, whose strength diffusers' files do not have."""
_MAGNITUDE = "magnitude_vector"


def fit_fault(header: Header, reading: Reading, base: Mapping[str, Any]) -> str | None:
    """A sentence that says how a file does not fit a base. None if each of its tensors has its place there."""
    found = {(name, layer): shapes for name in NETWORKS for layer, shapes in _layers(header, reading, name).items()}
    modules = {name: dict(base[name].named_modules()) if name in base else {} for name in NETWORKS}
    kinds = {name: {kind for of, layer in found if of == name for kind in found[of, layer]} for name in NETWORKS}
    fitting = [
        (name, layer)
        for (name, layer), shapes in found.items()
        if shapes == _shapes(modules[name].get(layer), shapes.get("A.weight", ()), kinds[name])
    ]
    if not fitting:
        return f"its layers do not fit this base model. {_ADVICE}"
    if len(fitting) < len(found):
        return f"only {len(fitting)} of its {len(found)} layers fit this base model. {_ADVICE}"
    return None


def _layers(header: Header, reading: Reading, network: str) -> dict[str, dict[str, Shape]]:
    """For each layer that the file names: the shape of each of its tensors, by what it is for the layer."""
    layers: dict[str, dict[str, Shape]] = {}
    for name, own in reading.tensors[network].items():
        kind = name.rpartition(PART)[2]
        # A DoRA's magnitudes are with and without the ending.
        kind = _MAGNITUDE if kind.startswith(_MAGNITUDE) else kind
        layers.setdefault(layer_of(name), {})[kind] = header.shapes[own]
    return layers


def _shapes(layer: nn.Module | None, down: Shape, kinds: set[str]) -> dict[str, Shape] | None:
    """The shapes that a LoRA for a layer must have, if its first matrix has the shape `down`. None if it has no place.

    `kinds` are those of all layers of the network's LoRA, because peft gives each layer the same.
    """
    if not isinstance(layer, _LAYERS) or not down or not down[0]:
        return None
    rank, (out, *inputs) = down[0], layer.weight.shape
    ones = (1,) * (len(inputs) - 1)
    shapes = {"A.weight": (rank, *inputs), "B.weight": (out, rank, *ones)}
    if "B.bias" in kinds:
        if layer.bias is None:  # it could not be added to the layer
            return None
        shapes["B.bias"] = (out,)
    if _MAGNITUDE in kinds:
        shapes[_MAGNITUDE] = (1, out, *ones) if ones else (out,)
    return shapes
