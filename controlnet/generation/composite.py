"""The composite ControlNet, which diffusers' pipelines call once per step as if it were a single net.

It is built for each request around the shared nets, so no state survives the request. It alone decides which net runs
at a step, on which half of the batch, how much each layer weighs, and where in the picture a net acts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import MultiControlNetModel
from torch import nn

from controlnet.request.modes import CONTROL_MODES, ControlMode

Residuals = list[torch.Tensor]
"""One for each of the UNet's skip connections, from the largest to the smallest, then one for its middle."""
FADE = 0.825
"""In the modes "prompt" and "control", the weight of each layer as a share of the next deeper layer's weight."""
BALANCED = CONTROL_MODES["balanced"]


class SharedNet(nn.Module):
    """A ControlNet as the composite presents it to a pipeline.

    The pipelines read `nets[0].config.global_pool_conditions`. If it is set, they force guess mode on every net of the
    request. The composite handles pooled nets itself, so this configuration says False.
    """

    config = SimpleNamespace(global_pool_conditions=False)

    def __init__(self, net: Any) -> None:
        super().__init__()
        self.net = net

    @property
    def dtype(self) -> torch.dtype:
        return next(self.net.parameters()).dtype


@dataclass(frozen=True)
class Acting:
    """One call of a net at a step: the controls that it serves, by their numbers."""

    net: Any
    """A ControlNetModel, or a ControlNetUnionModel (github.com/xinsir6/ControlNetPlus)."""
    controls: tuple[int, ...]
    """Several only for a union."""
    types: tuple[int, ...] = ()
    """What the map of each control is to a union. Empty for other nets."""
    region: torch.Tensor | None = None
    """How strongly it acts at each place, (1, 1, H, W) from 0 to 1. None means everywhere."""


class CompositeControlNet(MultiControlNetModel):
    """Several ControlNets as one. Their residuals add up (arXiv 2302.05543, section 3.4).

    - A net whose scale is 0 at a step is not run: adding its residuals times 0 would give the same picture. The scale
      is 0 if the request says so, or if the step lies outside the net's start–end window.
    - A net with global pooling (shuffle) only acts on the conditional half of a guided batch in every mode, as in
      ControlNet 1.1.
    - A net with a region acts in proportion to it: the residuals of each layer are multiplied by the region.
    - A union sees all its control maps in one call. What does not act at a step is left out of it. The residuals are
      multiplied by the largest scale, and what the union reads from each map by the share of that scale that the map's
      own is. (diffusers multiplies the maps' features by their scales and does not scale the residuals, so that two
      maps of scale 0 would still act.) A single map acts as in diffusers.
    """

    def __init__(
        self,
        acting: Sequence[Acting],
        guided: bool,
        mode: ControlMode = BALANCED,
        control_maps: dict[tuple[int, int | None], torch.Tensor] | None = None,
    ) -> None:
        """`guided` means that the batch has an unconditional half, which comes first. `control_maps` is filled with the
        control maps. Every step, and every picture whose composite gets the same `control_maps`, then gives a net the
        same tensor for the same map, so a net may keep what it computes from it (controlnet/speedups). None means that
        the nets get the pipeline's tensors."""
        by_control = {number: each.net for each in acting for number in each.controls}
        super().__init__([SharedNet(by_control[number]) for number in sorted(by_control)])  # type: ignore[list-item]
        self.acting = acting
        self.guided = guided
        self.mode = mode
        self.control_maps = control_maps
        self._words: tuple[torch.Tensor, torch.Tensor] | None = None

    @property
    def dtype(self) -> torch.dtype:
        """That of the nets. Pipelines ask once for each net, and diffusers would look at all modules of all nets."""
        nets: Any = self.nets
        return nets[0].dtype

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        controlnet_cond: list[torch.Tensor],
        conditioning_scale: list[float],
        guess_mode: bool = False,
        return_dict: bool = False,
        regions: Sequence[torch.Tensor | None] | None = None,
        added_cond_kwargs: Mapping[str, torch.Tensor] | None = None,
        **_: Any,
    ) -> tuple[list[torch.Tensor] | None, torch.Tensor | None]:
        """Residuals for the UNet's skip connections and its middle block, or (None, None) if no net acts at this step.

        encoder_hidden_states is (B, tokens, d). sample is (B, C, h, w), or one half of a guided batch if the nets take
        it (controlnet/speedups): residuals from before the first cross-attention then have its batch.
        controlnet_cond has one (B, 3, H, W) in [0, 1] per control, and conditioning_scale one number per control. With
        `control_maps`, B is one picture. `regions` are used in place of those of `acting`, for a part of the picture.
        `added_cond_kwargs` are tensors of batch B that the UNet gets, too. Raises ValueError for guess mode, which is
        meant for single nets: here the half of the batch is chosen for each net.
        """
        if guess_mode or return_dict:
            raise ValueError("The composite ControlNet takes guess_mode=False and return_dict=False only.")
        total: Residuals | None = None
        own_regions = [each.region for each in self.acting] if regions is None else regions
        for each, region in zip(self.acting, own_regions, strict=True):
            scales = {number: conditioning_scale[number] for number in each.controls if conditioning_scale[number]}
            if not scales:
                continue
            given = sample, timestep, encoder_hidden_states, added_cond_kwargs
            residuals = self._run(each, scales, controlnet_cond, *given)
            if region is not None:
                residuals = _within(region, residuals, level_sizes(each.net, sample.shape[-2:]))
            # Not in place: a pooled net's residuals are 1×1, and larger ones cannot be added to them in place.
            total = residuals if total is None else [x + y for x, y in zip(total, residuals, strict=True)]
        return (total[:-1], total[-1]) if total is not None else (None, None)

    def _run(
        self, acting: Acting, scales: Mapping[int, float], given_maps, sample, timestep, words, added
    ) -> Residuals:
        """`scales` has the controls that act at this step."""
        half = self.guided and (self.mode.conditional_only or acting.net.config["global_pool_conditions"])
        batch = len(words)
        if half:
            words = self._conditional(words)
            sample = _half(sample, batch)
            added = added and {name: _half(tensor, batch) for name, tensor in added.items()}
        # A union joins the features of its maps with those of the latents, so they have one batch.
        union_batch = len(sample) if acting.types else None
        maps = {number: self._control_map(number, given_maps[number], half, batch, union_batch) for number in scales}
        others = {"return_dict": False} | ({"added_cond_kwargs": added} if added else {})
        if acting.types:
            residuals = _of_union(acting, scales, maps, sample, timestep, words, others)
        else:
            ((number, scale),) = scales.items()
            own = {"controlnet_cond": maps[number], "conditioning_scale": scale}
            down, middle = acting.net(sample, timestep, words, **own, **others)
            residuals = [*down, middle]
        if self.mode.faded:
            residuals = [residual * FADE**depth for depth, residual in enumerate(reversed(residuals))][::-1]
        return [_conditional_only(residual) for residual in residuals] if half else residuals

    def _control_map(
        self, number: int, given: torch.Tensor, half: bool, batch: int, union_batch: int | None
    ) -> torch.Tensor:
        """The control map of a control as its net gets it: of batch `union_batch`, if that is not None."""
        if union_batch is not None or self.control_maps is not None:
            given = given[:1]  # the halves of a guided batch have the same
            given = given if union_batch is None else given.expand(union_batch, -1, -1, -1)
        elif half:
            given = _half(given, batch)
        return given if self.control_maps is None else self.control_maps.setdefault((number, union_batch), given)

    def _conditional(self, words: torch.Tensor) -> torch.Tensor:
        """The second half of the embeddings, the same tensor at every step: keys and values are kept with it."""
        if self._words is None or self._words[0] is not words:
            self._words = words, words.chunk(2)[1]
        return self._words[1]


def _of_union(
    acting: Acting, scales: Mapping[int, float], maps: Mapping[int, torch.Tensor], sample, timestep, words, others
) -> Residuals:
    """A union's residuals for the controls of `scales`."""
    types = dict(zip(acting.controls, acting.types, strict=True))
    named = torch.zeros((1, acting.net.config["num_control_type"]))
    named[:, [types[number] for number in scales]] = 1
    largest = max(scales.values())
    shares = [scale / largest for scale in scales.values()]
    down, middle = acting.net(
        sample,
        timestep,
        words,
        controlnet_cond=[maps[number] for number in scales],
        control_type=named.to(sample).expand(len(sample), -1),
        control_type_idx=[types[number] for number in scales],
        conditioning_scale=shares if len(shares) > 1 else largest,
        **others,
    )
    return [residual * largest for residual in (*down, middle)] if len(shares) > 1 else [*down, middle]


def _half(tensor: torch.Tensor, batch: int) -> torch.Tensor:
    """The second half of what has the batch's size."""
    return tensor.chunk(2)[1] if len(tensor) == batch else tensor


def level_sizes(net: Any, size: Sequence[int]) -> list[tuple[int, int]]:
    """(height, width) of each of a net's residuals for latents of `size`, before global pooling if the net has it."""
    height, width = size
    blocks = len(net.config["block_out_channels"])
    sizes = [(height, width)]
    for block in range(blocks):
        sizes += [(height, width)] * net.config["layers_per_block"]
        if block < blocks - 1:
            height, width = -(-height // 2), -(-width // 2)  # a convolution of stride 2 and padding 1
            sizes.append((height, width))
    return [*sizes, (height, width)]


def _within(region: torch.Tensor, residuals: Residuals, sizes: Sequence[tuple[int, int]]) -> Residuals:
    weights = {size: F.interpolate(region, size, mode="area") for size in set(sizes)}
    return [residual * weights[size].to(residual) for residual, size in zip(residuals, sizes, strict=True)]


def _conditional_only(residual: torch.Tensor) -> torch.Tensor:
    return torch.cat([torch.zeros_like(residual), residual])
