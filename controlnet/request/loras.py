"""The LoRAs of a request: where their files are, and how strongly they act."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from controlnet.weights.lora_files import LoraError
from controlnet.weights.lora_sources import Inline, LoraSource

LORA_INPUTS = (("lora_weights", "lora_scale"), ("lora_weights_2", "lora_scale_2"))
"""For each LoRA, the inputs of its file and of its strength."""
NOWHERE = Inline(b"")


@dataclass(frozen=True)
class RequestedLora:
    """One LoRA of a request."""

    source: LoraSource
    """Where its file is."""
    scale: float
    """Factor of what it adds to the weights, −2 to 2. At 0 it does nothing."""
    name: str
    """The name of its input."""
    scale_name: str
    """The name of the input of its strength."""


def read_loras(inputs: Mapping[str, Any], locate: Callable[[str], LoraSource]) -> tuple[RequestedLora, ...]:
    """The LoRAs of the request, in the order of their inputs. Nothing is fetched.

    `locate` reads the text that says where a file is. If it raises a LoraError, so does this, with the input's name.
    """
    loras: list[RequestedLora] = []
    for name, scale in LORA_INPUTS:
        if inputs[name] is None:
            continue
        try:
            source = locate(inputs[name])
        except LoraError as error:
            raise LoraError(f"{name}: {error}") from error
        loras.append(RequestedLora(source, 1.0 if inputs[scale] is None else inputs[scale], name, scale))
    return tuple(loras)
