"""The small tables of a manifest: what requests leave out, what bounds them, few steps, reference pictures."""

from dataclasses import dataclass

from controlnet.weights.toml_table import Table


@dataclass(frozen=True)
class Defaults:
    """The values of inputs that a request leaves out."""

    resolution: int
    """Length of the picture's short side in pixels: the size at which the base model was trained."""
    num_inference_steps: int
    guidance_scale: float
    scheduler: str
    control_mode: str = "balanced"
    """A key of controlnet.request.modes.CONTROL_MODES."""
    clip_skip: int = 1
    """The layer of the text encoder that the base model was trained with, counted from the last, which is 1."""


@dataclass(frozen=True)
class Fast:
    """How the bundle paints in few steps, if a request says go_fast."""

    part: str
    """The part with the LoRA that makes it possible."""
    num_inference_steps: int
    """Unless a request names another number from `steps`."""
    guidance_scale: float
    """Unless a request names another number from `guidance`."""
    scheduler: str
    """The only one that works."""
    steps: tuple[int, int]
    """The least and the most that work."""
    guidance: tuple[float, float]
    """As `steps`, for guidance_scale."""


@dataclass(frozen=True)
class Reference:
    """How a reference picture acts, if a request has one (H. Ye et al., "IP-Adapter", arXiv 2308.06721)."""

    adapter: str
    """The part with the layers that attend to the picture."""
    encoder: str
    """The part that turns the picture into embeddings."""
    scale: float
    """How strongly it acts, unless a request names another number."""
    style: tuple[str, ...] = ()
    """The layers that act in the mode "style": their names in the UNet begin with one of these. Empty: there is no such
    mode (H. Wang et al., "InstantStyle", arXiv 2404.02733)."""


@dataclass(frozen=True)
class Limits:
    """Upper limits for one request."""

    pixels: int
    """width × height × num_outputs."""
    upscaled_pixels: int
    """The same after the pictures are enlarged (input upscale). Unless the manifest says it: as many as `pixels`."""


def read_needs(table: Table) -> dict[str, str]:
    needs = {"memory": table.text("memory"), "disk": table.text("disk")}
    table.close()
    return needs


def read_defaults(table: Table) -> Defaults:
    defaults = Defaults(
        resolution=table.number("resolution", 1),
        num_inference_steps=table.number("num_inference_steps", 1),
        guidance_scale=table.number("guidance_scale", 0, float),
        scheduler=table.text("scheduler"),
        control_mode=table.text("control_mode", "balanced"),
        clip_skip=table.number("clip_skip", 1) if "clip_skip" in table.remaining_keys() else 1,
    )
    table.close()
    return defaults


def read_fast(table: Table) -> Fast:
    steps, guidance = table.take("steps", list), table.take("guidance", list)
    for key, pair in (("steps", steps), ("guidance", guidance)):
        if len(pair) != 2 or not all(isinstance(value, int | float) for value in pair) or pair[0] > pair[1]:
            raise table.error(key, f"expected the least and the most, such as [2, 8], got {pair}")
    fast = Fast(
        part=table.text("part"),
        num_inference_steps=table.number("num_inference_steps", 1),
        guidance_scale=table.number("guidance_scale", 0, float),
        scheduler=table.text("scheduler"),
        steps=(steps[0], steps[1]),
        guidance=(guidance[0], guidance[1]),
    )
    table.close()
    return fast


def read_reference(table: Table) -> Reference:
    adapter, encoder = table.text("adapter"), table.text("encoder")
    style = table.take("style", list, [])
    if not all(isinstance(name, str) and name for name in style):
        raise table.error("style", f"expected names of layers, such as ['up_blocks.1'], got {style}")
    reference = Reference(adapter, encoder, table.number("scale", 0, float), tuple(style))
    table.close()
    return reference


def read_limits(table: Table) -> Limits:
    pixels = table.number("pixels", 1)
    upscaled = table.number("upscaled_pixels", 1) if "upscaled_pixels" in table.remaining_keys() else pixels
    limits = Limits(pixels, upscaled)
    table.close()
    return limits
