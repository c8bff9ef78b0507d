"""The picture itself, for a ControlNet that looks at plain pictures: ip2p, which was trained on the data of T. Brooks,
A. Holynski, A. A. Efros, "InstructPix2Pix: Learning to Follow Image Editing Instructions", CVPR 2023."""

from PIL import Image

from . import Annotator


def load(device: object) -> Annotator:
    """Needs no weights and no device."""
    return draw_raw


def draw_raw(image: Image.Image) -> Image.Image:
    """RGB picture -> a copy of it."""
    return image.convert("RGB")
