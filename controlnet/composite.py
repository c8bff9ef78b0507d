"""The composite ControlNet: what diffusers' pipelines call once per step in place of a single net.

Built anew for each request around the shared nets, so that nothing of a request outlives it. It is the one place that
decides which net runs at a step, and on which half of the batch.
"""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

import torch
from diffusers import ControlNetModel, MultiControlNetModel
from torch import nn

Residuals = tuple[list[torch.Tensor], torch.Tensor]


class SharedNet(nn.Module):
    """A ControlNet as the composite shows it to a pipeline.

    The pipelines read `nets[0].config.global_pool_conditions`, and where it is set they force guess mode on every net
    of the request. The composite sees to pooled nets itself, so the configuration shown here says False.
    """

    config = SimpleNamespace(global_pool_conditions=False)

    def __init__(self, net: ControlNetModel) -> None:
        super().__init__()
        self.net = net

    @property
    def dtype(self) -> torch.dtype:
        return self.net.dtype


class CompositeControlNet(MultiControlNetModel):
    """Several ControlNets as one; their residuals add up (arXiv 2302.05543, section 3.4).

    - A net whose scale is 0 at a step, by the request or because the step lies outside its start–end window, is not run
      at all. Adding its residuals times 0 would give the same picture.
    - A net with global pooling (shuffle) acts on the conditional half of a guided batch only, as in ControlNet 1.1.
    """

    def __init__(self, nets: Sequence[ControlNetModel], guided: bool) -> None:
        """`nets` in the order of the control images; `guided`: the batch holds an unconditional half first."""
        super().__init__([SharedNet(net) for net in nets])  # type: ignore[list-item]
        self.guided = guided

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        controlnet_cond: list[torch.Tensor],
        conditioning_scale: list[float],
        guess_mode: bool = False,
        return_dict: bool = False,
        **_: Any,
    ) -> tuple[list[torch.Tensor] | None, torch.Tensor | None]:
        """Residuals for the UNet's skip connections and its middle; (None, None) where no net acts at this step.

        sample (B, C, h, w), encoder_hidden_states (B, tokens, d), controlnet_cond one (B, 3, H, W) in [0, 1] per net,
        conditioning_scale one number per net. Raises ValueError for guess mode: it is for single nets, and here each
        net's half of the batch is decided net by net.
        """
        if guess_mode or return_dict:
            raise ValueError("The composite ControlNet takes guess_mode=False and return_dict=False only.")
        total: Residuals | None = None
        for shared, hint, scale in zip(self.nets, controlnet_cond, conditioning_scale, strict=True):
            if scale == 0:
                continue
            residuals = self._run(cast(SharedNet, shared).net, sample, timestep, encoder_hidden_states, hint, scale)
            total = residuals if total is None else _add(total, residuals)
        return total if total is not None else (None, None)

    def _run(self, net: ControlNetModel, sample, timestep, words, hint, scale: float) -> Residuals:
        half = self.guided and net.config["global_pool_conditions"]
        if half:
            sample, words, hint = (tensor.chunk(2)[1] for tensor in (sample, words, hint))
        down, middle = net(sample, timestep, words, controlnet_cond=hint, conditioning_scale=scale, return_dict=False)
        if half:
            down, middle = [_conditional_only(tensor) for tensor in down], _conditional_only(middle)
        return list(down), middle


def _conditional_only(residual: torch.Tensor) -> torch.Tensor:
    return torch.cat([torch.zeros_like(residual), residual])


def _add(a: Residuals, b: Residuals) -> Residuals:
    # Not in place: a pooled net's residuals are 1×1, and a smaller tensor cannot take a larger one.
    return [x + y for x, y in zip(a[0], b[0], strict=True)], a[1] + b[1]
