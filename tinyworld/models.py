"""The tiny bundle's models: diffusers' and transformers' own classes with small configurations."""

import math
from pathlib import Path

import torch
from diffusers import AutoencoderTiny, ControlNetModel, DDIMScheduler, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

TOKENS = 32
"""Length of a tokenized prompt. Longer prompts are encoded in pieces."""
WIDTHS = (64, 96, 96)
TEXT_WIDTH = 128
LATENT_CHANNELS = 8


def make_tokenizer(captions: list[str]) -> CLIPTokenizer:
    """A CLIP tokenizer with one token for each word of the captions. Other words are split into letters."""
    tokenizer = CLIPTokenizer().train_new_from_iterator(captions, vocab_size=1000, show_progress=False)
    tokenizer.model_max_length = TOKENS
    return tokenizer


def knows(tokenizer: CLIPTokenizer, captions: list[str]) -> bool:
    """True if every word of the captions is one token."""
    words = {word.strip(",") for caption in captions for word in caption.split()}
    return all(len(tokenizer(word).input_ids) == 3 for word in words)  # with the marks of start and end


def tokens_of(tokenizer: CLIPTokenizer, prompts: list[str]) -> torch.Tensor:
    """The prompts as token ids, (N, TOKENS)."""
    return tokenizer(prompts, padding="max_length", truncation=True, return_tensors="pt").input_ids


def with_words_of(encoder: CLIPTextModel, tokenizer: CLIPTokenizer, bundle: Path) -> CLIPTextModel:
    """`encoder` with the weights of a bundle's text encoder. Its words, tokens of `tokenizer`, are those of the bundle
    where it has them; the others stay as they are."""
    earlier = CLIPTextModel.from_pretrained(bundle / "text_encoder", variant="fp16", torch_dtype=torch.float32)
    known, state = CLIPTokenizer.from_pretrained(bundle / "tokenizer").get_vocab(), earlier.state_dict()
    (name,) = [name for name in state if name.endswith("token_embedding.weight")]
    words = encoder.state_dict()[name].clone()
    for word, row in tokenizer.get_vocab().items():
        if word in known:
            words[row] = state[name][known[word]]
    encoder.load_state_dict(state | {name: words})
    return encoder


def make_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=TEXT_WIDTH,
        intermediate_size=2 * TEXT_WIDTH,
        projection_dim=TEXT_WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=TOKENS,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModel(config)


def make_vae() -> AutoencoderTiny:
    """Factor 8, and no block at full resolution, which would take most of the time on a CPU."""
    return AutoencoderTiny(
        encoder_block_out_channels=(64,) * 4,
        decoder_block_out_channels=(64,) * 4,
        num_encoder_blocks=(0, 1, 2, 3),
        num_decoder_blocks=(3, 2, 1, 0),
        latent_channels=LATENT_CHANNELS,
    )


def make_unet() -> UNet2DConditionModel:
    """Attention at 8 and 4 latents wide, and once more at full size in the last block, which must put the prompt's
    colours on the shapes of the control map. That last attention does nothing at first."""
    unet = UNet2DConditionModel(
        sample_size=32,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        mid_block_type="UNetMidBlock2D",
        block_out_channels=WIDTHS,
        layers_per_block=1,
        attention_head_dim=2,  # the number of heads, in diffusers
        cross_attention_dim=TEXT_WIDTH,
        norm_num_groups=16,
    )
    for attention in unet.up_blocks[-1].attentions:
        nn.init.zeros_(attention.proj_out.weight)
        nn.init.zeros_(attention.proj_out.bias)
    return unet


def make_controlnet(unet: UNet2DConditionModel) -> ControlNetModel:
    """As in the ControlNet paper (arXiv 2302.05543): the UNet's encoder copied, joined through zero convolutions.

    Its transformer blocks are left out, as in the small ControlNets for SDXL by the authors of diffusers
    (huggingface.co/diffusers/controlnet-canny-sdxl-1.0-small): the UNet has them, and eleven nets fit into 24 MB.

    The embedding of the control map has one stage per halving in the VAE: four entries for a factor of 8. It is not
    initialised with zeros, as in the paper, but keeps the variance of its input (arXiv 1502.01852). With PyTorch's
    initialisation, thin lines faded: after 550 steps such a net still gave the same output for every map (to 1e-5). The
    zero convolutions behind the embedding still make a new net do nothing.
    """
    controlnet = ControlNetModel(
        in_channels=LATENT_CHANNELS,
        down_block_types=("DownBlock2D",) * len(WIDTHS),
        mid_block_type="UNetMidBlock2D",
        block_out_channels=WIDTHS,
        layers_per_block=1,
        attention_head_dim=2,
        cross_attention_dim=TEXT_WIDTH,
        norm_num_groups=16,
        conditioning_embedding_out_channels=(16, 32, 64, 96),
    )
    encoder, own = unet.state_dict(), controlnet.state_dict()
    controlnet.load_state_dict({name: encoder[name] for name in own if name in encoder}, strict=False)
    embedding = controlnet.controlnet_cond_embedding
    for layer in (embedding.conv_in, *embedding.blocks, embedding.conv_out):
        nn.init.normal_(layer.weight, std=2 / math.sqrt(layer.weight[0].numel()))  # 2: SiLU's slope at 0 is one half
        nn.init.zeros_(layer.bias)
    with torch.no_grad():
        embedding.conv_out.weight /= 4  # about as strong as what it is added to
    return controlnet


def make_scheduler() -> DDIMScheduler:
    """v-prediction (arXiv 2202.00512). The end of the schedule is noisier than Stable Diffusion's: the last step has
    almost no signal, but not a signal-to-noise ratio of zero, from which several samplers cannot begin."""
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.02,
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
