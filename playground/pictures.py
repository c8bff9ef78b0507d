"""Pictures of the page: files as they came, what is drawn on them, and what is sent."""

import base64
import hashlib
import io
import mimetypes
from dataclasses import dataclass
from functools import cached_property

from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

MOST_BYTES = 32_000_000
"""Of an uploaded file."""
LONGEST_SIDE = 1024
"""In pixels, of what is drawn on. A larger picture is reduced to it once something is drawn on it."""
Image.MAX_IMAGE_PIXELS = 100_000_000


class NoPicture(ValueError):
    """What was sent is not a picture. The message is for the user."""


@dataclass(frozen=True)
class File:
    """A file in memory, with its type."""

    content: bytes
    mime: str

    @cached_property
    def data_url(self) -> str:
        return f"data:{self.mime};base64,{base64.b64encode(self.content).decode()}"

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the content."""
        return hashlib.sha256(self.content).hexdigest()

    @property
    def suffix(self) -> str:
        return mimetypes.guess_extension(self.mime, strict=False) or ".bin"

    @classmethod
    def of_data_url(cls, url: str) -> "File":
        """Raises ValueError if it is not a data URL."""
        header, comma, payload = url.partition(",")
        if not header.startswith("data:") or not comma:
            raise ValueError(f"Expected a data URL, got {url[:60]!r}.")
        mime = header.removeprefix("data:").split(";")[0] or "text/plain"
        return cls(base64.b64decode(payload) if header.endswith(";base64") else payload.encode(), mime)


def open_upload(content: bytes) -> File:
    """A file that was chosen, dropped or pasted. It is sent as it is. Raises NoPicture for what Pillow cannot read."""
    if len(content) > MOST_BYTES:
        raise NoPicture(f"The file has {len(content) / 1e6:.0f} MB. Choose one of at most {MOST_BYTES / 1e6:.0f} MB.")
    try:
        with Image.open(io.BytesIO(content)) as image:
            image.load()
            return File(content, Image.MIME.get(image.format or "", "application/octet-stream"))
    except Image.DecompressionBombError as error:
        raise NoPicture("The picture has too many pixels. Choose a smaller one.") from error
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError) as error:
        raise NoPicture("This file is not a picture that can be read. Choose a PNG, JPEG, WebP or GIF.") from error


def reduced(picture: File) -> Image.Image:
    """The picture upright, in RGB, with sides of at most LONGEST_SIDE pixels."""
    with Image.open(io.BytesIO(picture.content)) as image:
        upright = ImageOps.exif_transpose(image)
        upright.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.LANCZOS)
        flat = upright.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", flat.size, "white"), flat).convert("RGB")


def size_to_draw(picture: File) -> tuple[int, int]:
    """Width and height in which the picture is drawn on: those of reduced(), without decoding it."""
    with Image.open(io.BytesIO(picture.content)) as image:
        width, height = image.size
        if image.getexif().get(ExifTags.Base.Orientation, 1) >= 5:  # it lies on its side
            width, height = height, width
    share = min(1.0, LONGEST_SIDE / max(width, height))
    return max(1, round(width * share)), max(1, round(height * share))


def drawn(picture: File | None, layer: bytes, mask: bool) -> File:
    """What is sent: the strokes of `layer` (a PNG) over `picture`, or alone, or as a mask, white where they are.

    A layer without a picture is opaque: a sheet of paper. Raises NoPicture.
    """
    try:
        with Image.open(io.BytesIO(layer), formats=["PNG"]) as opened:
            if max(opened.size) > LONGEST_SIDE:
                raise NoPicture(f"A drawing has sides of at most {LONGEST_SIDE} pixels, got {max(opened.size)}.")
            strokes = opened.convert("RGBA")
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise NoPicture("The drawing did not arrive as a PNG.") from error
    if mask:
        return _png(strokes.getchannel("A"))
    if picture is None:
        return _png(Image.alpha_composite(Image.new("RGBA", strokes.size, "white"), strokes).convert("L"))
    below = reduced(picture)
    above = strokes.resize(below.size, Image.Resampling.LANCZOS) if strokes.size != below.size else strokes
    return _png(Image.alpha_composite(below.convert("RGBA"), above).convert("RGB"))


def _png(image: Image.Image) -> File:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)  # it is made several times a second
    return File(buffer.getvalue(), "image/png")
