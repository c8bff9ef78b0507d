"""What a LoRA file says of itself, and the words for one that is none.

diffusers checks neither the base model that a LoRA was made for nor its kind. It drops what it does not know and logs a
warning, or fails with a shape that says nothing to the person who sent the file. What it can read, its own converter
decides (controlnet/models/lora_reader.py). The lists here only name what it cannot.
"""

import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from controlnet.transient import Transient

SEND = "Send a LoRA as kohya's scripts or diffusers write it."
_KINDS: tuple[tuple[str, str], ...] = (
    (
        r"^bundle_emb\.",
        "one with an embedding in the same file (bundle_emb), which would not act. Save it without the embedding.",
    ),
    (
        r"\bbase_model\.model\.",
        "peft's adapter_model.safetensors, whose alpha is in another file. Save both in one file with diffusers' "
        "save_lora_weights(…, unet_lora_adapter_metadata=…).",
    ),
    (r"\bhada_w|\.hada_", f"a LoHa, another kind of adapter. {SEND}"),
    (r"lokr_w", f"a LoKr, another kind of adapter. {SEND}"),
    (r"dora_scale", f"a DoRA, whose magnitudes diffusers would drop. {SEND}"),
    (r"oft_blocks|oft_diag|oft_R", f"an OFT, another kind of adapter. {SEND}"),
    (r"\.lora_mid\.", f"a LoCon with CP decomposition, another kind of adapter. {SEND}"),
    (r"ip_adapter\.|image_proj\.", f"an IP-Adapter. {SEND}"),
    (r"\blora_controlnet|control_model\.|controlnet_", f"a ControlNet. {SEND}"),
    (r"string_to_param|emb_params|clip_[lg]$", f"an embedding (textual inversion). {SEND}"),
    (r"^model\.diffusion_model\.(?!.*lora)|^first_stage_model\.|^cond_stage_model\.", f"a whole checkpoint. {SEND}"),
)
"""Kinds of files that are no LoRA, by a part of the name of a tensor that cannot be read. The first counts."""

_FAMILIES: tuple[tuple[str, str], ...] = (
    (r"double_blocks|single_blocks|single_transformer_blocks|lora_transformer_", "FLUX or a model of its kind"),
    (r"^transformer\.|joint_blocks|\btransformer_blocks_\d+_attn_add", "Stable Diffusion 3 or another transformer"),
    (r"^lora_te2_|^text_encoder_2\.", "Stable Diffusion XL"),
)
"""Model families that a LoRA may be for, by a part of a tensor's name."""
_WIDTHS = {768: "Stable Diffusion 1", 1024: "Stable Diffusion 2", 2048: "Stable Diffusion XL"}
"""Model families by the width of their prompts' embeddings."""
_ARCHITECTURES = (
    ("flux", "FLUX or a model of its kind"),
    ("stable-diffusion-3", "Stable Diffusion 3 or another transformer"),
    ("sd3", "Stable Diffusion 3 or another transformer"),
    ("sdxl", "Stable Diffusion XL"),
    ("stable-diffusion-xl", "Stable Diffusion XL"),
    ("stable-diffusion-v2", "Stable Diffusion 2"),
    ("sd_v2", "Stable Diffusion 2"),
)
"""Families by the beginning of what kohya's scripts and others write into a file's metadata."""
_METADATA = ("modelspec.architecture", "ss_base_model_version")
MOST_BYTES = 500 * 2**20
"""Of a file. The largest in use for Stable Diffusion 1.5 have 270 MB."""
MOST_HEADER = 8 * 2**20
"""Bytes of a file's header: names, and what trainers write into the metadata. Parsing takes up to 2 s then."""
MOST_TENSORS = 10_000
"""Of a file. LoRAs of every layer of Stable Diffusion XL have 5,000."""
LONGEST_NAME = 500
"""Characters of a tensor's name."""
FLOATS = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")
"""Types of numbers that matrices may have, as safetensors names them."""
MOST_MEMORY = 1.5e9
"""Bytes of all tensors in float32, in which they are computed with."""
LONGEST_SHOWN = 80
"""Characters of a text that an error repeats."""


class LoraError(ValueError):
    """A LoRA cannot be fetched or used. The message is for the client and names the input."""


class LoraNotFetched(LoraError, Transient):
    """A LoRA could not be fetched or saved. Another time it may succeed."""


class FileRefused(LoraError):
    """What lies at an address is no file that can be used. Until it is another one, to fetch it again is no use."""


@dataclass(frozen=True)
class Lora:
    """A LoRA of a request: its file on disk, and how strongly it acts."""

    file: Path
    sha256: str
    scale: float
    """Factor of what it adds to each layer's weights, −2 to 2. 0 changes nothing."""
    name: str = "lora_weights"
    """How the client knows it: the name of its input."""

    source: str = ""
    """Its address, for the metadata of pictures. Without a query, which may hold a token."""
    held: Any = field(default=None, repr=False, compare=False)
    """What keeps the file from being removed, for as long as this is referred to."""

    def parameters(self) -> dict[str, str | float]:
        """For the metadata of pictures."""
        return {"source": self.source, "sha256": self.sha256, "scale": self.scale}

    @property
    def key(self) -> tuple[str, float]:
        """What decides how it changes a model."""
        return self.sha256, self.scale


Shape = tuple[int, ...]


@dataclass(frozen=True)
class Header:
    """What a file says before its tensors."""

    shapes: Mapping[str, Shape]
    """Of each tensor, by its name."""
    metadata: Mapping[str, str]
    types: Mapping[str, str] = field(default_factory=dict)
    """Of each tensor's numbers, as safetensors names it: "F32"."""


@dataclass(frozen=True)
class Reading:
    """What a file's tensors are, by their names. Nothing here depends on the base's layers."""

    tensors: Mapping[str, Mapping[str, str]]
    """For "unet", "text_encoder" and "text_encoder_2": the name in the file of each tensor, by the name that peft gives
    it. That is a layer of the network, then what it is for that layer: "mid_block.resnets.0.conv1.lora_A.weight"."""
    alphas: Mapping[str, Mapping[str, str]]
    """For the same three: the name in the file of the tensor that holds a layer's alpha, by the layer."""
    unread: tuple[str, ...] = ()
    """Tensors that are nothing to these two networks, by their names in the file."""
    missing: str | None = None
    """A tensor that another one needs, by its name in the file."""


def read_header(lora: Lora) -> Header:
    """The header of a LoRA's file. Raises LoraError for a file that is none, or has more than any LoRA."""
    try:
        with lora.file.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
        if MOST_HEADER < length < lora.file.stat().st_size:
            raise LoraError(_too_much(lora, f"a header of {length / 2**20:.0f} MB", f"{MOST_HEADER // 2**20} MB"))
        with safe_open(lora.file, "pt") as opened:
            names = opened.keys()
            if len(names) > MOST_TENSORS:
                raise LoraError(_too_much(lora, f"{len(names)} tensors", str(MOST_TENSORS)))
            if (longest := max(map(len, names), default=0)) > LONGEST_NAME:
                raise LoraError(_too_much(lora, f"a name of {longest} characters", str(LONGEST_NAME)))
            slices = {name: opened.get_slice(name) for name in names}
            shapes = {name: tuple(each.get_shape()) for name, each in slices.items()}
            return Header(shapes, opened.metadata() or {}, {name: each.get_dtype() for name, each in slices.items()})
    except FileNotFoundError as error:
        raise LoraNotFetched(f"{lora.name}: its file was removed from this server meanwhile. Send it again.") from error
    except (SafetensorError, OSError) as error:
        raise LoraError(f"{lora.name}: expected a .safetensors file of a LoRA, got a file that is none.") from error


def _too_much(lora: Lora, found: str, most: str) -> str:
    return f"{lora.name}: expected a LoRA, got a file with {found}, and at most {most} are taken."


def lora_fault(header: Header, reading: Reading, prompt_width: int) -> str | None:
    """A sentence that says why a file is no LoRA for a model with prompts of that width. None if it may be one."""
    if not header.shapes:
        return "expected a LoRA, got an empty file."
    if kind := _first(_KINDS, reading.unread):
        return f"expected a LoRA, got {kind}"
    own = _WIDTHS.get(prompt_width, f"a model whose prompts are {prompt_width} wide")
    widths = _widths(header, reading)
    family, named = None, _first(_FAMILIES, header.shapes)
    if wrong := widths - {prompt_width}:
        family = named or _WIDTHS.get(min(wrong), f"a model whose prompts are {min(wrong)} wide")
    if not widths:
        family = named or _of_metadata(header.metadata)
    if family and family != own:
        return f"expected a LoRA for {own}, which this bundle is, got one for {family}."
    if reading.missing:
        return f"expected a LoRA, got a file without its tensor {shown(reading.missing)}. It is incomplete."
    of_alpha = [own for alphas in reading.alphas.values() for own in alphas.values()]
    if strange := [*reading.unread, *(own for own in of_alpha if math.prod(header.shapes[own]) != 1)]:
        found = f"{len(strange)} of its {len(header.shapes)} tensors are something else, such as {shown(strange[0])}"
        return f"expected a LoRA, got a file of which {found}."
    matrices = [own for tensors in reading.tensors.values() for own in tensors.values()]
    if strange := [own for own in matrices if header.types.get(own, FLOATS[0]) not in FLOATS]:
        kind = header.types[strange[0]]
        return f"expected a LoRA, got a file whose numbers in {shown(strange[0])} are no floating-point ones ({kind})."
    needed = 4 * sum(map(math.prod, header.shapes.values()))
    if needed > MOST_MEMORY:
        return f"expected a LoRA that takes up to {MOST_MEMORY / 1e9} GB in memory, got one of {needed / 1e9:.1f} GB."
    return None


def shown(text: str) -> str:
    """A text of a client, or of a client's file, as errors repeat it."""
    return repr(text if len(text) <= LONGEST_SHOWN else f"{text[: LONGEST_SHOWN - 3]}...")


def _first(patterns: Sequence[tuple[str, str]], names: Collection[str]) -> str | None:
    return next((meaning for pattern, meaning in patterns if any(re.search(pattern, name) for name in names)), None)


def _widths(header: Header, reading: Reading) -> set[int]:
    """How wide the prompts are that its layers read: those of the second attention of each block. Empty without any.

    A bundle of another width than all known families, such as tiny, is a family of its own.
    """
    read = ("attn2.to_k.lora_A.weight", "attn2.to_v.lora_A.weight")
    names = [own for peft, own in reading.tensors.get("unet", {}).items() if peft.endswith(read)]
    return {shape[1] for shape in map(header.shapes.__getitem__, names) if len(shape) > 1}


def _of_metadata(metadata: Mapping[str, str]) -> str | None:
    written = [metadata.get(key, "").lower() for key in _METADATA]
    return next((name for start, name in _ARCHITECTURES for text in written if text.startswith(start)), None)
