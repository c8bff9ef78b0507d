"""How strongly each layer of a LoRA acts, as the header of its file says.

Since version 0.34, diffusers writes the settings of peft there as JSON, and no alphas among the tensors.
"""

import dataclasses
import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY
from peft import LoraConfig

from controlnet.models.lora_reader import NETWORKS
from controlnet.weights.lora_files import SEND, Lora, LoraError, shown

_ON_THE_BASE = (None, True, False, "gaussian", "eva", "orthogonal")
"""Values of init_lora_weights with which training begins from the base's own weights. All others change them first."""
_VARIANTS = [each.name for each in dataclasses.fields(LoraConfig) if each.metadata.get("is_lora_variant")]
"""Settings with which a layer computes something else than a LoRA."""
_PATTERN = re.compile(r"[\w.^$|()\\-]{1,200}")
"""A regular expression without repetitions. ".*" is taken out of it before."""
_MOST_PATTERNS, _MOST_STARRED, _MOST_STARS = 2000, 32, 2
"""How many patterns there may be, how many of them with ".*", and how often each. More could take minutes."""

Number = TypeVar("Number", int, float)


@dataclass(frozen=True)
class Strength:
    """By what the product of a layer's two matrices is multiplied: alpha / rank, or alpha / √rank."""

    alpha: float
    stabilized: bool = False
    """Whether it is the rank's root: D. Kalajdzievski, "A Rank Stabilization Scaling Factor for Fine-Tuning with LoRA",
    arXiv 2312.03732."""


@dataclass(frozen=True)
class _Settings:
    """What the header says of one network. What it leaves out has the default of peft's LoraConfig."""

    r: int = LoraConfig.r
    lora_alpha: float = LoraConfig.lora_alpha
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    use_rslora: bool = LoraConfig.use_rslora

    def __post_init__(self) -> None:
        """Raises ValueError for values of other types, and for patterns that take too long."""
        numbers = [self.lora_alpha, *self.alpha_pattern.values(), self.r, *self.rank_pattern.values()]
        if not all(isinstance(number, int | float) and math.isfinite(number) for number in numbers):
            raise ValueError("expected numbers")
        for patterns in (self.rank_pattern, self.alpha_pattern):
            starred = [pattern for pattern in patterns if "*" in pattern]
            most = max((pattern.count("*") for pattern in starred), default=0)
            plain = all(_PATTERN.fullmatch(pattern.replace(".*", "")) for pattern in patterns)
            if len(patterns) > _MOST_PATTERNS or len(starred) > _MOST_STARRED or most > _MOST_STARS or not plain:
                raise ValueError("expected names of layers")

    def of(self, layers: Iterable[str]) -> dict[str, tuple[int, Strength]]:
        """Rank and strength of each layer."""
        rank, alpha = _Lookup(self.rank_pattern, self.r), _Lookup(self.alpha_pattern, self.lora_alpha)
        return {layer: (rank.of(layer), Strength(alpha.of(layer), bool(self.use_rslora))) for layer in layers}


class _Lookup(Generic[Number]):
    """The numbers of layers by patterns: the first counts that is the end of the layer's name, as in peft.

    peft compiles each pattern again for each layer if there are more than Python keeps.
    """

    def __init__(self, patterns: Mapping[str, Number], usual: Number) -> None:
        self._numbers = [(re.compile(rf"(.*\.)?({pattern})$"), number) for pattern, number in patterns.items()]
        self._usual = usual

    def of(self, layer: str) -> Number:
        return next((number for pattern, number in self._numbers if pattern.match(layer)), self._usual)


def header_strengths(
    lora: Lora, metadata: Mapping[str, str], network: str, ranks: Mapping[str, int], magnitudes: bool
) -> dict[str, Strength]:
    """How strongly the layers of a network act, whose ranks are `ranks`. If the header does not say, alpha is the rank.

    `magnitudes`: whether the file has those of a DoRA. Raises LoraError for settings that cannot be read, that make
    another kind of adapter of it, or that are not those of its layers.
    """
    try:
        own = _of_network(metadata, network)
        if own is None:
            return {layer: Strength(rank) for layer, rank in ranks.items()}
        given = {each.name: own.get(each.name) for each in dataclasses.fields(_Settings)}
        found = _Settings(**{name: value for name, value in given.items() if value is not None}).of(ranks)
    except (ValueError, TypeError, AttributeError, ArithmeticError, RecursionError, re.error) as error:
        raise LoraError(
            f"{lora.name}: expected a LoRA, got a file whose header has broken settings ({LORA_ADAPTER_METADATA_KEY})."
        ) from error
    _check_kind(lora, own, magnitudes)
    for layer, (rank, _) in found.items():
        if rank != ranks[layer]:
            raise LoraError(
                f"{lora.name}: expected a LoRA, got a file whose header says that layers of rank {ranks[layer]} have "
                f"rank {rank} ({LORA_ADAPTER_METADATA_KEY})."
            )
    return {layer: strength for layer, (_, strength) in found.items()}


def _of_network(metadata: Mapping[str, str], network: str) -> dict[str, Any] | None:
    """The settings of one network. None without any. Raises ValueError, and RecursionError, for what is no JSON."""
    written = json.loads(metadata.get(LORA_ADAPTER_METADATA_KEY) or "{}")
    prefixes = {each: f"{each}." for each in NETWORKS}
    if not any(name.startswith(tuple(prefixes.values())) for name in written):
        return (dict(written) or None) if network == "unet" else None  # as unet.save_lora_adapter() writes it
    prefix = prefixes[network]
    return {name.removeprefix(prefix): value for name, value in written.items() if name.startswith(prefix)} or None


def _check_kind(lora: Lora, settings: Mapping[str, Any], magnitudes: bool) -> None:
    """Raise LoraError for settings with which the layers would have to compute something else than they do here."""
    others = [name for name in _VARIANTS if settings.get(name) and not (name == "use_dora" and magnitudes)]
    if (begun := settings.get("init_lora_weights")) not in _ON_THE_BASE:
        others.append(f"init_lora_weights={begun}")
    if others:
        raise LoraError(
            f"{lora.name}: expected a LoRA, got another kind of adapter ({shown(others[0])} in its header). {SEND}"
        )
