"""Stable Diffusion XL, without its refiner: D. Podell et al., "SDXL: Improving Latent Diffusion Models", 2023."""

import torch
from diffusers import StableDiffusionXLControlNetImg2ImgPipeline, StableDiffusionXLControlNetPipeline
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from controlnet.families import pipelines
from controlnet.families.family import Embeddings, Family
from controlnet.families.prompts import encode_chunks
from controlnet.models.lora import Base


class FromNoise(pipelines.FromNoise, StableDiffusionXLControlNetPipeline):
    """diffusers' pipeline for pictures that begin with noise."""


class FromPicture(pipelines.FromPicture, StableDiffusionXLControlNetImg2ImgPipeline):
    """diffusers' pipeline for pictures that begin with a picture."""


@torch.no_grad()
def encode(base: Base, prompt: str, negative_prompt: str, clip_skip: int = 2) -> Embeddings:
    """Embeddings of both prompts, joined of those of both text encoders, and one of the whole prompt ("pooled").

    `clip_skip` counts as in sd15.py, and 2 is what the models are trained with. The final layer norm is never applied.
    Both encoders take their layer from their own last one. The pooled embedding is that of the first chunk, without
    weights, as in the web UI. An empty negative prompt is zeros: the published bases say so
    (force_zeros_for_empty_prompt), and diffusers does it.
    """
    prompts, both, made = (prompt, negative_prompt), [], []
    for tokenizer, encoder in ((base[f"tokenizer{end}"], base[f"text_encoder{end}"]) for end in ("", "_2")):

        def read(ids: torch.Tensor, encoder=encoder) -> torch.Tensor:
            # One prompt after the other, as diffusers does it: the last product rounds otherwise for more rows.
            made[:] = [encoder(own, output_hidden_states=True) for own in ids.chunk(len(prompts))]
            return torch.cat([each.hidden_states[-clip_skip] for each in made])

        both.append(encode_chunks(prompts, tokenizer, encoder, read))
    positive, negative = (torch.cat(own, dim=-1) for own in zip(*both, strict=True))
    of_prompt, of_negative = (each.text_embeds[:1] for each in made)
    if not negative_prompt:
        negative, of_negative = torch.zeros_like(negative), torch.zeros_like(of_negative)
    return {
        "prompt_embeds": positive,
        "negative_prompt_embeds": negative,
        "pooled_prompt_embeds": of_prompt,
        "negative_pooled_prompt_embeds": of_negative,
    }


FAMILY = Family(
    title="Stable Diffusion XL",
    texts={
        "tokenizer": CLIPTokenizer,
        "text_encoder": CLIPTextModel,
        "tokenizer_2": CLIPTokenizer,
        "text_encoder_2": CLIPTextModelWithProjection,
    },
    encode=encode,
    from_noise=FromNoise,
    from_picture=FromPicture,
    # A package for watermarks that happens to be installed would change the pictures.
    without={"add_watermarker": False},
    upcasts_vae=True,
    texts_wait=True,
    window=1.0,
)
