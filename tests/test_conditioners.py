import numpy as np
import pytest
from PIL import Image

from controlnet.conditioners import BY_NAME, CONDITIONERS, ConditionerError, draw_control_map

PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8))


def never(picture: Image.Image) -> Image.Image:
    raise AssertionError("the annotator was run on a ready-made map")


def test_the_annotator_sees_the_picture_at_the_size_of_the_map() -> None:
    seen = []
    annotators = {"canny": lambda picture: seen.append(picture.size) or picture}
    assert draw_control_map("canny", PICTURE, (96, 64), True, annotators).size == (96, 64)
    assert seen == [(96, 64)]


@pytest.mark.parametrize("conditioner", CONDITIONERS, ids=lambda conditioner: conditioner.name)
def test_a_ready_made_map_never_meets_the_annotator(conditioner) -> None:
    """A peer ran its edge detector over maps that users sent, and got edges of edges."""
    white_lines = Image.new("RGB", (60, 40))
    white_lines.paste("white", (20, 0, 23, 40))
    same = draw_control_map(conditioner.name, white_lines, (60, 40), False, {conditioner.name: never})
    assert same.tobytes() == white_lines.tobytes()


@pytest.mark.parametrize("conditioner", CONDITIONERS, ids=lambda conditioner: conditioner.name)
def test_only_dark_on_white_line_maps_are_inverted(conditioner) -> None:
    paper = Image.new("RGB", (60, 40), "white")
    paper.paste("black", (20, 0, 23, 40))
    drawn = draw_control_map(conditioner.name, paper, (60, 40), False, {conditioner.name: never})
    corner = (0, 0, 0) if conditioner.lines else (255, 255, 255)
    assert drawn.getpixel((0, 0)) == corner
    assert conditioner.lines == (conditioner.name in ("canny", "hed", "mlsd", "scribble", "lineart", "lineart_anime"))


def test_label_colours_are_never_mixed() -> None:
    halves = Image.new("RGB", (60, 40), (120, 120, 120))
    halves.paste((180, 120, 120), (31, 0, 60, 40))
    drawn = draw_control_map("seg", halves, (96, 64), False, {"seg": never})
    assert {colour for _, colour in drawn.getcolors()} == {(120, 120, 120), (180, 120, 120)}


def test_a_conditioner_that_the_bundle_lacks_gets_one_sentence_with_those_it_has() -> None:
    with pytest.raises(ConditionerError, match="has no hed conditioner; it has canny, scribble"):
        draw_control_map("hed", PICTURE, (64, 64), True, {"canny": never, "scribble": never})


def test_a_picture_that_is_its_own_map_may_be_dark_on_white() -> None:
    """A dark house before a white sky is no line map: tile, shuffle and ip2p see it as it is."""
    for name in ("tile", "shuffle", "ip2p"):
        paper = Image.new("RGB", (64, 64), "white")
        paper.paste("black", (20, 0, 30, 64))
        assert draw_control_map(name, paper, (64, 64), False, {name: never}).tobytes() == paper.tobytes()


def test_names_are_unique() -> None:
    assert len(BY_NAME) == len(CONDITIONERS)
