"""Stable Diffusion 1 (R. Rombach et al., "High-Resolution Image Synthesis with Latent Diffusion Models", 2022)."""

import torch
from diffusers import StableDiffusionControlNetImg2ImgPipeline, StableDiffusionControlNetPipeline
from transformers import CLIPTextModel, CLIPTokenizer

from controlnet.families import pipelines
from controlnet.families.family import Embeddings, Family
from controlnet.families.prompts import encode_chunks
from controlnet.models.lora import Base


class FromNoise(pipelines.FromNoise, StableDiffusionControlNetPipeline):
    """diffusers' pipeline for pictures that begin with noise."""


class FromPicture(pipelines.FromPicture, StableDiffusionControlNetImg2ImgPipeline):
    """diffusers' pipeline for pictures that begin with a picture."""


@torch.no_grad()
def encode(base: Base, prompt: str, negative_prompt: str, clip_skip: int = 1) -> Embeddings:
    """Embeddings of both prompts, in one pass of the text encoder.

    `clip_skip` counts like the web UI: 1 takes the last layer, 2 the one before it, up to the number of layers of the
    encoder. The final layer norm is always applied. (diffusers counts from 0, so its clip_skip=1 is 2 here.) Most anime
    models are trained with 2, and the lineart_anime ControlNet is meant for them.
    """
    tokenizer, text_encoder = base["tokenizer"], base["text_encoder"]

    def read(ids: torch.Tensor) -> torch.Tensor:
        if clip_skip == 1:
            return text_encoder(ids).last_hidden_state
        states = text_encoder(ids, output_hidden_states=True).hidden_states
        return text_encoder.final_layer_norm(states[-clip_skip])

    positive, negative = encode_chunks((prompt, negative_prompt), tokenizer, text_encoder, read)
    return {"prompt_embeds": positive, "negative_prompt_embeds": negative}


FAMILY = Family(
    title="Stable Diffusion 1",
    texts={"tokenizer": CLIPTokenizer, "text_encoder": CLIPTextModel},
    encode=encode,
    from_noise=FromNoise,
    from_picture=FromPicture,
    # controlnet/generation/safety.py checks the pictures instead: there a flagged one does not affect the others.
    without={"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False},
    upcasts_vae=False,
    texts_wait=False,
    window=1.5,
)
