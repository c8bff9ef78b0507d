"""Checkpoints in one file, as CompVis/stable-diffusion's classes name their tensors and CivitAI distributes them.

diffusers can only read such names. These are written from a bundle's folders, for tests of reading them.
"""

import json
import re
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

RESNET = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0",
    "conv2": "out_layers.3", "conv_shortcut": "skip_connection",
}  # fmt: skip
UNET_ENDS = {
    "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2", "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0", "conv_out": "out.2", "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}  # fmt: skip
VAE_PLACES = {
    "resnets.": "block.", "downsamplers.0": "downsample", "upsamplers.0": "upsample", "conv_norm_out": "norm_out",
    "conv_shortcut": "nin_shortcut",
}  # fmt: skip
OPEN_CLIP = {
    r"^text_model\.": "", r"^embeddings\.token_embedding": "token_embedding",
    r"^embeddings\.position_embedding\.weight": "positional_embedding", "final_layer_norm": "ln_final",
    r"^text_projection\.weight": "text_projection", r"^encoder\.layers": "transformer.resblocks",
    r"self_attn\.q_proj\.": "attn.in_proj_", "self_attn": "attn", "layer_norm": "ln_", "fc1": "c_fc", "fc2": "c_proj",
}  # fmt: skip
VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def single_file(bundle: Path, file: Path, *parts: str, **more: torch.Tensor) -> Path:
    """Write the models of a bundle's folder as one file: of all three parts, or of those named. `more` is added."""
    tensors: dict[str, torch.Tensor] = {}
    xl = (bundle / "text_encoder_2").exists()
    for part in parts or ("unet", "vae", "text_encoder", *(["text_encoder_2"] if xl else [])):
        (weights,) = (bundle / part).glob("*.safetensors")
        config = json.loads((bundle / part / "config.json").read_text())
        read = load_file(weights)
        if part == "text_encoder_2":
            tensors |= _open_clip(read)
        else:
            tensors |= {NAMED[part](name, config): _shaped(part, name, t) for name, t in read.items()}
    if xl:
        first = {name: name.replace("cond_stage_model.", "conditioner.embedders.0.") for name in tensors}
        tensors = {first[name]: tensor for name, tensor in tensors.items()}
    save_file(tensors | more, file)
    return file


def controlnet_file(folder: Path, file: Path, prefix: str = "control_model.") -> Path:
    """Write the ControlNet of a folder as lllyasviel/ControlNet's class names its tensors."""
    (weights,) = folder.glob("*.safetensors")
    config = json.loads((folder / "config.json").read_text())
    save_file({prefix + _controlnet(name, config): tensor for name, tensor in load_file(weights).items()}, file)
    return file


def with_names_of_novelai(file: Path) -> Path:
    """Rename the text encoder's tensors in a checkpoint as in NovelAI's and in merges with it."""
    ldm, novelai = "cond_stage_model.transformer.text_model.", "cond_stage_model.transformer."
    save_file({name.replace(ldm, novelai): tensor for name, tensor in load_file(file).items()}, file)
    return file


def _controlnet(name: str, config: dict) -> str:
    if found := re.fullmatch(r"controlnet_cond_embedding\.(conv_in|conv_out|blocks\.(\d+))\.(\w+)", name):
        number = {"conv_in": 0, "conv_out": 14}.get(found[1], 2 * int(found[2] or 0) + 2)
        return f"input_hint_block.{number}.{found[3]}"
    name = re.sub(r"^controlnet_down_blocks\.(\d+)\.", r"zero_convs.\1.0.", name)
    if name.startswith("controlnet_mid_block."):
        return name.replace("controlnet_mid_block.", "middle_block_out.0.")
    return name if name.startswith("zero_convs.") else _unet(name, config).removeprefix("model.diffusion_model.")


def _shaped(part: str, name: str, tensor: torch.Tensor) -> torch.Tensor:
    """The VAE's attention consists of convolutions there."""
    convolved = part == "vae" and re.search(r"attentions.*(to_q|to_k|to_v|to_out\.0)\.weight", name)
    return tensor[:, :, None, None].contiguous() if convolved else tensor.contiguous()


def _unet(name: str, config: dict) -> str:
    blocks, layers = len(config["block_out_channels"]), config["layers_per_block"]
    for ours, theirs in UNET_ENDS.items():
        if name.startswith(f"{ours}."):
            return "model.diffusion_model." + name.replace(ours, theirs, 1)
    if found := re.fullmatch(r"(down|up)_blocks\.(\d+)\.(\w+)\.(\d+)\.(.*)", name):
        way, block, kind, layer, rest = found[1], int(found[2]), found[3], int(found[4]), found[5]
        per_block = layers + 1
        if way == "down":
            number = 1 + block * per_block + (layers if kind == "downsamplers" else layer)
            place = {"resnets": "0", "attentions": "1", "downsamplers": "0"}[kind]
        else:
            number = block * per_block + (layers if kind == "upsamplers" else layer)
            attends = "CrossAttn" in config["up_block_types"][block]
            place = {"resnets": "0", "attentions": "1", "upsamplers": "2" if attends else "1"}[kind]
            assert block < blocks
        rest = rest.replace("conv", "op", 1) if kind == "downsamplers" else rest
        prefix = f"{'input' if way == 'down' else 'output'}_blocks.{number}.{place}."
    else:
        found = re.fullmatch(r"mid_block\.(resnets|attentions)\.(\d)\.(.*)", name)
        assert found, name
        kind, rest = found[1], found[3]
        prefix = f"middle_block.{1 if kind == 'attentions' else 2 * int(found[2])}."
    return "model.diffusion_model." + prefix + (_renamed(rest, RESNET) if kind == "resnets" else rest)


def _vae(name: str, config: dict) -> str:
    blocks = len(config["block_out_channels"])
    name = re.sub(r"down_blocks\.(\d+)\.", r"down.\1.", name)
    name = re.sub(r"up_blocks\.(\d+)\.", lambda found: f"up.{blocks - 1 - int(found[1])}.", name)
    name = re.sub(r"mid_block\.resnets\.(\d)", lambda found: f"mid.block_{int(found[1]) + 1}", name)
    if "mid_block.attentions.0." in name:
        before, rest = name.split("mid_block.attentions.0.")
        name = f"{before}mid.attn_1.{_renamed(rest, VAE_ATTENTION)}"
    for ours, theirs in VAE_PLACES.items():
        name = name.replace(ours, theirs)
    return f"first_stage_model.{name}"


def _text_encoder(name: str, config: dict) -> str:
    return f"cond_stage_model.transformer.text_model.{name.removeprefix('text_model.')}"


def _open_clip(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """As mlfoundations/open_clip's class names its tensors. It has queries, keys and values in one."""
    made = {}
    for name, tensor in tensors.items():
        if ".k_proj." in name or ".v_proj." in name:
            continue
        if ".q_proj." in name:
            tensor = torch.cat([tensors[name.replace("q_proj", f"{each}_proj")] for each in "qkv"])
        for ours, theirs in OPEN_CLIP.items():
            name = re.sub(ours, theirs, name)
        made[f"conditioner.embedders.1.model.{name}"] = tensor.T.contiguous() if name == "text_projection" else tensor
    return made | {"conditioner.embedders.1.model.logit_scale": torch.tensor(4.6)}


def _renamed(name: str, names: dict[str, str]) -> str:
    ours = next(ours for ours in names if name.startswith(f"{ours}."))
    return name.replace(ours, names[ours], 1)


NAMED = {"unet": _unet, "vae": _vae, "text_encoder": _text_encoder}
