"""A small random Stable Diffusion with ControlNets that really act: for tests of wiring, not of pictures."""

from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import torch
from annotator_weights import make_tiny
from diffusers import AutoencoderKL, ControlNetModel, UNet2DConditionModel
from random_bundle import write_adapter, write_model
from random_loras import ATTENTION, random_layers, save_kohya
from random_models import SMALL, build
from torch import nn

from controlnet.families.sd15 import FAMILY
from controlnet.models.controlnets import ControlNets
from controlnet.settings import Settings
from controlnet.weights.entries import ConditionerEntry
from controlnet.weights.manifest import WEIGHTS, Manifest
from tinyworld import models
from tinyworld.export import export

CAPTIONS = ["a red ball beside a blue box in a green room", "a person in a white shirt and black trousers on grass"]


def unet() -> UNet2DConditionModel:
    return UNet2DConditionModel(**SMALL["unet"] | {"cross_attention_dim": models.TEXT_WIDTH})


def controlnet(base: UNet2DConditionModel, **config) -> ControlNetModel:
    """Made from the UNet, with zero convolutions that are not zero: a zero output would prove nothing."""
    net = ControlNetModel.from_unet(base, **SMALL["controlnet"])
    net.register_to_config(**config)
    for block in (*net.controlnet_down_blocks, net.controlnet_mid_block):
        nn.init.normal_(block.weight, std=0.3)
    embedding = net.controlnet_cond_embedding
    for layer in (embedding.conv_in, *embedding.blocks, embedding.conv_out):
        nn.init.kaiming_normal_(layer.weight)  # otherwise the map's share of the residuals is lost in rounding
        nn.init.zeros_(layer.bias)
    return net.eval()


def vae() -> AutoencoderKL:
    return AutoencoderKL(**SMALL["vae"]).eval()


@cache
def parts() -> dict[str, nn.Module]:
    """unet, vae, text_encoder, tokenizer, scheduler, canny, scribble and tile (ControlNets), shuffle (a pooled one)."""
    torch.manual_seed(0)
    tokenizer = models.make_tokenizer(CAPTIONS)
    base = unet().eval()
    return {
        "unet": base,
        "vae": vae(),
        "tokenizer": tokenizer,
        "text_encoder": models.make_text_encoder(tokenizer).eval(),
        "scheduler": models.make_scheduler(),
        "canny": controlnet(base),
        "scribble": controlnet(base),
        "shuffle": controlnet(base, global_pool_conditions=True),
        "tile": controlnet(base),
    }


class SmallBundle:
    """What Generator needs of a bundle, with the small parts."""

    graphs = True  # if there is a GPU

    def __init__(self, settings: Settings = Settings()) -> None:
        self.settings = settings

    family = FAMILY
    conditioners: ClassVar = {name: ConditionerEntry({}, name) for name in ("canny", "scribble", "shuffle", "tile")}

    def base(self) -> dict:
        return {name: parts()[name] for name in ("tokenizer", "text_encoder", "unet", "vae", "scheduler")}

    def encode(self, *given: Any) -> Any:
        return self.family.encode(*given)

    def controlnets(self) -> ControlNets:
        return ControlNets({name: parts()[name] for name in self.conditioners}, torch.float32)

    def references(self, unet: UNet2DConditionModel) -> None:
        return None

    def fast_lora(self, unet: UNet2DConditionModel) -> None:
        return None


def write_bundle(root: Path, name: str = "small") -> Path:
    """The small parts as a bundle on disk, `root`/<name> with its manifest next to it; returns the manifest's path."""
    small = parts()
    modules = {key: small[key] for key in ("vae", "unet", "text_encoder", "tokenizer")}
    tiny = WEIGHTS / "tiny.toml"
    nets = {key: small.get(key, small["canny"]) for key in Manifest.read(tiny).conditioners}
    export(_copies(modules) | {"factor": 0.2, "controlnets": _copies(nets)}, root / name)
    folder = root / name / "annotator" / "tiny"
    folder.mkdir(parents=True)
    make_tiny(folder)
    lora = root / name / "lora" / "fast" / "pytorch_lora_weights.safetensors"
    lora.parent.mkdir(parents=True)
    save_kohya(lora, {"unet": random_layers(small["unet"], ATTENTION)}, alpha=4.0)
    write_reference(root / name, small["unet"])
    manifest = root / f"{name}.toml"
    manifest.write_text(tiny.read_text(encoding="utf-8").replace('name = "tiny"', f'name = "{name}"'), encoding="utf-8")
    return manifest


def write_reference(folder: Path, of: UNet2DConditionModel) -> None:
    """The parts that reference pictures need, random, for a UNet."""
    manifest, encoder = Manifest.read(WEIGHTS / "tiny.toml"), build("image_encoder", SMALL)
    for part in ("image_encoder", "ip_adapter"):
        (folder / part).mkdir()
    write_model(manifest.part("image_encoder"), folder / "image_encoder", SMALL, 0)
    write_adapter(folder / manifest.part("ip_adapter").paths[0], of, encoder.config, 0)


def _copies(modules: dict) -> dict:
    import copy

    return {key: copy.deepcopy(module) for key, module in modules.items()}
