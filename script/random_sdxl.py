"""Configurations of Stable Diffusion XL for script/random_bundle.py and the tests: the published ones, and small ones.

They are those of stabilityai/stable-diffusion-xl-base-1.0 and of the union ProMax (OzzyGT/controlnet-union-promax-
sdxl-1.0), whose sizes of files they give.
"""

from random_models import FULL, SMALL, Sizes

_ADDED = {"addition_embed_type": "text_time", "use_linear_projection": True}
_NOISE = {"scheduler": {"_class_name": "EulerDiscreteScheduler", "timestep_spacing": "leading"}}

FULL_XL: Sizes = FULL | {
    "unet": {
        **_ADDED,
        "sample_size": 128,
        "in_channels": 4,
        "out_channels": 4,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "block_out_channels": (320, 640, 1280),
        "layers_per_block": 2,
        "transformer_layers_per_block": (1, 2, 10),
        "attention_head_dim": (5, 10, 20),
        "cross_attention_dim": 2048,
        "norm_num_groups": 32,
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
    "union": {
        "conditioning_embedding_out_channels": (16, 32, 96, 256),
        "num_control_type": 8,
        "num_trans_channel": 320,
        "num_trans_head": 8,
        "num_proj_channel": 320,
    },
    "vae": FULL["vae"] | {"sample_size": 1024, "scaling_factor": 0.13025, "force_upcast": False},
    "text_encoder_2": {
        "hidden_size": 1280,
        "intermediate_size": 5120,
        "num_hidden_layers": 32,
        "num_attention_heads": 20,
        "projection_dim": 1280,
        "hidden_act": "gelu",
    },
    "ip_adapter": {"inner": 1280, "tokens": 16},
    **_NOISE,
}

_CLIP = SMALL["text_encoder"] | {"num_hidden_layers": 3}
SMALL_XL: Sizes = SMALL | {
    "unet": SMALL["unet"]
    | {
        **_ADDED,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 2),
        "attention_head_dim": (2, 4),
        "cross_attention_dim": 40,
        "addition_time_embed_dim": 4,
        "projection_class_embeddings_input_dim": 12 + 6 * 4,
    },
    "union": {
        "conditioning_embedding_out_channels": (4, 4, 8, 8),
        "num_control_type": 8,
        "num_trans_channel": 8,
        "num_trans_head": 2,
        "num_proj_channel": 8,
    },
    "vae": SMALL["vae"] | {"scaling_factor": 0.13025, "force_upcast": False},
    "text_encoder": _CLIP,
    "text_encoder_2": _CLIP | {"hidden_size": 24, "projection_dim": 12, "hidden_act": "gelu"},
    **_NOISE,
}
