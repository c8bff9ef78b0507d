"""Reference pictures: a UNet that sees a picture beside the words, and the encoder that turns pictures into tokens.

H. Ye et al., "IP-Adapter: Text Compatible Image Prompt Adapter for Text-to-Image Diffusion Models", arXiv 2308.06721.
Each layer of cross-attention has further weights, for keys and values of the picture's tokens, and adds what it finds
in them to what it finds in the words. diffusers reads the file of these weights.

Nothing is put on the shared UNet. Requests with a reference picture use a copy, which shares all its numbers and has
other attention processors. How strongly the picture acts is a tensor of the request, so no processor has a state.
"""

import weakref
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from diffusers.models.embeddings import ImageProjection
from PIL import Image
from torch import nn
from transformers import CLIPImageProcessor

from controlnet.models.attention import by_heads
from controlnet.models.loading import WeightsMismatch
from controlnet.models.low_memory import on_device
from controlnet.models.packed import shared_copy
from controlnet.models.reference_file import check_adapter


class Seen(NamedTuple):
    """What a UNet with ReferenceProcessors attends to, in place of the words alone."""

    words: torch.Tensor
    """The prompts' embeddings, (B, words, d)."""
    tokens: torch.Tensor
    """Those of the reference picture, (B, tokens, d)."""
    scales: torch.Tensor
    """(1, 2): how strongly the picture acts in the layers of the mode "style", and in the others. 0 is not at all."""
    mask: torch.Tensor | None = None
    """How strongly it acts at each place, (1, 1, H, W) from 0 to 1, in pixels. None means everywhere."""


class ReferenceProcessor(nn.Module):
    """Cross-attention to words and to the tokens of a picture. In place of diffusers' IPAdapterAttnProcessor2_0."""

    def __init__(self, to_k: nn.Linear, to_v: nn.Linear, in_style: bool) -> None:
        super().__init__()
        self.to_k, self.to_v = to_k, to_v
        self.in_style = in_style

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: Sequence[Any],
        attention_mask: None = None,
        temb: None = None,
    ) -> torch.Tensor:
        """(B, places, channels) -> the same. `encoder_hidden_states` has the parts of a Seen."""
        words, tokens, scales, mask = encoder_hidden_states
        query, key, value = (
            by_heads(layer(given), attn.heads)
            for layer, given in ((attn.to_q, hidden_states), (attn.to_k, words), (attn.to_v, words))
        )
        states = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        weights = None if mask is None else weights_at(mask, states.shape[1], states.dtype)
        states = states + self.of_picture(query, *self.keys_and_values(tokens, attn.heads), scales, weights)
        return attn.to_out[1](attn.to_out[0](states))

    def keys_and_values(self, tokens: torch.Tensor, heads: int) -> tuple[torch.Tensor, torch.Tensor]:
        return by_heads(self.to_k(tokens), heads), by_heads(self.to_v(tokens), heads)

    def of_picture(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scales: torch.Tensor,
        weights: torch.Tensor | None,
    ) -> torch.Tensor:
        """What is added to the attention to the words, (B, places, heads × d). `weights` are as weights_at() gives."""
        states = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        if weights is not None:
            states = states * weights
        return scales[0, 0 if self.in_style else 1] * states


def weights_at(mask: torch.Tensor, places: int, dtype: torch.dtype) -> torch.Tensor:
    """A mask (1, 1, H, W) at so many places, (1, places, 1), as diffusers interpolates it.

    The places are those of latents, which are an eighth of the pixels, or of a deeper level, each half as large.
    """
    height, width = (side // 8 for side in mask.shape[-2:])
    while height * width > places:
        height, width = -(-height // 2), -(-width // 2)
    assert height * width == places, (mask.shape, places)
    return F.interpolate(mask, (height, width), mode="bicubic").flatten(2).transpose(1, 2).to(dtype)


class References:
    """What requests with a reference picture need. Made once, at setup."""

    def __init__(
        self, unet: Any, encoder: Any, adapter: Mapping[str, torch.Tensor], style: Sequence[str], device: torch.device
    ) -> None:
        """For a UNet, which stays as it is.

        `encoder` is a CLIPVisionModelWithProjection. If it is not on the `device`, it is copied there for each picture.
        `adapter` has the tensors of a file of IP-Adapter, basic or "plus". The names of layers that act in the mode
        "style" begin with one of `style`. Raises WeightsMismatch if they do not all go together.
        """
        check_adapter(adapter, unet, encoder.config)
        groups = {
            group: {name.partition(".")[2]: tensor for name, tensor in adapter.items() if name.startswith(f"{group}.")}
            for group in ("image_proj", "ip_adapter")
        }
        # The two halves of diffusers' loader. The whole of it would change the UNet.
        self._projection = unet._convert_ip_adapter_image_proj_to_diffusers(groups["image_proj"])
        self._processors = {
            name: ReferenceProcessor(theirs.to_k_ip[0], theirs.to_v_ip[0], name.startswith(tuple(style)))
            for name, theirs in unet._convert_ip_adapter_attn_to_diffusers([groups]).items()
            if name.endswith("attn2.processor")
        }
        for made in (self._projection, *self._processors.values()):
            made.to(unet.device, unet.dtype).eval().requires_grad_(False)
        if style and not any(each.in_style for each in self._processors.values()):
            raise WeightsMismatch(f"[reference] names layers {', '.join(style)}, and the UNet has no such layer.")
        self._encoder, self._device, self._dtype = encoder, device, unet.dtype
        side = encoder.config.image_size
        self._prepared = CLIPImageProcessor(size=side, crop_size=side)
        self._copies: weakref.WeakKeyDictionary[nn.Module, nn.Module] = weakref.WeakKeyDictionary()
        self.of(unet)

    def of(self, unet: Any) -> Any:
        """The UNet with ReferenceProcessors: a copy that shares all its numbers, the same at each call.

        It takes a Seen in place of the words. `unet` is the one that this was made for, or that with LoRAs.
        """
        if unet not in self._copies:
            made = shared_copy(unet)
            made.set_attn_processor({**made.attn_processors, **self._processors})
            self._copies[unet] = made
        return self._copies[unet]

    @torch.no_grad()
    def tokens(self, picture: Image.Image, guided: bool) -> torch.Tensor:
        """The tokens of an RGB picture's middle square, (1, tokens, d), or with those of no picture first, (2, …).

        diffusers' pipelines prepare pictures in this way, too.
        """
        pixels = self._prepared(picture, return_tensors="pt").pixel_values.to(self._device, self._dtype)
        here = self._encoder.device == self._device
        encoder = self._encoder if here else on_device(self._encoder, self._device)
        if isinstance(self._projection, ImageProjection):  # basic
            embedding = encoder(pixels).image_embeds
            nothing = torch.zeros_like(embedding)
        else:
            embedding = encoder(pixels, output_hidden_states=True).hidden_states[-2]
            if guided:
                nothing = encoder(torch.zeros_like(pixels), output_hidden_states=True).hidden_states[-2]
        return self._projection(torch.cat([nothing, embedding]) if guided else embedding)
