"""The published config files of Stable Diffusion 1.5, for script/random_bundle.py.

With the published sizes each is the published file, byte for byte: tests compare it with the hash in
weights/sd15.published. So loading meets the published forms, some of which are older than what today's diffusers and
transformers write.
"""

import json
from typing import Any

from random_models import Sizes

BEGIN, END = "<|startoftext|>", "<|endoftext|>"
_TOKEN = {"lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
_TYPE = {"__type": "AddedToken"}

_CONFIGS: dict[str, dict[str, Any]] = {
    "unet/config.json": {
        "_class_name": "UNet2DConditionModel",
        "_diffusers_version": "0.6.0",
        "act_fn": "silu",
        "attention_head_dim": 8,
        "block_out_channels": [320, 640, 1280, 1280],
        "center_input_sample": False,
        "cross_attention_dim": 768,
        "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
        "downsample_padding": 1,
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "in_channels": 4,
        "layers_per_block": 2,
        "mid_block_scale_factor": 1,
        "norm_eps": 1e-05,
        "norm_num_groups": 32,
        "out_channels": 4,
        "sample_size": 64,
        "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
    },
    "vae/config.json": {
        "_class_name": "AutoencoderKL",
        "_diffusers_version": "0.6.0",
        "act_fn": "silu",
        "block_out_channels": [128, 256, 512, 512],
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "in_channels": 3,
        "latent_channels": 4,
        "layers_per_block": 2,
        "norm_num_groups": 32,
        "out_channels": 3,
        "sample_size": 512,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
    },
    "text_encoder/config.json": {
        "_name_or_path": "openai/clip-vit-large-patch14",
        "architectures": ["CLIPTextModel"],
        "attention_dropout": 0.0,
        "bos_token_id": 0,
        "dropout": 0.0,
        "eos_token_id": 2,
        "hidden_act": "quick_gelu",
        "hidden_size": 768,
        "initializer_factor": 1.0,
        "initializer_range": 0.02,
        "intermediate_size": 3072,
        "layer_norm_eps": 1e-05,
        "max_position_embeddings": 77,
        "model_type": "clip_text_model",
        "num_attention_heads": 12,
        "num_hidden_layers": 12,
        "pad_token_id": 1,
        "projection_dim": 768,
        "torch_dtype": "float32",
        "transformers_version": "4.22.0.dev0",
        "vocab_size": 49408,
    },
    "tokenizer/special_tokens_map.json": {
        "bos_token": {"content": BEGIN} | _TOKEN,
        "eos_token": {"content": END} | _TOKEN,
        "pad_token": END,
        "unk_token": {"content": END} | _TOKEN,
    },
    "tokenizer/tokenizer_config.json": {
        "add_prefix_space": False,
        "bos_token": _TYPE | {"content": BEGIN} | _TOKEN,
        "do_lower_case": True,
        "eos_token": _TYPE | {"content": END} | _TOKEN,
        "errors": "replace",
        "model_max_length": 77,
        "name_or_path": "openai/clip-vit-large-patch14",
        "pad_token": END,
        "special_tokens_map_file": "./special_tokens_map.json",
        "tokenizer_class": "CLIPTokenizer",
        "unk_token": _TYPE | {"content": END} | _TOKEN,
    },
    "scheduler/scheduler_config.json": {
        "_class_name": "PNDMScheduler",
        "_diffusers_version": "0.6.0",
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "num_train_timesteps": 1000,
        "set_alpha_to_one": False,
        "skip_prk_steps": True,
        "steps_offset": 1,
        "trained_betas": None,
        "clip_sample": False,
    },
    "feature_extractor/preprocessor_config.json": {
        "crop_size": 224,
        "do_center_crop": True,
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_resize": True,
        "feature_extractor_type": "CLIPFeatureExtractor",
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "resample": 3,
        "size": 224,
    },
}
PATHS = tuple(_CONFIGS)
"""The files, by part and name."""


def config_text(path: str, sizes: Sizes) -> str:
    """The content of one of PATHS with these sizes in place of the published ones."""
    config = _CONFIGS[path]
    part = path.partition("/")[0]
    tokens, length = sizes["tokenizer"]["tokens"], sizes["tokenizer"]["length"]
    side = sizes["safety_checker"]["vision_config"]["image_size"]
    changes: dict[str, dict[str, Any]] = {
        "unet": sizes["unet"],
        "scheduler": sizes.get("scheduler", {}),
        "vae": sizes["vae"],
        "text_encoder": sizes["text_encoder"] | {"vocab_size": tokens, "max_position_embeddings": length},
        "feature_extractor": {"crop_size": side, "size": side},
    }
    if path == "tokenizer/tokenizer_config.json":
        config = config | {"model_max_length": length}
    return json.dumps(config | changes.get(part, {}), indent=2) + "\n"
