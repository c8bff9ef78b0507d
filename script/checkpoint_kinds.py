"""What a .safetensors file holds, told by the names and shapes of its tensors, without reading the tensors."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open

UNET, VAE, TEXT_ENCODER = "model.diffusion_model.", "first_stage_model.", "cond_stage_model."
"""How the names of a checkpoint's tensors begin (CompVis/stable-diffusion's classes)."""
CLIP = f"{TEXT_ENCODER}transformer.text_model."
FIRST_LAYER = f"{UNET}input_blocks.0.0.weight"
EXPECTED = "expected a Stable Diffusion 1.5 checkpoint in one .safetensors file, as CivitAI has them"
PICKLED = (".ckpt", ".pt", ".pth", ".bin", ".pkl")
V_PREDICTION = "v_pred"
"""A tensor of this name marks a checkpoint that predicts v; web UIs read it too."""
OF_TRAINING = (
    "model_ema.", f"{VAE}loss.", "alphas_cumprod", "betas", "log_one_minus", "logvar", "lvlb_weights", "posterior_",
    "sqrt_", "denoiser.", "embedding_manager.", f"{CLIP}embeddings.position_ids",
)  # fmt: skip
"""Beginnings of names that checkpoints also have and that generating does not need."""


class CheckpointError(ValueError):
    """A file that cannot be imported. The message says what it is and what was expected."""


@dataclass(frozen=True)
class Contents:
    """The header of a .safetensors file."""

    shapes: Mapping[str, tuple[int, ...]]
    metadata: Mapping[str, str]

    def begins(self, *prefixes: str) -> list[str]:
        """The names of tensors that begin with one of `prefixes`."""
        return [name for name in self.shapes if name.startswith(prefixes)]

    def numbers(self, prefix: str) -> int:
        """How many numbers the tensors hold whose names begin with `prefix`, without those of training."""
        count = 0
        for name in set(self.begins(prefix)) - set(self.begins(*OF_TRAINING)):
            size = 1
            for side in self.shapes[name]:
                size *= side
            count += size
        return count

    @property
    def unused(self) -> list[str]:
        """Names of tensors that belong to no part of a checkpoint."""
        known = {*self.begins(UNET, VAE, TEXT_ENCODER, *OF_TRAINING), V_PREDICTION}
        return [name for name in self.shapes if name not in known]

    @property
    def prediction_type(self) -> str | None:
        """What the file says that its UNet predicts, as diffusers calls it. None if it says nothing."""
        said = self.metadata.get("modelspec.prediction_type", "").lower()
        if V_PREDICTION in self.shapes or said in ("v", "v_prediction"):
            return "v_prediction"
        return "epsilon" if said in ("e", "eps", "epsilon") else None


def read_contents(file: Path) -> Contents:
    """Raises CheckpointError for a file that is not a whole .safetensors file."""
    if not file.is_file():
        raise CheckpointError(f"There is no file {file.name}.")
    with file.open("rb") as opened:
        pickled = opened.read(2) in (b"PK", b"\x80\x02", b"\x80\x04")
    if pickled or file.suffix in PICKLED:
        raise CheckpointError(
            f"{file.name} is a pickled file, which can run code when it is opened: {EXPECTED}. Get that one, or "
            "convert it where nothing can be lost."
        )
    try:
        with safe_open(file, "pt") as opened:
            shapes = {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
            return Contents(shapes, opened.metadata() or {})
    except SafetensorError:
        raise CheckpointError(f"{file.name} is not a whole .safetensors file (cut short?): {EXPECTED}.") from None


def check_kind(file: Path, contents: Contents, channels: int, width: int) -> None:
    """Raise CheckpointError, which names what the file is, unless it is a checkpoint like the base's.

    The base's UNet takes `channels` of latents, and `width` numbers for each token of a prompt.
    """
    names = list(contents.shapes)
    what = next((words for words, fits in OTHERS.items() if fits(names)), None)
    if what is None and FIRST_LAYER not in contents.shapes:
        what = "of a kind that is not known here"
    if what is None:
        what = _other_checkpoint(contents, channels, width)
    if what is None and contents.begins(TEXT_ENCODER) and not contents.begins(CLIP):
        what = "a checkpoint whose text encoder has other names than CLIP's"
    if what:
        raise CheckpointError(f"{file.name} is {what}: {EXPECTED}.")


def _other_checkpoint(contents: Contents, channels: int, width: int) -> str | None:
    """In words, a checkpoint of another family or with other inputs. None if it is like the base's."""
    taken = contents.shapes[FIRST_LAYER][1]
    widths = {shape[-1] for name, shape in contents.shapes.items() if name.endswith("attn2.to_k.weight")}
    task = TASKS.get(taken) if taken != channels else None
    if widths != {width}:
        family = next((FAMILIES[each] for each in sorted(widths) if each in FAMILIES), None)
        if family:
            return f"a checkpoint of {family}{f' ({task})' if task else ''}"
        return f"a checkpoint for another text encoder than the bundle's ({', '.join(map(str, sorted(widths)))} wide)"
    if taken == channels:
        return None
    return f"{f'an {task} checkpoint' if task else 'a checkpoint'} whose UNet takes {taken} channels, not {channels}"


TASKS = {9: "inpainting", 8: "InstructPix2Pix", 5: "depth-to-image", 7: "upscaling"}
"""What a UNet is for, by its number of input channels, if it is not the usual one."""
FAMILIES = {
    768: "Stable Diffusion 1",
    1024: "Stable Diffusion 2",
    1280: "the SDXL refiner",
    2048: "SDXL",
}
"""By the width of the keys of cross-attention."""


def _any(*parts: str) -> Callable[[Collection[str]], bool]:
    return lambda names: any(part in name for name in names for part in parts)


def _all(*prefixes: str) -> Callable[[Collection[str]], bool]:
    return lambda names: all(name.startswith(prefixes) for name in names)


OTHERS: Mapping[str, Callable[[Collection[str]], bool]] = {
    "empty": lambda names: not names,
    "a LoHa or LoKr, which changes a checkpoint": _any("hada_w", "lokr_w"),
    "a LoRA, which is sent with a request (lora_weights)": _any("lora_down", "lora_up", "lora_A", "lora_B", ".lora."),
    "an embedding (textual inversion)": lambda names: {*names} <= {"emb_params", "clip_l", "clip_g", "string_to_param"},
    "a ControlNet (docs/bring-your-own.md says how to use one)": _any(
        "control_model.", "input_hint_block.", "zero_convs.", "controlnet_cond_embedding.", "controlnet_down_blocks."
    ),
    "an IP-Adapter": _any("ip_adapter.", "to_k_ip."),
    "a T2I-Adapter": _all("adapter.", "body.", "conv_in."),
    "a motion module of AnimateDiff": _any("motion_modules."),
    "a checkpoint of FLUX": _any("double_blocks.", "single_transformer_blocks."),
    "a checkpoint of Stable Diffusion 3": _any("joint_blocks.", "joint_transformer_blocks."),
    "a VAE (docs/bring-your-own.md says how to use one)": _all(
        "encoder.", "decoder.", "quant_conv.", "post_quant_conv.", VAE, "loss.", "model_ema."
    ),
    "a text encoder alone": _all("text_model.", "cond_stage_model.", "text_projection"),
    "a UNet alone, in the layout of diffusers": _any("down_blocks.0.resnets.0."),
}
"""Files that are no checkpoint like Stable Diffusion 1.5's, in words, with what tells them by the tensors' names."""
