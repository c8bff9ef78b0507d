"""Uploads, drawings and masks as they are sent."""

import io

import numpy as np
import pytest
from PIL import Image
from support.requests_to_tiny import CAT, encoded

from playground.pictures import LONGEST_SIDE, NoPicture, drawn, open_upload, reduced, size_to_draw


def layer(size: tuple[int, int], opaque: bool) -> bytes:
    """A drawing with a black square in its upper left quarter."""
    image = Image.new("RGBA", size, (255, 255, 255, 255 if opaque else 0))
    image.paste((0, 0, 0, 255), (0, 0, size[0] // 2, size[1] // 2))
    return encoded(image)


def pixels(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content)))


def test_an_upload_is_sent_byte_for_byte() -> None:
    for kind in ("PNG", "JPEG", "WEBP", "GIF"):
        content = encoded(CAT, kind)
        file = open_upload(content)
        assert (file.content, file.mime) == (content, f"image/{kind.lower()}")
        assert file.data_url.startswith(f"data:image/{kind.lower()};base64,")


@pytest.mark.parametrize("content", [b"", b"text", encoded(CAT)[:500], b"<svg/>"])
def test_what_is_no_picture_is_refused(content: bytes) -> None:
    with pytest.raises(NoPicture, match="not a picture"):
        open_upload(content)


def test_a_drawing_on_paper_is_sent_as_it_is() -> None:
    sheet = pixels(drawn(None, layer((64, 48), True), mask=False).content)
    assert sheet.shape == (48, 64) and sheet[0, 0] == 0 and sheet[-1, -1] == 255


def test_strokes_lie_over_the_picture_and_change_nothing_else() -> None:
    upload = open_upload(encoded(CAT))
    size = size_to_draw(upload)
    made = pixels(drawn(upload, layer(size, False), mask=False).content)
    assert not made[: size[1] // 2, : size[0] // 2].any()
    assert (made[size[1] // 2 :] == np.asarray(CAT)[size[1] // 2 :]).all()


def test_a_mask_is_white_where_it_was_painted() -> None:
    mask = pixels(drawn(None, layer((64, 48), False), mask=True).content)
    assert (mask[:24, :32] == 255).all() and not mask[24:].any() and not mask[:, 32:].any()


def test_a_large_picture_is_reduced_and_one_on_its_side_is_turned() -> None:
    assert size_to_draw(open_upload(encoded(CAT.resize((3000, 1500))))) == (LONGEST_SIDE, LONGEST_SIDE // 2)
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = open_upload(encoded(CAT, "JPEG", exif=exif))
    assert size_to_draw(turned) == (300, 451) == reduced(turned).size


@pytest.mark.parametrize("content", [b"", encoded(CAT, "JPEG"), layer((LONGEST_SIDE + 1, 9), True)])
def test_what_is_no_drawing_is_refused(content: bytes) -> None:
    with pytest.raises(NoPicture):
        drawn(None, content, mask=False)
