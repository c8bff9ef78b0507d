"""Control maps made larger and smaller: thin lines stay thin, strokes scale, labels and limbs keep their colours."""

import io
import itertools

import cv2
import numpy as np
import pytest
from PIL import Image
from skimage import data
from skimage.measure import label

from controlnet.conditioners import CONDITIONERS
from controlnet.maps import resizing
from controlnet.maps.resizing import FORMS, centre_lines, resize_map, thick_strokes

FACTORS = (0.25, 0.5, 1.5, 4)
ANGLES = (0, 20, 45, 75, 90, 135, 170)
RED, BLUE, WALL, SKY = (153, 0, 0), (0, 0, 153), (120, 120, 120), (6, 230, 230)


def scaled(control_map: Image.Image, factor: float) -> tuple[int, int]:
    return round(control_map.width * factor), round(control_map.height * factor)


def line(angle: float, width: int, size: int = 240, colour: tuple[int, int, int] = (255, 255, 255)) -> Image.Image:
    """One straight line across the middle, without anti-aliasing."""
    canvas = np.zeros((size, size, 3), np.uint8)
    reach = size * 0.4 * np.array([np.cos(np.radians(angle)), np.sin(np.radians(angle))])
    ends = [tuple(int(v) for v in size / 2 + sign * reach) for sign in (-1, 1)]
    cv2.line(canvas, ends[0], ends[1], colour, width)
    return Image.fromarray(canvas)


def lit(control_map: Image.Image) -> np.ndarray:
    red, green, blue = np.moveaxis(np.asarray(control_map), 2, 0)
    return (red | green | blue) > 0  # much faster than a maximum over the channels


def colours(control_map: Image.Image) -> set:
    counted = control_map.getcolors(1 << 17)
    assert counted is not None
    return {colour for _, colour in counted}


@pytest.mark.parametrize("form", FORMS)
def test_a_map_of_the_right_size_is_copied_unchanged(form: str) -> None:
    noise = Image.effect_noise((90, 70), 90).convert("RGB")
    same = resize_map(noise, noise.size, form)
    assert same.tobytes() == noise.tobytes()
    same.paste("red", (0, 0, 90, 70))
    assert noise.tobytes() == resize_map(noise, noise.size, form).tobytes()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("size", [(60, 31), (45, 400), (333, 40), (200, 400), (120, 80), (121, 79)])
def test_a_resized_map_is_rgb_of_the_exact_size_and_a_new_picture(form: str, size: tuple[int, int]) -> None:
    for drawn in (line(20, 1, 120).crop((0, 20, 120, 100)), Image.new("RGB", (120, 80)), noise()):
        before = drawn.tobytes()
        control_map = resize_map(drawn, size, form)
        assert (control_map.size, control_map.mode) == (size, "RGB")
        assert drawn.tobytes() == before
        assert resize_map(drawn, size, form).tobytes() == control_map.tobytes()


def noise() -> Image.Image:
    return Image.fromarray(np.random.default_rng(1).integers(0, 256, (80, 120, 3), np.uint8))


@pytest.mark.parametrize("factor", FACTORS)
def test_a_line_one_pixel_wide_keeps_its_width_and_stays_whole(factor: float) -> None:
    for angle in ANGLES:
        thin = line(angle, 1)
        control_map = resize_map(thin, scaled(thin, factor), "lines")
        assert colours(control_map) == {(0, 0, 0), (255, 255, 255)}
        assert label(lit(control_map), connectivity=2).max() == 1, f"{angle}°: in pieces"
        assert not thick_strokes(lit(control_map)).any(), f"{angle}°: a blob"
        expected = lit(line(angle, 1, control_map.width)).sum()
        assert 0.95 * expected - 3 <= lit(control_map).sum() <= 1.12 * expected, f"{angle}°"
        assert farthest(lit(line(angle, 1, control_map.width)), lit(control_map)) <= max(2, factor), f"{angle}°: moved"


def farthest(these: np.ndarray, those: np.ndarray) -> float:
    """The largest distance of a lit pixel of `these` from the nearest one of `those`."""
    return float(cv2.distanceTransform((~those).astype(np.uint8), cv2.DIST_L2, 5)[these].max())


@pytest.mark.parametrize("factor", FACTORS)
@pytest.mark.parametrize("width", [2, 3, 6, 12])
def test_thick_strokes_scale_and_are_never_lost(factor: float, width: int) -> None:
    for angle in ANGLES:
        thick = line(angle, width)
        control_map = resize_map(thick, scaled(thick, factor), "lines")
        assert label(lit(control_map), connectivity=2).max() == 1, f"{angle}°: in pieces"
        expected = lit(thick).sum() * factor**2
        least = max(0.75 * expected, lit(line(angle, 1, control_map.width)).sum() * 0.9 - 3)
        assert least <= lit(control_map).sum() <= max(1.25 * expected, 2.3 * least), f"{angle}°"


@pytest.mark.parametrize("factor", FACTORS)
def test_canny_edges_of_a_photo_are_kept_and_stay_thin(factor: float) -> None:
    edges = Image.fromarray(cv2.Canny(cv2.cvtColor(data.rocket(), cv2.COLOR_RGB2GRAY), 100, 200)).convert("RGB")
    size = scaled(edges, factor)
    control_map = lit(resize_map(edges, size, "lines"))
    # Every pixel of an edge falls close to a line of the resized map.
    rows, columns = np.nonzero(lit(edges))
    kept = cv2.distanceTransform((~control_map).astype(np.uint8), cv2.DIST_L2, 5)
    away = kept[((rows + 0.5) * factor).astype(int).clip(0, size[1] - 1), ((columns + 0.5) * factor).astype(int)]
    assert np.mean(away <= max(1.5, factor)) > 0.9 and away.max() <= max(4.5, 3 * factor)
    blocks = cv2.erode(control_map.astype(np.uint8), np.ones((3, 3), np.uint8)).sum()
    assert blocks <= 0.02 * control_map.sum()


def test_lines_after_lossy_compression_are_drawn_clean() -> None:
    thin = line(30, 1)
    for options in ({"format": "JPEG", "quality": 60}, {"format": "WEBP", "quality": 70}):
        file = io.BytesIO()
        thin.save(file, **options)
        control_map = resize_map(Image.open(file).convert("RGB"), (480, 480), "lines")
        assert colours(control_map) == {(0, 0, 0), (255, 255, 255)}
        assert farthest(lit(control_map), lit(line(30, 1, 480))) <= 3


def test_grey_lines_are_resized_as_soft_lines() -> None:
    """A map that was reduced like a photo has no white pixels left in its lines. A threshold would erase them."""
    faint = line(30, 1).resize((120, 120), Image.Resampling.BOX)
    for size in ((60, 60), (300, 300)):
        assert resize_map(faint, size, "lines").tobytes() == resize_map(faint, size, "soft_lines").tobytes()
        assert label(lit(resize_map(faint, size, "lines")), connectivity=2).max() == 1


@pytest.mark.parametrize("factor", FACTORS)
def test_soft_lines_are_blended_and_keep_place_and_brightness(factor: float) -> None:
    soft = Image.fromarray(np.asarray(line(30, 1)) // 2 + np.asarray(line(100, 4)) // 2)
    control_map = resize_map(soft, scaled(soft, factor), "soft_lines")
    assert len(colours(control_map)) > 3
    # No brightness is lost or added. Lanczos would add some along the lines on a grey background.
    assert np.asarray(control_map).mean() == pytest.approx(np.asarray(soft).mean(), rel=0.03)
    assert farthest(lit(line(30, 1, control_map.width)), lit(control_map)) <= 1
    grey = Image.fromarray(np.asarray(soft) // 2 + 64)
    bounds = [
        (int(np.min(pixels)), int(np.max(pixels))) for pixels in (grey, resize_map(grey, (77, 400), "soft_lines"))
    ]
    assert bounds[0][0] <= bounds[1][0] and bounds[1][1] <= bounds[0][1]


@pytest.mark.parametrize("factor", FACTORS)
def test_labels_keep_their_exact_colours_and_their_areas(factor: float) -> None:
    regions = np.array(Image.new("RGB", (240, 240), WALL))
    cv2.circle(regions, (120, 120), 70, SKY, -1)
    regions[:, 40] = (150, 5, 61)
    regions[:, 200:208] = (4, 200, 3)
    labels = Image.fromarray(regions)
    control_map = resize_map(labels, scaled(labels, factor), "labels")
    assert colours(control_map) <= colours(labels)
    for colour in (WALL, SKY, (4, 200, 3)):
        shares = [np.mean((np.asarray(picture) == colour).all(axis=2)) for picture in (labels, control_map)]
        assert shares[1] == pytest.approx(shares[0], rel=0.03)


def test_the_most_frequent_label_wins_when_pixels_are_merged() -> None:
    pixels = np.array(Image.new("RGB", (8, 8), WALL))
    pixels[::4, ::4] = pixels[2::4, 2::4] = SKY  # the pixels that nearest neighbour may pick
    assert colours(resize_map(Image.fromarray(pixels), (2, 2), "labels")) == {WALL}
    assert colours(resize_map(Image.new("RGB", (8, 8)), (2, 2), "labels")) == {(0, 0, 0)}


def test_enlarged_labels_have_smooth_contours() -> None:
    """Nearest neighbour would draw the border of a disc with squares of four pixels."""

    def disc(side: int) -> np.ndarray:
        across, down = (np.indices((side, side)) + 0.5) / side - 0.5
        return across**2 + down**2 < 0.16

    pixels = np.where(disc(60)[..., None], np.uint8(SKY), np.uint8(WALL))
    large = (np.asarray(resize_map(Image.fromarray(pixels), (240, 240), "labels")) == SKY).all(axis=2)
    assert np.mean(large != disc(240)) < 0.9 * np.mean(disc(60).repeat(4, 0).repeat(4, 1) != disc(240))


def test_maps_of_thousands_of_colours_are_never_blended() -> None:
    for form, size in itertools.product(("labels", "skeletons"), ((30, 20), (300, 200))):
        assert colours(resize_map(noise(), size, form)) <= colours(noise()) | {(0, 0, 0)}


def some_labels(count: int, side: int) -> Image.Image:
    numbers = np.random.default_rng(2).integers(0, count, (side, side))
    return Image.fromarray(np.stack([numbers, numbers // 2, numbers % 7], axis=2).astype(np.uint8))


def test_votes_are_exact_shares_if_the_factor_is_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    labels = some_labels(9, 240)
    exact = {size: np.asarray(resize_map(labels, size, "labels")) for size in ((80, 40), (240, 60), (97, 101))}
    monkeypatch.setattr(resizing, "MOST_SHARES", 0)
    voted = {size: np.asarray(resize_map(labels, size, "labels")) for size in exact}
    assert (voted[80, 40] == exact[80, 40]).all() and (voted[240, 60] == exact[240, 60]).all()
    regions = labels.resize((8, 8), Image.Resampling.NEAREST).resize((240, 240), Image.Resampling.NEAREST)
    reduced = np.asarray(resize_map(regions, (97, 101), "labels"))
    monkeypatch.undo()
    assert np.mean(reduced == np.asarray(resize_map(regions, (97, 101), "labels"))) > 0.97


@pytest.mark.parametrize("size", [(128, 128), (128, 4000)])
def test_large_maps_of_many_labels_take_bounded_work(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """25 megapixels of 150 labels took 11 s."""
    seen = []
    shares = resizing._shares
    monkeypatch.setattr(resizing, "_shares", lambda mask, size: seen.append(mask.size) or shares(mask, size))
    control_map = resize_map(some_labels(150, 3000), size, "labels")
    assert control_map.size == size and sum(seen) <= resizing.MOST_SHARES


def test_large_maps_of_limbs_are_reduced_before_they_are_traced(monkeypatch: pytest.MonkeyPatch) -> None:
    """25 megapixels took 3 to 37 s."""
    traced, trace = [], cv2.distanceTransformWithLabels
    monkeypatch.setattr(
        cv2, "distanceTransformWithLabels", lambda away, *a, **k: traced.append(away.size) or trace(away, *a, **k)
    )
    for width in (1, 40):
        pixels = np.array(line(20, width, 3000, RED))
        pixels[100:140, 100:140], pixels[50, 50] = BLUE, WALL
        limbs = Image.fromarray(pixels)
        control_map = resize_map(limbs, (600, 600), "skeletons")
        assert colours(control_map) == {(0, 0, 0), RED, BLUE, WALL}
        limb = (np.asarray(control_map) == RED).all(axis=2)
        assert label(limb, connectivity=2).max() == 1, "in pieces"
        expected = max(lit(line(20, width, 3000)).sum() / 25, lit(line(20, 1, 600)).sum())
        assert 0.9 * expected <= limb.sum() <= 1.2 * expected
    assert len(traced) >= 2 and max(traced) <= resizing.MOST_TRACED


def test_lost_limbs_are_redrawn_up_to_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    thinned, thin = [], resizing.skeletonize
    monkeypatch.setattr(resizing, "skeletonize", lambda lit: thinned.append(lit.size) or thin(lit))
    bright = Image.fromarray(np.asarray(some_labels(100, 600)) | np.uint8(64))
    resize_map(bright, (30, 30), "skeletons")
    assert len(thinned) > 10
    thinned.clear()
    monkeypatch.setattr(resizing, "MOST_REDRAWN", 5 * 900)
    resize_map(bright, (30, 30), "skeletons")
    assert thinned == [900] * 6, "the map itself and five limbs"


@pytest.mark.parametrize("factor", FACTORS)
@pytest.mark.parametrize("width", [1, 4])
def test_limbs_scale_and_keep_their_colours(factor: float, width: int) -> None:
    for angle in ANGLES:
        limbs = line(angle, width, colour=RED)
        pixels = np.array(limbs)
        pixels[10:14, 10:14] = BLUE
        limbs = Image.fromarray(pixels)
        control_map = resize_map(limbs, scaled(limbs, factor), "skeletons")
        assert colours(control_map) == {(0, 0, 0), RED, BLUE}
        limb = (np.asarray(control_map) == RED).all(axis=2)
        assert label(limb, connectivity=2).max() == 1, f"{angle}°: in pieces"
        expected = lit(line(angle, width)).sum() * factor**2
        least = lit(line(angle, 1, control_map.width)).sum() * 0.9 - 3
        assert max(0.65 * expected, least) <= limb.sum() <= max(1.4 * expected, 2.5 * least), f"{angle}°"


def test_neighbouring_limbs_keep_their_colours_and_widths() -> None:
    pixels = np.zeros((40, 40, 3), np.uint8)
    for left, factor in itertools.product(range(8, 12), FACTORS):
        pixels[:], pixels[:, left : left + 4], pixels[:, left + 4 : left + 8] = 0, RED, BLUE
        size = scaled(Image.fromarray(pixels), factor)
        row = np.asarray(resize_map(Image.fromarray(pixels), size, "skeletons"))[size[1] // 2]
        found = [tuple(int(v) for v in colour) for colour in row]
        for colour in (RED, BLUE):
            assert max(1, 4 * factor - 1) <= found.count(colour) <= 4 * factor + 1
        assert found.index(RED) < found.index(BLUE)
    assert not np.any(resize_map(Image.new("RGB", (40, 40), (30, 30, 30)), (20, 20), "skeletons")), (
        "dark grey is background"
    )


@pytest.mark.parametrize("factor", FACTORS)
def test_dense_maps_keep_their_values(factor: float) -> None:
    ramp = np.tile(np.linspace(0, 255, 240).astype(np.uint8)[:, None], (1, 240))
    control_map = np.asarray(resize_map(Image.fromarray(ramp).convert("RGB"), (round(240 * factor),) * 2, "dense"))
    wanted = np.linspace(0, 255, len(control_map))
    assert np.abs(control_map[:, 5, 0] - wanted).max() < 4
    checks = Image.fromarray((np.indices((240, 240)).sum(0) % 2 * 255).astype(np.uint8)).convert("RGB")
    if factor < 1:
        assert abs(int(np.asarray(resize_map(checks, (60, 60), "dense"))[30, 30, 0]) - 127) < 12, "aliasing"


def test_a_path_keeps_its_ends_branches_and_single_pixels() -> None:
    drawn = np.zeros((40, 40), bool)
    drawn[20, 5:36] = drawn[5:36, 20] = True
    drawn[3, 36] = True
    large = centre_lines(drawn, (160, 160))
    assert label(large, connectivity=2).max() == 2
    assert label(~large, connectivity=1).max() == 1, "a loop at the crossing of the lines"
    rows, columns = np.nonzero(large[30:, :])
    assert columns.min() in (21, 22) and columns.max() in (141, 142) and rows.max() + 30 in (141, 142)
    assert large[12:16, 144:148].sum() == 1
    assert not centre_lines(np.zeros((40, 40), bool), (160, 160)).any()


def test_every_form_is_that_of_a_conditioner() -> None:
    assert {conditioner.form for conditioner in CONDITIONERS} == set(FORMS)
