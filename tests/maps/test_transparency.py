"""What is transparent means "nothing here", and each conditioner says what that is."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw
from support.requests import laid_out, noise

from controlnet.conditioners import BY_NAME, CONDITIONERS, Conditioner
from controlnet.maps.annotators.normal_bae import normal_map
from controlnet.maps.annotators.skeletons import draw_skeletons
from controlnet.maps.annotators.xdog import draw_xdog
from controlnet.maps.controls import draw_controls
from controlnet.maps.drawing import draw_control_map
from controlnet.maps.transparency import opaque

LINES = {"canny", "hed", "mlsd", "scribble", "lineart", "lineart_anime"}
BLACK, WHITE, FACING = (0, 0, 0), (255, 255, 255), (127, 127, 255)
PHOTOGRAPHS = {"tile", "shuffle", "inpaint", "ip2p"}
NOTHING = (
    dict.fromkeys(LINES | {"depth", "openpose", "seg"}, BLACK) | dict.fromkeys(PHOTOGRAPHS, WHITE) | {"normal": FACING}
)
"""What a ready-made map has where it is transparent."""
each = pytest.mark.parametrize("conditioner", CONDITIONERS, ids=lambda conditioner: conditioner.name)


def ready_made(picture: Image.Image, name: str) -> Image.Image:
    """The control map of a picture that is a map already."""
    laid = opaque(picture, BY_NAME[name], drawn=False)
    return draw_control_map(name, laid, picture.size, False, {name: draw_xdog})


def strokes(ink: tuple[int, int, int], width: int = 3, opacity: int = 255) -> Image.Image:
    """A drawing on nothing."""
    drawing = Image.new("RGBA", (96, 96))
    pen = ImageDraw.Draw(drawing)
    pen.line((10, 10, 80, 30, 40, 85), fill=(*ink, opacity), width=width)
    pen.ellipse((20, 40, 70, 90), outline=(*ink, opacity), width=width)
    return drawing


def on(colour: tuple[int, int, int], picture: Image.Image) -> Image.Image:
    """The picture as a viewer with a background of that colour shows it."""
    return Image.alpha_composite(Image.new("RGBA", picture.size, (*colour, 255)), picture).convert("RGB")


def photo() -> Image.Image:
    """A picture with light and dark parts, cut out: its right half is transparent."""
    cut_out = noise(64, 64).convert("RGBA")
    cut_out.paste((0, 0, 0, 0), (32, 0, 64, 64))
    return cut_out


@pytest.mark.parametrize("name", sorted(NOTHING))
def test_a_ready_made_map_has_nothing_where_it_is_transparent(name: str) -> None:
    half = Image.new("RGBA", (64, 64))
    half.paste((90, 90, 90, 255), (0, 0, 20, 64))
    drawn = ready_made(half, name)
    assert drawn.getpixel((40, 5)) == NOTHING[name]
    assert drawn.getpixel((5, 5)) == ((165,) * 3 if name in LINES else (90,) * 3)


def test_nothing_is_what_the_annotators_draw_for_it() -> None:
    facing = normal_map(np.tile(np.float32([0, 0, 1]), (64, 64, 1)), (64, 64))
    assert facing.getpixel((9, 9)) == BY_NAME["normal"].nothing
    assert draw_skeletons([], (64, 64)).getpixel((9, 9)) == BY_NAME["openpose"].nothing


@each
def test_an_annotator_is_shown_photographs_on_white(conditioner: Conditioner) -> None:
    assert opaque(photo(), conditioner, drawn=True) == on(WHITE, photo())


@each
def test_a_picture_without_transparency_is_left_as_it_is(conditioner: Conditioner) -> None:
    picture = noise(64, 64)
    assert opaque(picture, conditioner, True) is picture and opaque(picture, conditioner, False) is picture


def test_a_skeleton_on_nothing_is_a_map_on_black() -> None:
    skeleton = draw_skeletons([[(20.0 + 3 * i, 10.0 + 4 * (i % 7)) for i in range(18)]], (96, 96))
    alpha = Image.fromarray(np.where(np.asarray(skeleton).any(axis=2), 255, 0).astype(np.uint8))
    cut_out = skeleton.copy()
    cut_out.putalpha(alpha)
    assert ready_made(cut_out, "openpose") == skeleton


@pytest.mark.parametrize("name", sorted(LINES))
@pytest.mark.parametrize("ink", [(0, 0, 0), (255, 255, 255), (200, 30, 30), (250, 240, 90)], ids=str)
def test_line_art_of_any_ink_is_a_map_of_its_strokes(name: str, ink: tuple[int, int, int]) -> None:
    drawing = strokes(ink)
    drawn = np.asarray(ready_made(drawing, name)).max(axis=2) >= 128
    assert np.array_equal(drawn, np.asarray(drawing)[..., 3] >= 128)


@pytest.mark.parametrize("ink", [(0, 0, 0), (255, 255, 255)], ids=str)
@pytest.mark.parametrize("opacity", [255, 120], ids=["strong", "faint"])
def test_a_doodle_of_any_ink_keeps_its_strokes(ink: tuple[int, int, int], opacity: int) -> None:
    doodle = strokes(ink, opacity=opacity)
    shown = opaque(doodle, BY_NAME["scribble"], drawn=True)
    assert shown == on(WHITE if ink == (0, 0, 0) else BLACK, doodle)
    assert np.array_equal(np.asarray(draw_xdog(shown))[..., 0] >= 128, np.asarray(doodle)[..., 3] > 0)


@pytest.mark.parametrize("name", ["depth", "normal", "seg", "openpose", "tile", "shuffle", "ip2p", "inpaint"])
def test_light_strokes_are_a_photograph_to_other_annotators(name: str) -> None:
    assert opaque(strokes((255, 255, 255)), BY_NAME[name], drawn=True) == on(WHITE, strokes((255, 255, 255)))


@pytest.mark.parametrize("fringe", [(255, 255, 255), (0, 0, 0)], ids=["white", "black"])
@pytest.mark.parametrize("ink", [(0, 0, 0), (255, 255, 255)], ids=str)
def test_edges_mixed_with_a_colour_behind_them_are_no_ink(
    ink: tuple[int, int, int], fringe: tuple[int, int, int]
) -> None:
    """As programs save them that smooth the edges before they make the background transparent."""
    large = strokes(ink, width=10).resize((960, 960)).resize((95, 95), Image.Resampling.BOX)
    alpha = np.asarray(large)[..., 3]
    mixed = on(fringe, large)
    mixed.putalpha(Image.fromarray(alpha))
    assert ((alpha > 0) & (alpha < 255)).sum() / (alpha > 0).sum() > 0.05
    assert np.asarray(ready_made(mixed, "scribble"))[0].max() == 0, "the ground is not black"
    assert (np.asarray(ready_made(mixed, "scribble"))[alpha == 255] == 255).all()


@pytest.mark.parametrize("ground", [BLACK, WHITE], ids=["white on black", "black on white"])
def test_a_line_map_with_a_ground_of_its_own_is_continued(ground: tuple[int, int, int]) -> None:
    """Such as a map that was moved on the canvas of an editor: its lines are not most of what is visible."""
    ink = WHITE if ground == BLACK else BLACK
    within = on(ground, strokes(ink))
    whole, moved = Image.new("RGB", (192, 192), ground), Image.new("RGBA", (192, 192))
    whole.paste(within, (50, 60))
    moved.paste(within, (50, 60))
    assert ready_made(moved, "canny") == ready_made(whole, "canny")
    assert np.asarray(ready_made(moved, "canny")).mean() < 30


@pytest.mark.parametrize("name", sorted(LINES))
def test_nothing_at_all_is_an_empty_map(name: str) -> None:
    for hidden in ((0, 0, 0, 0), (255, 255, 255, 0)):
        assert not np.asarray(ready_made(Image.new("RGBA", (64, 64), hidden), name)).any()


def test_the_soft_edges_of_labels_are_one_or_the_other() -> None:
    labels = Image.new("RGBA", (64, 64))
    for opacity, left in ((255, 0), (127, 20), (128, 30)):
        labels.paste((120, 120, 80, opacity), (left, 0, left + 10, 64))
    drawn = ready_made(labels, "seg")
    assert [drawn.getpixel((x, 9)) for x in (5, 25, 35, 60)] == [(120, 120, 80), BLACK, (120, 120, 80), BLACK]


def test_one_picture_has_a_ground_for_each_of_its_roles(tmp_path: Path) -> None:
    shown = {}
    annotators = {
        "canny": lambda picture: shown.setdefault("canny", picture),
        "depth": lambda picture: pytest.fail("a ready-made map was annotated"),
    }
    pictures = {"image": photo(), "image_2": photo(), "mask": Image.new("L", (64, 64), 255)}
    request, layout = laid_out(tmp_path, pictures, conditioner_2="depth", preprocess_2=False)
    depth = draw_controls(request, layout, annotators)[1]
    assert shown["canny"].getpixel((40, 9)) == WHITE and depth.control_map.getpixel((40, 9)) == BLACK
    assert layout.initial and layout.initial.picture.getpixel((40, 9)) == WHITE
    request, layout = laid_out(tmp_path, {"image": photo()}, conditioner_2="depth", preprocess_2=False)
    assert draw_controls(request, layout, annotators)[1].control_map == depth.control_map, "the image is shared"
