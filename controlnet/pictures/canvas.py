"""Where the pictures of a request lie: the size of what is made, how each is fitted to it, and what it starts from."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import SimpleNamespace

from PIL import Image

from controlnet.generation.job import RequestError
from controlnet.generation.repaint import Start
from controlnet.pictures.geometry import Margins, canvas_size, extend, fit, in_steps, reshape
from controlnet.pictures.images import ImageError, open_image

PICTURES = ("image", "image_2", "image_3", "init_image")
MASKS = ("mask", "control_mask", "control_mask_2", "control_mask_3")
STRENGTH = 0.8
"""prompt_strength where init_image alone is given: the layout of the picture is left, and much else changes."""

Pictures = Mapping[str, Image.Image]
"""The request's pictures by the name of their input, RGB; the masks of mode L. Only those that were sent."""


@dataclass(frozen=True)
class Canvas:
    """The pictures to be made: a kept part, as large as asked for, with margins that are painted outwards."""

    kept: tuple[int, int]
    margins: Margins
    """Multiples of 8."""
    mode: str
    """A key of geometry.RESIZE_MODES."""
    by_resolution: bool = True
    """Whether the input resolution alone has set the size."""

    @property
    def size(self) -> tuple[int, int]:
        """(width, height), both multiples of 8."""
        return self.margins.around(self.kept)

    def lay(self, image: Image.Image, size: tuple[int, int], blank: int | None = None) -> Image.Image:
        """The image at `size`; what "fill" adds is `blank`, or the image's edges continued."""
        return fit(reshape(image, size, self.mode, blank), size, Image.Resampling.LANCZOS)

    def lay_mask(self, mask: Image.Image, size: tuple[int, int], name: str) -> Image.Image:
        """As lay(); black where it does not reach. Raises RequestError where it is black everywhere: nothing would be
        done."""
        laid = self.lay(mask, size, blank=0)
        if laid.getextrema() == (0, 0):
            raise RequestError(f"{name} is black everywhere, and white is where it acts: paint some, or leave it out.")
        return laid


def open_pictures(ask: SimpleNamespace) -> Pictures:
    """All of the request's pictures. Raises ImageError, which names the input unless it is image."""
    sent = {name: getattr(ask, name) for name in (*PICTURES, *MASKS) if getattr(ask, name) is not None}
    return {name: _open(name, source) for name, source in sent.items()}


def lay_out(ask: SimpleNamespace, pictures: Pictures) -> Canvas:
    """The canvas of a request. Its aspect ratio is that of init_image where that is sent, else that of image."""
    first = pictures.get("init_image", pictures["image"])
    margins = in_steps(Margins(ask.outpaint_left, ask.outpaint_top, ask.outpaint_right, ask.outpaint_bottom))
    kept = canvas_size(first.size, ask.resolution, ask.width, ask.height)
    by_resolution = ask.width is None and ask.height is None and not margins
    return Canvas(kept, margins, ask.resize_mode, by_resolution)


def start_of(ask: SimpleNamespace, pictures: Pictures, canvas: Canvas) -> Start | None:
    """What the request starts from: init_image, or with a mask or margins the image itself; None for noise alone."""
    masked = "mask" in pictures or bool(canvas.margins)
    if not masked and "init_image" not in pictures:
        return None
    picture = canvas.lay(pictures.get("init_image", pictures["image"]), canvas.kept)
    mask = None
    if masked:
        own = Image.new("L", canvas.kept)
        if "mask" in pictures:
            own = canvas.lay_mask(pictures["mask"], canvas.kept, "mask")
        mask = extend(own, canvas.margins, blank=255)
    usual = 1.0 if masked else STRENGTH
    strength = usual if ask.prompt_strength is None else ask.prompt_strength
    return Start(extend(picture, canvas.margins), strength, mask)


def _open(name: str, source: object) -> Image.Image:
    try:
        picture = open_image(source)  # type: ignore[arg-type]  # it refuses what is not a Path itself
    except ImageError as error:
        raise error if name == "image" else ImageError(f"{name}: {error}") from None
    return picture.convert("L") if name in MASKS else picture
