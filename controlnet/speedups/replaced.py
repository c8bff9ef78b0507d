"""Forward methods that give the results of diffusers' layers with less work.

Each class below derives from a class of diffusers and adds no attribute, so a loaded layer can be given the derived
class and be given its own class back (controlnet/speedups/forms.py).

The two halves of a guided batch have the same latents. They differ from the first cross-attention on, where the two
prompts come in. A model may therefore get latents of batch 1 with embeddings of batch 2: everything before the first
cross-attention then runs once, and Attention doubles the batch. The results are those of a batch of 2 up to rounding
(1e-6 relative in float32), because matrix products of other shapes add up in another order. Everything else here is
bit-identical.
"""

# pyright: reportOptionalCall=false, reportOptionalSubscript=false, reportOptionalMemberAccess=false
# (diffusers declares layers as optional that the usual configurations have; `fits` has looked.)

from functools import partial
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.activations import GEGLU
from diffusers.models.attention import BasicTransformerBlock, FeedForward
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from diffusers.models.controlnets.controlnet import ControlNetConditioningEmbedding
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.unets.unet_2d_blocks import CrossAttnUpBlock2D, UpBlock2D
from diffusers.models.upsampling import Upsample2D
from torch import nn

from controlnet.models.attention import by_heads
from controlnet.models.packed import main_memory
from controlnet.models.reference import ReferenceProcessor, weights_at
from controlnet.speedups.kept import kept

ROWS = 1024
"""How many tokens ExactFeedForward takes at a time: 512 to 2048 are equally fast, all at once is a quarter slower."""
BAND = 1_000_000
"""About how many numbers of its input ExactUpsample takes at a time: more do not stay in a CPU's caches."""
WORTHWHILE = 4_000_000
"""Products of input and output channels from which on ExactUpsample's four convolutions are faster than one."""


class ExactResnet(ResnetBlock2D):
    """No division by 1. The time embedding's activation is computed once for all layers. Additions are in place."""

    @staticmethod
    def fits(layer: Any) -> bool:
        # "group" is diffusers' word for a decoder's layer, which has no time embedding.
        norms = ("default",) if layer.time_emb_proj is not None else ("default", "group")
        plain = layer.upsample is None and layer.downsample is None and layer.time_embedding_norm in norms
        return plain and layer.output_scale_factor == 1 and isinstance(layer.nonlinearity, nn.SiLU)

    def forward(self, input_tensor: torch.Tensor, temb: torch.Tensor | None = None, *_: Any, **__: Any) -> torch.Tensor:
        if (temb is None) != (self.time_emb_proj is None):
            return super().forward(input_tensor, temb)  # type: ignore[arg-type]
        states = self.conv1(F.silu(self.norm1(input_tensor), inplace=True))
        if temb is not None:
            active = temb if self.skip_time_act else kept(temb, "silu", F.silu)
            states += self.time_emb_proj(active)[:, :, None, None]
        states = self.conv2(F.silu(self.norm2(states), inplace=True))
        states += input_tensor if self.conv_shortcut is None else self.conv_shortcut(input_tensor)
        return states


class ExactAttention(Attention):
    """Keys and values of a prompt once per picture. No division by 1, no look at the processor's signature.

    The query may have batch 1 if the prompt has a larger batch: the result then has that of the prompt. With a
    ReferenceProcessor, keys and values of a reference picture are kept as those of the prompt.
    """

    @staticmethod
    def fits(layer: Any) -> bool:
        return (
            type(layer.processor) in (AttnProcessor2_0, ReferenceProcessor)
            and layer.rescale_output_factor == 1
            and not layer.norm_cross
            and (layer.spatial_norm, layer.norm_q, layer.norm_k) == (None, None, None)
        )

    def forward(
        self,
        hidden_states: torch.Tensor,
        encoder_hidden_states: Any = None,
        attention_mask: torch.Tensor | None = None,
        **others: Any,
    ) -> torch.Tensor:
        """`encoder_hidden_states` are those of a prompt, or the parts of a Seen."""
        if attention_mask is not None or others.keys() - {"temb"}:
            return super().forward(hidden_states, encoder_hidden_states, attention_mask, **others)
        states = hidden_states.flatten(2).transpose(1, 2) if hidden_states.ndim == 4 else hidden_states
        if self.group_norm is not None:
            states = self.group_norm(states.transpose(1, 2)).transpose(1, 2)
        query = by_heads(self.to_q(states), self.heads)
        given = encoder_hidden_states
        words, *picture = given if isinstance(given, tuple | list) else [given]
        key, value = self._keys_and_values(states) if words is None else kept(words, self, self._keys_and_values)
        query = query.expand(len(key), -1, -1, -1)
        states = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        if picture:
            states += self._of_picture(query, states, *picture)
        states = self.to_out[1](self.to_out[0](states))
        if hidden_states.ndim == 4:
            states = states.transpose(1, 2).reshape(len(states), *hidden_states.shape[1:])
        return states + hidden_states if self.residual_connection else states

    def _of_picture(
        self, query: torch.Tensor, states: torch.Tensor, tokens: torch.Tensor, scales: torch.Tensor, mask: Any
    ) -> torch.Tensor:
        processor: Any = self.processor
        at = partial(weights_at, places=states.shape[1], dtype=states.dtype)
        weights = None if mask is None else kept(mask, states.shape[1], at)
        key, value = kept(tokens, self, partial(processor.keys_and_values, heads=self.heads))
        return processor.of_picture(query, key, value, scales, weights)

    def _keys_and_values(self, source: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return by_heads(self.to_k(source), self.heads), by_heads(self.to_v(source), self.heads)


class ExactTransformerBlock(BasicTransformerBlock):
    """Additions in place."""

    @staticmethod
    def fits(layer: Any) -> bool:
        usual = layer.norm_type == "layer_norm" and layer.pos_embed is None and layer._chunk_size is None
        return usual and layer.attn2 is not None and not layer.only_cross_attention

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: Any = None,
        encoder_hidden_states: torch.Tensor | None = None,
        encoder_attention_mask: Any = None,
        timestep: Any = None,
        cross_attention_kwargs: Any = None,
        class_labels: Any = None,
        added_cond_kwargs: Any = None,
    ) -> torch.Tensor:
        if cross_attention_kwargs or attention_mask is not None or encoder_attention_mask is not None:
            return super().forward(
                hidden_states,
                attention_mask,
                encoder_hidden_states,
                encoder_attention_mask,
                timestep,
                cross_attention_kwargs,
                class_labels,
                added_cond_kwargs,
            )
        return self._of(hidden_states, encoder_hidden_states)

    def _of(self, hidden_states: torch.Tensor, words: torch.Tensor | None) -> torch.Tensor:
        states = self.attn1(self.norm1(hidden_states))
        states += hidden_states
        attended = self.attn2(self.norm2(states), encoder_hidden_states=words)
        attended += states
        states = self.ff(self.norm3(attended))
        states += attended
        return states


class ExactFeedForward(FeedForward):
    """The gate's product in place. On a CPU, some rows at a time, so that their inner values stay in its caches."""

    @staticmethod
    def fits(layer: Any) -> bool:
        return type(layer.net[0]) is GEGLU

    def forward(self, hidden_states: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        if hidden_states.device.type != "cpu":
            return self._of(hidden_states)
        rows = hidden_states.flatten(0, -2)
        if len(rows) <= ROWS:
            return self._of(hidden_states)
        return torch.cat([self._of(piece) for piece in rows.split(ROWS)]).view_as(hidden_states)

    def _of(self, rows: torch.Tensor) -> torch.Tensor:
        enlarge: Any = self.net[0]
        states, gate = enlarge.proj(rows).chunk(2, dim=-1)
        return self.net[2](F.gelu(gate).mul_(states))


class ExactTransformer(Transformer2DModel):
    """The output has the batch of its cross-attention."""

    @staticmethod
    def fits(layer: Any) -> bool:
        return layer.is_input_continuous

    def _get_output_for_continuous_inputs(
        self, hidden_states: torch.Tensor, residual: torch.Tensor, batch_size: int, **others: Any
    ) -> torch.Tensor:
        return super()._get_output_for_continuous_inputs(hidden_states, residual, len(hidden_states), **others)


class ExactUpBlock(UpBlock2D):
    """Skip connections from before the first cross-attention may have batch 1."""

    @staticmethod
    def fits(layer: Any) -> bool:
        return True

    def forward(self, hidden_states: torch.Tensor, res_hidden_states_tuple: Any, *given: Any, **others: Any) -> Any:
        return super().forward(hidden_states, _same_batch(hidden_states, res_hidden_states_tuple), *given, **others)


class ExactCrossAttnUpBlock(CrossAttnUpBlock2D):
    """Skip connections from before the first cross-attention may have batch 1."""

    @staticmethod
    def fits(layer: Any) -> bool:
        return True

    def forward(self, hidden_states: torch.Tensor, res_hidden_states_tuple: Any, *given: Any, **others: Any) -> Any:
        return super().forward(hidden_states, _same_batch(hidden_states, res_hidden_states_tuple), *given, **others)


class ExactUpsample(Upsample2D):
    """Of an enlarged picture, each 2×2 pixels are equal, so a 3×3 kernel reads only 2×2 different ones of them.

    A result pixel's row is even or odd, and so is its column. For each of these four phases, weights that multiply the
    same pixel are added up beforehand (`phases`): 16 products instead of 36. That is as exact as adding in another
    order, 4e-7 relative in float32. In half precision the sums would be rounded, so this is for float32 on a CPU.
    """

    phases: list[torch.Tensor]
    """The summed weights of the request, (out, in, 2, 2) for even-even, even-odd, odd-even and odd-odd pixels."""

    @staticmethod
    def fits(layer: Any) -> bool:
        conv = getattr(layer, "conv", None)
        if layer.norm is not None or not layer.interpolate or type(conv) is not nn.Conv2d:
            return False
        usual = (conv.kernel_size, conv.stride, conv.padding) == ((3, 3), (1, 1), (1, 1))
        return usual and conv.weight.dtype == torch.float32 and conv.weight.device.type == "cpu"

    def forward(self, hidden_states: torch.Tensor, output_size: Any = None, *given: Any, **others: Any) -> torch.Tensor:
        products = hidden_states.numel() * self.out_channels
        if output_size is not None or products < WORTHWHILE:
            return super().forward(hidden_states, output_size, *given, **others)
        batch, _, height, width = hidden_states.shape
        enlarged = hidden_states.new_empty(batch, self.out_channels, 2 * height, 2 * width)
        padded = F.pad(hidden_states, (1, 1, 1, 1))
        rows = max(1, BAND // hidden_states[:, :, 0].numel())
        for weights, (y, x) in zip(self.phases, product((0, 1), repeat=2), strict=True):
            phase = enlarged[:, :, y::2, x::2]
            for top in range(0, height, rows):
                bottom = min(top + rows, height)
                band = padded[:, :, top + y : bottom + y + 1, x : x + width + 1]
                phase[:, :, top:bottom] = F.conv2d(band, weights, self.conv.bias)
        return enlarged


@torch.no_grad()
def phases_of(weight: torch.Tensor) -> list[torch.Tensor]:
    """ExactUpsample's summed weights for the weights of its convolution, (out, in, 3, 3) in float32."""
    even, odd = weight.new_tensor([[1, 0, 0], [0, 1, 1]]), weight.new_tensor([[1, 1, 0], [0, 0, 1]])
    phases = []
    for rows, columns in product((even, odd), repeat=2):
        # Not from malloc: on the top of its heap they would make every step fetch its memory from the system again,
        # which cost 0.8 of 4.3 s at 256×256.
        memory = main_memory(4 * 4 * weight.shape[:2].numel()).view(torch.float32).view(*weight.shape[:2], 2, 2)
        phases.append(memory.copy_(torch.einsum("yi,xj,ocij->ocyx", rows, columns, weight)))
    return phases


class ExactHintEmbedding(ControlNetConditioningEmbedding):
    """A control map is embedded once, if it is the same tensor at every step."""

    @staticmethod
    def fits(layer: Any) -> bool:
        return True

    def forward(self, conditioning: torch.Tensor) -> torch.Tensor:
        return kept(conditioning, self, super().forward)


def _same_batch(states: torch.Tensor, skipped: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    return tuple(tensor.expand(len(states), -1, -1, -1) for tensor in skipped)


FORMS: dict[type, Any] = {
    form.__bases__[0]: form
    for form in (
        ExactResnet,
        ExactAttention,
        ExactTransformerBlock,
        ExactFeedForward,
        ExactTransformer,
        ExactUpBlock,
        ExactCrossAttnUpBlock,
        ExactUpsample,
        ExactHintEmbedding,
    )
}
"""The exact form of a class of diffusers."""
OWN_CLASS = {form: own for own, form in FORMS.items()}
FOR_ONE_HALF = (Attention, Transformer2DModel, UpBlock2D, CrossAttnUpBlock2D)
"""The classes whose exact forms let a model take latents of batch 1 with embeddings of batch 2."""
