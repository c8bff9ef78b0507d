"""script/make-random-bundle: every file that a bundle's manifest names, filled with seeded random numbers.

It is for measurements and tests without the trained weights. Sizes, classes, file formats and names of tensors are
those of the published files. Its pictures are noise.
"""

import argparse
import json
import sys
import time
import zlib
from collections.abc import Callable, Collection, Iterable
from itertools import islice, product
from pathlib import Path
from typing import Any

import torch
from annotator_weights import make_part
from fewer_conditioners import parts_of_others, without
from published_configs import BEGIN, END, PATHS, config_text
from random_loras import LCM, random_layers, save_kohya
from random_models import FULL, SMALL, Sizes, build, random_numbers, random_tensors
from random_sdxl import FULL_XL, SMALL_XL
from safetensors.torch import load_file, save_file
from tokenizers.pre_tokenizers import ByteLevel
from torch import nn
from transformers import CLIPTokenizer

from controlnet.models.reference_file import of_basic, of_layers, of_plus
from controlnet.weights.manifest import WEIGHTS, Manifest, Part

SIZES = {"sd15": (FULL, SMALL), "sdxl": (FULL_XL, SMALL_XL)}
"""The published and the small sizes of each family."""


def write_bundle(
    name: str,
    root: Path,
    small: bool = False,
    seed: int = 0,
    say: Callable[[str], None] = lambda line: None,
    conditioners: Collection[str] = (),
) -> Path:
    """Write the bundle `name` into root/<name>, and then its manifest next to it. Returns the manifest's path.

    A bundle that it extends is written too, without the parts that are replaced. Only one part is in memory at a time.
    The parts of an annotator that must be chosen are written if the environment chooses it (Manifest.options). `say`
    gets a line per part: name, size, seconds. `conditioners` are those that the written bundle has; if empty, all.
    Raises FileExistsError if the folder exists, because it may hold real weights, and ValueError for an unknown
    conditioner.
    """
    source = WEIGHTS / f"{name}.toml"
    manifest = Manifest.read(source)
    left_out = parts_of_others(manifest, conditioners or manifest.conditioners)
    others = manifest.conditioners.keys() - (conditioners or manifest.conditioners)
    for layer in manifest.manifests:
        folder = root / layer.name
        if folder.exists() or root.resolve() == WEIGHTS:
            raise FileExistsError(f"{folder} exists or is for real weights: name another folder.")
        parts = [part for part in layer.needed_parts if part.name not in left_out]
        _write_parts(parts, folder, SIZES[manifest.family][small], seed, say)
        text = source.with_name(f"{layer.name}.toml").read_text(encoding="utf-8")
        (root / f"{layer.name}.toml").write_text(without(text, left_out, others), encoding="utf-8")
    return root / source.name


def _write_parts(parts: Iterable[Part], folder: Path, sizes: Sizes, seed: int, say: Callable[[str], None]) -> None:
    for part in parts:
        started = time.perf_counter()
        write_part(part, folder, sizes, zlib.crc32(f"{seed} {part.name}".encode()))
        size = sum((folder / path).stat().st_size for path in part.paths)
        say(f"{part.name}: {size / 1e6:.1f} MB, {time.perf_counter() - started:.1f} s")


def write_part(part: Part, root: Path, sizes: Sizes, seed: int) -> None:
    """Write the files that a manifest names for a part, and no others, to root/<part>."""
    folder = root / part.name
    if part.name.startswith("annotator/"):
        make_part(part.name, root, full=sizes in (FULL, FULL_XL), seed=seed)
        if "pytorch_model.bin" in part.files:
            torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    else:
        folder.mkdir(parents=True)
        if part.name.startswith("tokenizer"):
            write_tokenizer(folder, sizes)
            if "tokenizer.json" in part.files:
                CLIPTokenizer.from_pretrained(folder, local_files_only=True).save_pretrained(folder)
        elif part.name in ("scheduler", "feature_extractor"):
            write_configs(part.paths, root, sizes)
        elif part.name == "ip_adapter":
            encoder: Any = build("image_encoder", sizes)
            latents = (1, sizes[part.name]["tokens"], sizes[part.name]["inner"])
            write_adapter(folder / part.files[0], build("unet", sizes), encoder.config, seed, latents)
        elif part.name.startswith("lora/"):
            write_lora(folder / part.files[0], sizes, seed)
        else:
            write_model(part, folder, sizes, seed)
            write_configs(part.paths, root, sizes)
    for file in list(folder.iterdir()):
        if file.name not in part.files:
            file.unlink()
    if missing := [file for file in part.files if not (folder / file).exists()]:
        raise NotImplementedError(f"{part.name}: random_bundle.py cannot make {', '.join(missing)}.")


def write_configs(paths: Iterable[str], root: Path, sizes: Sizes) -> None:
    """Write those of the files whose published content is known, in place of what diffusers and transformers wrote."""
    for path in paths:
        if path in PATHS:
            (root / path).write_text(config_text(path, sizes), encoding="utf-8")


def write_model(part: Part, folder: Path, sizes: Sizes, seed: int) -> None:
    """Write a diffusers or transformers model: config.json, and the tensors in the format of the file's suffix."""
    model: Any = build(part.name, sizes)
    if hasattr(model, "save_config"):
        model.save_config(folder)
    else:
        model.config.architectures = [type(model).__name__]
        model.config.save_pretrained(folder)
    (file,) = (folder / name for name in part.files if name != "config.json")
    tensors = random_tensors(model, seed, torch.float16 if ".fp16." in file.name else torch.float32)
    published = {published_name(part.name, name): tensor for name, tensor in tensors.items()}
    published |= position_ids(part.name, model)
    if file.suffix == ".safetensors":
        save_file(published, file, metadata={"format": "pt"})
    else:
        torch.save(published, file)


def write_lora(file: Path, sizes: Sizes, seed: int) -> None:
    """Write a LoRA in half precision, with the layers, ranks and names of the published LCM-LoRA."""
    rank = 64 if sizes in (FULL, FULL_XL) else 4
    layers = {
        name: (down.half(), up.half())
        for name, (down, up) in random_layers(build("unet", sizes), LCM, seed, rank, size=0.05).items()
    }
    save_kohya(file, {"unet": layers}, alpha=float(rank))


def write_adapter(file: Path, unet: Any, encoder: Any, seed: int, latents: tuple[int, ...] = ()) -> None:
    """Write an IP-Adapter in half precision, with the names of tensors of the published files.

    It is for a UNet and the configuration of an image encoder. With `latents`, (1, tokens, width), it is a "plus" one.
    """
    width, shapes = unet.config.cross_attention_dim, of_layers(unet)
    own = of_plus(latents, width, encoder.hidden_size) if latents else of_basic(width, encoder.projection_dim)
    save_file(random_numbers(shapes | own, seed, torch.float16), file)


def published_name(part: str, name: str) -> str:
    """A tensor's name in the published file: in CLIP's models an older one than transformers uses now."""
    if part == "text_encoder":
        return f"text_model.{name}"
    if part == "safety_checker" and name.startswith("vision_model."):
        return f"vision_model.{name}"
    return name


def position_ids(part: str, model: nn.Module) -> dict[str, torch.Tensor]:
    """A tensor that the published files of CLIP models contain. transformers now computes it instead."""
    of_vision = {"image_encoder": "vision_model", "safety_checker": "vision_model.vision_model"}
    prefix = ({"text_encoder": "text_model"} | of_vision).get(part)
    if prefix is None:
        return {}
    length = next(tensor for name, tensor in model.state_dict().items() if "position_embedding" in name).shape[0]
    return {f"{prefix}.embeddings.position_ids": torch.arange(length)[None]}


def write_tokenizer(folder: Path, sizes: Sizes) -> None:
    """Write a made-up tokenizer in CLIP's byte pair encoding: single bytes, then pairs and triples of letters.

    The files are the published ones (transformers itself would write a single tokenizer.json).
    """
    alphabet = sorted(ByteLevel.alphabet())
    symbols = [*alphabet, *(f"{byte}</w>" for byte in alphabet)]
    letters = "etaoinshrdlcumwfgypbvkjxqz0123456789"
    ends = [*letters, *(f"{letter}</w>" for letter in letters)]
    pairs = product(letters, ends)
    triples = product(("".join(pair) for pair in product(letters, letters)), ends)
    merges = list(
        islice(
            (merge for group in (pairs, triples) for merge in group), sizes["tokenizer"]["tokens"] - len(symbols) - 2
        )
    )
    words = [*symbols, *("".join(pair) for pair in merges), BEGIN, END]
    vocabulary = {word: i for i, word in enumerate(words)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (folder / "merges.txt").write_text("\n".join(lines), encoding="utf-8")
    for path in PATHS:
        if path.startswith("tokenizer/"):
            text = config_text(path, sizes)
            if folder.name == "tokenizer_2":
                text = text.replace(f'"pad_token": "{END}"', '"pad_token": "!"')
            (folder / Path(path).name).write_text(text, encoding="utf-8")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="script/make-random-bundle", description=__doc__)
    parser.add_argument("bundle", help="a manifest in weights/, without its ending")
    parser.add_argument("folder", metavar="DIR", type=Path, help="where <bundle>/ and <bundle>.toml are written")
    parser.add_argument("--small", action="store_true", help="small configurations, written in seconds")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--conditioners", nargs="+", default=[], metavar="NAME", help="only these (default: all)")
    parser.add_argument("--called-from", type=Path, default=Path(), help=argparse.SUPPRESS)
    options = parser.parse_args()
    root = options.called_from / options.folder
    root.mkdir(parents=True, exist_ok=True)
    try:
        seed, chosen = options.seed, options.conditioners
        print(write_bundle(options.bundle, root, options.small, seed, lambda line: print(line, flush=True), chosen))
    except (FileExistsError, ValueError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
