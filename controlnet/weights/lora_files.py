"""What a LoRA file holds: recognised by its names and shapes, and refused if it cannot be put on completely.

diffusers checks neither the base model that a LoRA was made for nor its kind. It drops what it does not know and logs a
warning, or fails with a shape that says nothing to the person who sent the file.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open

from controlnet.transient import Transient

_PART = re.compile(r"(\.(lora_(up|down|A|B)|lora\.(up|down))\.weight|_lora\.(up|down)\.weight|\.alpha)$")
"""Endings of a LoRA's tensors, as kohya's scripts, peft and diffusers write them."""

_KINDS: tuple[tuple[str, str], ...] = (
    (r"\bhada_w|\.hada_", "a LoHa, another kind of adapter"),
    (r"lokr_w", "a LoKr, another kind of adapter"),
    (r"dora_scale|lora_magnitude_vector", "a DoRA, whose magnitudes diffusers would drop"),
    (r"oft_blocks|oft_diag|oft_R", "an OFT, another kind of adapter"),
    (r"\.lora_mid\.", "a LoCon with CP decomposition, another kind of adapter"),
    (r"ip_adapter\.|image_proj\.", "an IP-Adapter"),
    (r"\blora_controlnet|control_model\.|controlnet_", "a ControlNet"),
    (r"string_to_param|emb_params|clip_[lg]$", "an embedding (textual inversion)"),
    (r"^model\.diffusion_model\.(?!.*lora)|^first_stage_model\.|^cond_stage_model\.", "a whole checkpoint"),
)
"""Kinds of files that are no LoRA, by a part of a tensor's name. The first that fits counts."""

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


class LoraError(ValueError):
    """A LoRA cannot be fetched or used. The message is for the client and names the input."""


class LoraNotFetched(LoraError, Transient):
    """A LoRA could not be fetched or saved. Another time it may succeed."""


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

    def parameters(self) -> dict[str, str | float]:
        """For the metadata of pictures."""
        return {"source": self.source, "sha256": self.sha256, "scale": self.scale}

    @property
    def key(self) -> tuple[str, float]:
        """What decides how it changes a model."""
        return self.sha256, self.scale


def check_lora(lora: Lora, prompt_width: int) -> None:
    """Raise LoraError, which says what the file is, unless it is a LoRA for a model with prompts of that width."""
    try:
        with safe_open(lora.file, "pt") as opened:
            names = opened.keys()
            shapes = {name: opened.get_slice(name).get_shape() for name in names}
            metadata = opened.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise LoraError(f"{lora.name}: expected a .safetensors file of a LoRA, got a file that is none.") from error
    if fault := lora_fault(shapes, metadata, prompt_width):
        raise LoraError(f"{lora.name}: {fault}")


def lora_fault(shapes: Mapping[str, Sequence[int]], metadata: Mapping[str, str], prompt_width: int) -> str | None:
    """A sentence that says why a file's tensors are no LoRA for a model with prompts of that width. None if they are.

    `shapes` are those of its tensors, by name; `metadata` is that of its header.
    """
    if kind := _first(_KINDS, shapes):
        return f"expected a LoRA, got {kind}. Send a LoRA as kohya's scripts, peft or diffusers write it."
    own = _WIDTHS.get(prompt_width, f"a model whose prompts are {prompt_width} wide")
    family = _first(_FAMILIES, shapes) or _of_width(shapes, prompt_width) or _of_metadata(metadata)
    if family and family != own:
        return f"expected a LoRA for {own}, which this bundle is, got one for {family}."
    strange = [name for name in shapes if not _PART.search(name)]
    if strange or not shapes:
        found = f"{len(strange)} of its {len(shapes)} tensors are something else, such as {strange[:1]}"
        return f"expected a LoRA, got a file of which {found}." if shapes else "expected a LoRA, got an empty file."
    return None


def _first(patterns: Sequence[tuple[str, str]], names: Mapping[str, object]) -> str | None:
    return next((meaning for pattern, meaning in patterns if any(re.search(pattern, name) for name in names)), None)


def _of_width(shapes: Mapping[str, Sequence[int]], prompt_width: int) -> str | None:
    """The family by the width of the prompts, which the second attention of each block reads. None if it does not say.

    A bundle of another width than all known families, such as tiny, has its own.
    """
    read = re.compile(r"attn2[._](to_k|to_v|processor\.to_k|processor\.to_v)\D*(lora_down|lora_A|lora\.down)\.weight$")
    widths = {shape[1] for name, shape in shapes.items() if read.search(name) and len(shape) > 1}
    if not widths or widths == {prompt_width}:
        return None
    width = next(iter(widths - {prompt_width}))
    return _WIDTHS.get(width, f"a model whose prompts are {width} wide")


def _of_metadata(metadata: Mapping[str, str]) -> str | None:
    written = [metadata.get(key, "").lower() for key in _METADATA]
    return next((name for start, name in _ARCHITECTURES for text in written if text.startswith(start)), None)
