"""Writes trained modules as a weights bundle: fp16 safetensors in the layout of diffusers, like a real bundle."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from tinyworld import models
from tinyworld.reference import as_file

EVALUATOR = Path(__file__).resolve().parent / "evaluator"
"""Folder of the network that scores. It belongs to the evaluation, not to the bundle."""


def export(trained: dict, folder: Path, evaluator_folder: Path = EVALUATOR) -> None:
    """Write vae, unet, text_encoder, tokenizer, scheduler, controlnet/*, annotator/tiny, image_encoder and ip_adapter
    into `folder`.

    Parts that are not in `trained` are left unchanged. The evaluation network goes into `evaluator_folder`.
    """
    if "evaluator" in trained:
        _save(trained["evaluator"], evaluator_folder)
        _tidy(evaluator_folder / "config.json")
    if "annotator" in trained:
        _save(trained["annotator"], folder / "annotator" / "tiny")
        _tidy(folder / "annotator" / "tiny" / "config.json")
    for name, controlnet in trained.get("controlnets", {}).items():
        _save(controlnet, folder / "controlnet" / name)
        _tidy(folder / "controlnet" / name / "config.json")
    if "ip_adapter" in trained:
        _save(trained["image_encoder"], folder / "image_encoder", variant=None)
        (folder / "ip_adapter").mkdir(exist_ok=True)
        halves = {name: tensor.half() for name, tensor in as_file(trained["ip_adapter"]).items()}
        save_file(halves, folder / "ip_adapter" / "ip_adapter.safetensors")
    if "vae" not in trained:
        return
    trained["vae"].register_to_config(scaling_factor=trained["factor"])
    for name in ("vae", "unet", "text_encoder"):
        _save(trained[name], folder / name)
    trained["tokenizer"].save_pretrained(folder / "tokenizer")
    models.make_scheduler().save_pretrained(folder / "scheduler")
    for file in folder.rglob("*config.json"):
        _tidy(file)


def _save(module: nn.Module, folder: Path, variant: str | None = "fp16") -> None:
    half = module.to("cpu").to(torch.float16)
    half.save_pretrained(folder, variant=variant, safe_serialization=True)


def _tidy(file: Path) -> None:
    """Remove paths of the machine that trained it, and write the JSON in one form."""
    config = json.loads(file.read_text(encoding="utf-8"))
    for key in ("_name_or_path", "name_or_path"):
        config.pop(key, None)
    if config.get("_class_name") == "AutoencoderTiny":
        del config["block_out_channels"]  # diffusers writes it, and warns when it reads it
    file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
