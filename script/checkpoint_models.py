"""The models in a file of tensors, as diffusers' converters read them, strictly and in half precision.

from_single_file, which uses the same converters, drops whatever it does not know without a word.
"""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from checkpoint_kinds import FIRST_ENCODER, SECOND_ENCODER, CheckpointError, Contents
from diffusers import AutoencoderKL, ControlNetModel, UNet2DConditionModel
from diffusers.loaders.single_file_utils import (
    LDM_CONTROLNET_KEY,
    LDM_UNET_KEY,
    LDM_VAE_KEYS,
    convert_controlnet_checkpoint,
    convert_ldm_clip_checkpoint,
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
    convert_open_clip_checkpoint,
)
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, PreTrainedModel

from controlnet.models.loading import is_outdated, open_file, weights_file

Tensors = dict[str, torch.Tensor]
PREFIX = "text_model."
"""How the names of a text encoder's tensors begin, in files older than transformers 5.6. NovelAI's lack it."""


def _clip(tensors: Tensors, config: dict[str, Any]) -> Tensors:
    # A merge may have both kinds of names. Stable Diffusion's own are those that count.
    read = sorted(convert_ldm_clip_checkpoint(tensors).items(), key=lambda item: item[0].startswith(PREFIX))
    return {name.removeprefix(PREFIX): tensor for name, tensor in read}


def _open_clip(tensors: Tensors, config: dict[str, Any]) -> Tensors:
    like = SimpleNamespace(config=CLIPTextConfig(**config))
    return convert_open_clip_checkpoint(like, tensors, prefix=f"{SECOND_ENCODER}model.")


@dataclass(frozen=True)
class ModelKind:
    """A model that a file may have."""

    model_class: Any
    convert: Callable[[Tensors, dict[str, Any]], Mapping[str, torch.Tensor | None]]
    """diffusers' converter: from the file's tensors and the model's configuration to the model's tensors."""
    prefixes: tuple[str, ...]
    """How the names of its tensors begin in a file that has other models too."""
    purpose: str
    file: str = "diffusion_pytorch_model.fp16.safetensors"
    copies: bool = False
    """Whether the converter gives copies, each of one tensor of the file or of a part of it."""

    def shapes(self, config: dict[str, Any]) -> dict[str, torch.Size]:
        """The tensors that the model has with this configuration."""
        with torch.device("meta"):
            if issubclass(self.model_class, PreTrainedModel):
                model = self.model_class(CLIPTextConfig(**config))
            else:
                model = self.model_class.from_config(config)
        return {name: tensor.shape for name, tensor in model.state_dict().items() if not is_outdated(name)}


MODELS = {
    "unet": ModelKind(UNet2DConditionModel, convert_ldm_unet_checkpoint, (LDM_UNET_KEY,), "Denoising network"),
    "vae": ModelKind(AutoencoderKL, convert_ldm_vae_checkpoint, tuple(LDM_VAE_KEYS), "Turns latents into pixels"),
    "text_encoder": ModelKind(
        CLIPTextModel,
        _clip,
        ("cond_stage_model.", FIRST_ENCODER),
        "Turns the prompt's tokens into embeddings",
        "model.fp16.safetensors",
    ),
    "text_encoder_2": ModelKind(
        CLIPTextModelWithProjection,
        _open_clip,
        (SECOND_ENCODER,),
        "Turns them into further embeddings",
        "model.fp16.safetensors",
        copies=True,
    ),
    "controlnet": ModelKind(ControlNetModel, convert_controlnet_checkpoint, (LDM_CONTROLNET_KEY,), "ControlNet"),
}
"""By part; all ControlNets are one kind."""


@dataclass(frozen=True)
class Model:
    """A model that was found in a file."""

    tensors: Tensors
    """Under the names that diffusers or transformers give them. Numbers are in half precision."""
    taken: set[str]
    """The names that they have in the file."""


def kind_of_part(part: str) -> ModelKind:
    """The kind of model of a part: "unet", "vae", "text_encoder" or "controlnet/canny" and the like."""
    return MODELS[part.partition("/")[0]]


def read_model(file: Path, contents: Contents, part: str, config: dict[str, Any], base: str) -> Model:
    """The model of a part, whose configuration is that of the bundle `base`.

    Raises CheckpointError for a model that is not whole, has other tensors than that one, or does not fit into half
    precision.
    """
    kind = kind_of_part(part)
    expected = kind.shapes(config)
    if expected.keys() <= contents.tensors.keys():  # the file is in the layout of diffusers
        read: Mapping[str, torch.Tensor | None] = contents.tensors
    else:
        try:
            read = kind.convert(dict(contents.tensors), config)
        except Exception as error:  # a converter raises whatever an odd name or shape leads to
            raise CheckpointError(
                f"{file.name} does not fit the {part} of {base}: diffusers cannot read it."
            ) from error
    tensors = {name: tensor for name in expected if (tensor := read.get(name)) is not None}
    places = {tensor.data_ptr() for tensor in tensors.values()}
    taken = {name for name, tensor in contents.tensors.items() if tensor.data_ptr() in places}
    of_model = contents.begins(*kind.prefixes) or contents.tensors
    if kind.copies:
        one_by_one = ((name, kind.convert({name: contents.tensors[name]}, config)) for name in of_model)
        taken |= {name for name, made in one_by_one if made.keys() & expected.keys()}
    strange = [name for name in of_model if name not in taken and not contents.needless(name)]
    _check(file, part, base, expected, tensors, [] if issubclass(kind.model_class, PreTrainedModel) else strange)
    half = {name: tensor.to(torch.float16).contiguous() for name, tensor in tensors.items()}
    if wrong := [name for name, tensor in half.items() if not tensor.isfinite().all()]:
        raise CheckpointError(
            f"{file.name} has numbers in its {part} that are none or too large for half precision: {wrong[0]}."
        )
    return Model(half, taken)


def _check(
    file: Path, part: str, base: str, expected: dict[str, torch.Size], tensors: Tensors, strange: Sequence[str]
) -> None:
    """Raise CheckpointError unless a model has the expected tensors. `strange` are those that it has besides."""
    if missing := [name for name in expected if name not in tensors]:
        raise CheckpointError(
            f"{file.name} lacks {len(missing)} of the {len(expected)} tensors of the {part} of {base}, such as "
            f"{missing[0]}: it is not whole, or of another architecture, such as a distilled one."
        )
    if strange:
        raise CheckpointError(
            f"{file.name} has {len(strange)} tensors in its {part} that {base} does not have, such as {strange[0]}: it "
            "is of another architecture."
        )
    if reshaped := [name for name, shape in expected.items() if tensors[name].shape != shape]:
        got, wanted = (tuple(shape) for shape in (tensors[reshaped[0]].shape, expected[reshaped[0]]))
        raise CheckpointError(
            f"{file.name} does not fit the {part} of {base}: {reshaped[0]} has the shape {got}, expected {wanted}."
        )


def same_model(tensors: Tensors, folder: Path) -> bool:
    """Whether a folder holds the same model, if its numbers are brought to half precision."""
    stored = {name.removeprefix(PREFIX): tensor for name, tensor in open_file(weights_file(folder)).items()}
    short = ((name.removeprefix(PREFIX), tensor) for name, tensor in tensors.items())
    return all(name in stored and torch.equal(t, stored[name].to(t.dtype)) for name, t in short)


def write_model(part: str, tensors: Tensors, config: Path, folder: Path, changes: Mapping[str, Any]) -> None:
    """Write a model's tensors and a configuration with some changes into a new folder. Raises what save_file does."""
    folder.mkdir(parents=True)
    save_file(tensors, folder / kind_of_part(part).file, metadata={"format": "pt"})
    if changes:
        text = json.dumps(json.loads(config.read_text(encoding="utf-8")) | changes, indent=2)
        (folder / config.name).write_text(f"{text}\n", encoding="utf-8")
    else:
        shutil.copyfile(config, folder / config.name)
