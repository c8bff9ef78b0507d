"""The picture itself, for the ControlNet that takes plain pictures: ip2p. It was trained on the data of T. Brooks,
A. Holynski, A. A. Efros, "InstructPix2Pix: Learning to Follow Image Editing Instructions", CVPR 2023."""

from PIL import Image

from . import Annotator


def load(device: object) -> Annotator:
    """Needs no weights and ignores the device."""
    return draw_raw


def draw_raw(image: Image.Image) -> Image.Image:
    """RGB picture -> a copy of it."""
    return image.convert("RGB")
