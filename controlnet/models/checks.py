"""Whether the configurations of a bundle's parts go together. No tensor shows it."""

from collections.abc import Mapping
from typing import Any

import torch

from controlnet.models.loading import WeightsMismatch

SHARED_WITH_UNET = (
    "in_channels",
    "block_out_channels",
    "layers_per_block",
    "cross_attention_dim",
    "addition_embed_type",
)
"""Settings that a ControlNet must have as the UNet has them, because it sees the same inputs and adds to its layers."""
Config = Mapping[str, Any]


def check_net(part: str, config: Config, unet: Config, pooled: bool, kind: int | None) -> None:
    """Raise WeightsMismatch if a ControlNet does not go with the base's UNet and its conditioner.

    `pooled`: whether the conditioner's net averages its residuals over the picture. `kind`: the type that the manifest
    names for it.
    """
    got = config.get("global_pool_conditions", False)
    if got is not pooled:
        raise WeightsMismatch(
            f"{part}: its config.json has global_pool_conditions {got}, expected {pooled}. It is the file of"
            " another ControlNet: check the part's repo in the manifest, then fetch it again."
        )
    types = config["num_control_type"] if config["_class_name"] == "ControlNetUnionModel" else None
    if (types is None) != (kind is None):
        raise WeightsMismatch(
            f"{part}: it is a {config['_class_name']}, and the manifest names {'a' if types is None else 'no'} type"
            " for its conditioner. A union needs one, and no other ControlNet has any."
        )
    if types is not None and kind is not None and kind >= types:
        raise WeightsMismatch(f"{part}: it has {types} types, and the manifest names type {kind}.")
    if (got := config.get("conditioning_channels", 3)) != 3:
        raise WeightsMismatch(
            f"{part}: its config.json has conditioning_channels {got}, expected 3. It is a ControlNet for another"
            " kind of control maps, which cannot be used here."
        )
    if wrong := [name for name in SHARED_WITH_UNET if config.get(name) != unet.get(name)]:
        raise WeightsMismatch(
            f"{part}: its config.json has {wrong[0]} {config.get(wrong[0])}, and the UNet's has"
            f" {unet.get(wrong[0])}. It is a ControlNet for another base model."
        )


def check_vae(config: Config, dtype: torch.dtype) -> None:
    """Raise WeightsMismatch if pipelines would not run a VAE in `dtype`.

    They would move it to float32 and back for each picture, and a cancelled request could leave it there.
    """
    if dtype == torch.float16 and config.get("force_upcast", True):
        raise WeightsMismatch(
            "vae: its config.json has force_upcast true or nothing, so it gives black pictures in float16. Use a VAE"
            " that was made for float16, such as madebyollin/sdxl-vae-fp16-fix, or CONTROLNET_DTYPE=fp32."
        )
