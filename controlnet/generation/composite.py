"""The composite ControlNet, which diffusers' pipelines call once per step as if it were a single net.

It is built for each request around the shared nets, so no state survives the request. It alone decides which net runs
at a step, on which half of the batch, how much each layer weighs, and where in the picture a net acts.
"""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import ControlNetModel, MultiControlNetModel
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

    def __init__(self, net: ControlNetModel) -> None:
        super().__init__()
        self.net = net

    @property
    def dtype(self) -> torch.dtype:
        return next(self.net.parameters()).dtype


class CompositeControlNet(MultiControlNetModel):
    """Several ControlNets as one. Their residuals add up (arXiv 2302.05543, section 3.4).

    - A net whose scale is 0 at a step is not run: adding its residuals times 0 would give the same picture. The scale
      is 0 if the request says so, or if the step lies outside the net's start–end window.
    - A net with global pooling (shuffle) only acts on the conditional half of a guided batch in every mode, as in
      ControlNet 1.1.
    - A net with a region acts in proportion to it: the residuals of each layer are multiplied by the region.
    """

    def __init__(
        self,
        nets: Sequence[ControlNetModel],
        guided: bool,
        mode: ControlMode = BALANCED,
        regions: Sequence[torch.Tensor | None] | None = None,
        control_maps: dict[int, torch.Tensor] | None = None,
    ) -> None:
        """`nets` are in the order of the control images. `guided` means that the batch has an unconditional half, which
        comes first. `regions` holds for each net how strongly it acts at each place, (1, 1, H, W) from 0 to 1; None
        means everywhere. `control_maps` is filled with each net's control map. Every step, and every picture whose
        composite gets the same `control_maps`, then gives the net the same tensor of batch 1, so a net may keep what it
        computes from it (controlnet/speedups). None means that the nets get the pipeline's tensors."""
        super().__init__([SharedNet(net) for net in nets])  # type: ignore[list-item]
        self.guided = guided
        self.mode = mode
        self.regions = regions or [None] * len(nets)
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
        **_: Any,
    ) -> tuple[list[torch.Tensor] | None, torch.Tensor | None]:
        """Residuals for the UNet's skip connections and its middle block, or (None, None) if no net acts at this step.

        encoder_hidden_states is (B, tokens, d). sample is (B, C, h, w), or one half of a guided batch if the nets take
        it (controlnet/speedups): residuals from before the first cross-attention then have its batch.
        controlnet_cond has one (B, 3, H, W) in [0, 1] per net, and conditioning_scale one number per net. With
        `control_maps`, B is one picture. `regions` are used in place of the composite's own, for a part of the picture.
        Raises ValueError for guess mode, which is meant for single nets: here the half of the batch is chosen for each
        net.
        """
        if guess_mode or return_dict:
            raise ValueError("The composite ControlNet takes guess_mode=False and return_dict=False only.")
        total: Residuals | None = None
        acts = zip(self.nets, regions or self.regions, controlnet_cond, conditioning_scale, strict=True)
        for i, (shared, region, control_map, scale) in enumerate(acts):
            if scale == 0:
                continue
            assert isinstance(shared, SharedNet)
            if self.control_maps is not None:
                # The halves of a guided batch have the same.
                control_map = self.control_maps.setdefault(i, control_map[:1])
            residuals = self._run(shared.net, sample, timestep, encoder_hidden_states, control_map, scale)
            if region is not None:
                residuals = _within(region, residuals, level_sizes(shared.net, sample.shape[-2:]))
            # Not in place: a pooled net's residuals are 1×1, and larger ones cannot be added to them in place.
            total = residuals if total is None else [x + y for x, y in zip(total, residuals, strict=True)]
        return (total[:-1], total[-1]) if total is not None else (None, None)

    def _run(self, net: ControlNetModel, sample, timestep, words, control_map, scale: float) -> Residuals:
        half = self.guided and (self.mode.conditional_only or net.config["global_pool_conditions"])
        if half:
            batch, words = len(words), self._conditional(words)
            sample, control_map = (
                tensor.chunk(2)[1] if len(tensor) == batch else tensor for tensor in (sample, control_map)
            )
        down, middle = net(
            sample, timestep, words, controlnet_cond=control_map, conditioning_scale=scale, return_dict=False
        )
        residuals = [*down, middle]
        if self.mode.faded:
            residuals = [residual * FADE**depth for depth, residual in enumerate(reversed(residuals))][::-1]
        return [_conditional_only(residual) for residual in residuals] if half else residuals

    def _conditional(self, words: torch.Tensor) -> torch.Tensor:
        """The second half of the embeddings, the same tensor at every step: keys and values are kept with it."""
        if self._words is None or self._words[0] is not words:
            self._words = words, words.chunk(2)[1]
        return self._words[1]


def level_sizes(net: ControlNetModel, size: Sequence[int]) -> list[tuple[int, int]]:
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
