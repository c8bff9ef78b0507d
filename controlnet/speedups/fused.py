"""Forward methods of diffusers' layers that use the kernels of cuda/, on a GPU in half precision.

They take the place of those of controlnet/speedups/replaced.py, and keep what those leave out. A result is rounded
once where diffusers rounds several times, so it is closer to float32's, and not bit for bit that of diffusers. Any
input that a kernel does not fit goes the way of the class that the form derives from.
"""

# pyright: reportOptionalCall=false, reportOptionalSubscript=false, reportOptionalMemberAccess=false
# (diffusers declares layers as optional that the usual configurations have; `fits` has looked.)

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from controlnet.speedups.cuda.kernels import EIGHT, LANES, THREADS, WIDTHS, Form, Kernels, kernels_for
from controlnet.speedups.kept import kept
from controlnet.speedups.replaced import (
    ExactFeedForward,
    ExactResnet,
    ExactTransformer,
    ExactTransformerBlock,
)

CHANNELS_LAST = torch.channels_last
KernelsOf = Callable[[torch.Tensor], Any]
"""Whether there are kernels for tensors like a weight."""
Uses = Iterator[tuple[nn.Module, Form]]
"""The layers that a form passes over, each with what it asks of the kernels in their place."""


def channels_last(x: torch.Tensor) -> torch.Tensor:
    return x.contiguous(memory_format=CHANNELS_LAST)


def _norm_fits(norm: Any, kernels: KernelsOf) -> bool:
    if type(norm) not in (nn.GroupNorm, FusedGroupNorm) or not norm.affine or not kernels(norm.weight):
        return False
    return norm.num_channels % EIGHT == 0 and norm.num_channels // EIGHT <= THREADS


def _convolution_fits(conv: Any) -> bool:
    return type(conv) is nn.Conv2d and conv.bias is not None and conv.padding_mode == "zeros"


def _layer_norm_fits(norm: Any, kernels: KernelsOf) -> bool:
    if type(norm) is not nn.LayerNorm or norm.weight is None or norm.bias is None or not kernels(norm.weight):
        return False
    (width, *others) = norm.normalized_shape
    return not others and width % EIGHT == 0 and width <= LANES * EIGHT * max(WIDTHS)


def _group_norm(norm: Any, added: bool = False, silu: bool = False) -> tuple[nn.Module, Form]:
    return norm, Form("group_norm", norm.num_channels, norm.eps, norm.num_groups, added, silu)


def _layer_norm(norm: Any, added: bool = False) -> tuple[nn.Module, Form]:
    return norm, Form("layer_norm", norm.normalized_shape[0], norm.eps, added=added)


class FusedGroupNorm(nn.GroupNorm):
    """Group normalisation of channels that are last in memory, without a change of layout."""

    @staticmethod
    def fits(layer: Any, kernels: KernelsOf) -> bool:
        return _norm_fits(layer, kernels)

    @staticmethod
    def uses(layer: Any) -> Uses:
        yield _group_norm(layer)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        kernels = kernels_for(input)
        if kernels is None or input.ndim != 4 or not input.is_contiguous(memory_format=CHANNELS_LAST):
            return super().forward(input)
        return kernels.group_norm(input, self)


class FusedResnet(ExactResnet):
    """Each normalisation with its activation, and with the sums before it. All biases are added in these passes."""

    @staticmethod
    def fits(layer: Any, kernels: KernelsOf) -> bool:
        convolutions = [layer.conv1, layer.conv2, *([] if layer.conv_shortcut is None else [layer.conv_shortcut])]
        norms = _norm_fits(layer.norm1, kernels) and _norm_fits(layer.norm2, kernels)
        return norms and all(map(_convolution_fits, convolutions))

    @staticmethod
    def uses(layer: Any) -> Uses:
        yield _group_norm(layer.norm1, silu=True)
        yield _group_norm(layer.norm2, added=True, silu=True)
        yield layer, Form("add_bias", layer.conv2.out_channels)

    def forward(self, input_tensor: torch.Tensor, temb: torch.Tensor | None = None, *_: Any, **__: Any) -> torch.Tensor:
        kernels = kernels_for(input_tensor)
        if kernels is None or (temb is None) != (self.time_emb_proj is None):
            return super().forward(input_tensor, temb)
        given = channels_last(input_tensor)
        states = _without_bias(self.conv1, kernels.group_norm(given, self.norm1, silu=True))
        states = kernels.group_norm(states, self.norm2, self._added(temb, len(states)), silu=True)
        states = _without_bias(self.conv2, states)
        bias: Any = self.conv2.bias
        if self.conv_shortcut is None:
            return kernels.add_bias(states, given, bias)
        bias = bias + self.conv_shortcut.bias
        return kernels.add_bias(states, channels_last(_without_bias(self.conv_shortcut, given)), bias)

    def _added(self, temb: torch.Tensor | None, batch: int) -> torch.Tensor:
        """What is added to each channel after the first convolution, (batch, channels)."""
        bias: Any = self.conv1.bias
        if temb is None:
            return bias.expand(batch, -1).contiguous()
        active = temb if self.skip_time_act else kept(temb, "silu", F.silu)
        return (self.time_emb_proj(active) + bias).expand(batch, -1).contiguous()


def _without_bias(conv: nn.Conv2d, x: torch.Tensor) -> torch.Tensor:
    return channels_last(F.conv2d(x, conv.weight, None, conv.stride, conv.padding, conv.dilation, conv.groups))  # type: ignore[arg-type]


class FusedTransformerBlock(ExactTransformerBlock):
    """Each sum with the normalisation after it."""

    @staticmethod
    def fits(layer: Any, kernels: KernelsOf) -> bool:
        return all(_layer_norm_fits(norm, kernels) for norm in (layer.norm1, layer.norm2, layer.norm3))

    @staticmethod
    def uses(layer: Any) -> Uses:
        yield _layer_norm(layer.norm1)
        yield _layer_norm(layer.norm2, added=True)
        yield _layer_norm(layer.norm3, added=True)

    def _of(self, hidden_states: torch.Tensor, words: torch.Tensor | None) -> torch.Tensor:
        kernels = kernels_for(hidden_states)
        if kernels is None:
            return super()._of(hidden_states, words)
        norm1: Any = self.norm1
        states, normal = kernels.layer_norm(norm1, hidden_states.contiguous())
        states, normal = _add_and_norm(kernels, self.norm2, self.attn1(normal), states)
        attended = self.attn2(normal, encoder_hidden_states=words)
        states, normal = _add_and_norm(kernels, self.norm3, attended, states)
        return self.ff(normal).add_(states)


def _add_and_norm(kernels: Kernels, norm: Any, a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """`b` may have batch 1: it is from before the first cross-attention."""
    return kernels.layer_norm(norm, a.contiguous(), b.expand_as(a).contiguous())


class FusedFeedForward(ExactFeedForward):
    """The gate's activation and product in one pass."""

    @staticmethod
    def fits(layer: Any, kernels: KernelsOf) -> bool:
        weight = layer.net[0].proj.weight
        return bool(kernels(weight)) and weight.shape[0] % (2 * EIGHT) == 0

    @staticmethod
    def uses(layer: Any) -> Uses:
        yield layer, Form("gated_gelu", layer.net[0].proj.weight.shape[0] // 2)

    def _of(self, rows: torch.Tensor) -> torch.Tensor:
        kernels = kernels_for(rows)
        if kernels is None:
            return super()._of(rows)
        enlarge: Any = self.net[0]
        return self.net[2](kernels.gated_gelu(enlarge.proj(rows)))


class FusedTransformer(ExactTransformer):
    """Pixels whose channels are last are tokens as they are. A 1×1 convolution of them is a product of matrices."""

    @staticmethod
    def fits(layer: Any, kernels: KernelsOf) -> bool:
        return _norm_fits(layer.norm, kernels)

    @staticmethod
    def uses(layer: Any) -> Uses:
        yield from ()  # its normalisation is a layer with a form of its own

    def _operate_on_continuous_inputs(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, int]:
        if kernels_for(hidden_states) is None:
            return super()._operate_on_continuous_inputs(hidden_states)
        tokens = self.norm(channels_last(hidden_states)).permute(0, 2, 3, 1).flatten(1, 2)
        tokens = F.linear(tokens, self.proj_in.weight.flatten(1), self.proj_in.bias)
        return tokens, tokens.shape[-1]

    def _get_output_for_continuous_inputs(
        self, hidden_states: torch.Tensor, residual: torch.Tensor, batch_size: int, **others: Any
    ) -> torch.Tensor:
        if kernels_for(hidden_states) is None:
            return super()._get_output_for_continuous_inputs(hidden_states, residual, batch_size, **others)
        tokens = F.linear(hidden_states, self.proj_out.weight.flatten(1), self.proj_out.bias)
        pixels = tokens.unflatten(1, residual.shape[-2:]).permute(0, 3, 1, 2)
        return pixels + residual


FUSED: dict[type, Any] = {
    form.__bases__[0]: form
    for form in (FusedGroupNorm, FusedResnet, FusedTransformerBlock, FusedFeedForward, FusedTransformer)
}
"""The fused form of a layer's exact form, or of its own class if it has no exact form."""
