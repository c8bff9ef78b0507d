"""The metrics of the evaluation, on maps whose score is known."""

import numpy as np
import pytest

from tinyworld.scoring import SSIM_WEIGHTS, depth_error, edge_f1, mean_iou, ms_ssim, normal_error, pck


def line(x: int, height: int = 64) -> np.ndarray:
    edges = np.zeros((64, 64), bool)
    edges[:height, x] = True
    return edges


@pytest.mark.parametrize(("shift", "expected"), [(0, 1), (2, 1), (3, 0)])
def test_edges_match_within_two_pixels(shift: int, expected: float) -> None:
    assert edge_f1(line(20), line(20 + shift)) == expected


def test_half_of_the_wanted_edges_have_a_recall_of_one_half() -> None:
    assert edge_f1(line(20, height=32), line(20)) == pytest.approx(2 * (34 / 64) / (1 + 34 / 64))


def test_an_empty_edge_map_scores_0() -> None:
    assert edge_f1(np.zeros((8, 8), bool), line(3)[:8, :8]) == 0 == edge_f1(line(3)[:8, :8], np.zeros((8, 8), bool))


NOISE = np.random.default_rng(0).uniform(0, 255, (128, 96))


def test_ms_ssim_is_1_for_equal_maps_and_falls_with_noise() -> None:
    assert ms_ssim(NOISE, NOISE) == pytest.approx(1)
    faint = ms_ssim(NOISE + np.random.default_rng(1).normal(0, 20, NOISE.shape), NOISE)
    strong = ms_ssim(NOISE + np.random.default_rng(1).normal(0, 80, NOISE.shape), NOISE)
    assert 1 > faint > strong > 0
    assert ms_ssim(255 - NOISE, NOISE) == 0
    assert ms_ssim(NOISE[:16, :16], NOISE[:16, :16]) == pytest.approx(1), "a small picture has fewer scales"


def test_ms_ssim_of_two_flat_maps_is_their_luminance_term() -> None:
    """Contrast and structure agree. The rest is (2ab + c) / (a² + b² + c) to the power of the last scale's weight."""
    c, power = (0.01 * 255) ** 2, SSIM_WEIGHTS[-1]
    expected = ((2 * 100 * 200 + c) / (100**2 + 200**2 + c)) ** power
    assert ms_ssim(np.full((256, 256), 100), np.full((256, 256), 200)) == pytest.approx(expected, abs=1e-5)


def test_depth_may_have_any_scale_and_shift_but_not_be_inverted() -> None:
    assert depth_error(NOISE * 0.01 + 3, NOISE) == pytest.approx((0, 1), abs=1e-6)
    error, score = depth_error(-NOISE, NOISE)
    assert error == pytest.approx(NOISE.std()) and score == pytest.approx(0)
    assert depth_error(np.zeros((4, 4)), np.array([[0, 10]] * 2)[:, :2].repeat(2, 0).repeat(2, 1)) == (5, 0)
    assert depth_error(NOISE, np.full_like(NOISE, 7))[1] == 0


@pytest.mark.parametrize(("degrees", "score"), [(0, 1), (45, 0.5), (90, 0), (120, 0)])
def test_normals_are_compared_by_their_angle(degrees: float, score: float) -> None:
    up = np.tile([0.0, 1.0, 0.0], (8, 8, 1))
    leaning = np.tile([np.sin(np.radians(degrees)), np.cos(np.radians(degrees)), 0], (8, 8, 1))
    assert normal_error(leaning, up) == pytest.approx((degrees, score), abs=1e-6)


def test_mean_iou_is_over_the_classes_of_both_maps() -> None:
    wanted = np.zeros((4, 4), int)
    wanted[:, 2:] = 1
    found = wanted.copy()
    found[0, 3] = 2
    assert mean_iou(wanted, wanted) == 1
    assert mean_iou(found, wanted) == pytest.approx((1 + 7 / 8 + 0) / 3)


def body(left: float, seen: int = 18) -> np.ndarray:
    """Joints down a line 100 pixels high."""
    joints = np.zeros((18, 3))
    joints[:, 0], joints[:, 1] = left, np.linspace(0, 100, 18)
    joints[:seen, 2] = 1
    return joints


def test_pck_accepts_joints_within_a_fifth_of_the_persons_box() -> None:
    assert pck([body(30 + 19.9)], [body(30)]) == 1
    assert pck([body(30 + 20.1)], [body(30)]) == 0
    assert pck([body(30, seen=9)], [body(30)]) == 0.5
    assert pck([], [body(30)]) == 0 == pck([body(30)], [])


def test_pck_counts_each_found_person_once() -> None:
    two = [body(30), body(80)]
    assert pck(two[::-1], two) == 1
    assert pck([body(30)], two) == 0.5
    assert pck([body(30), body(31)], two) == 0.5
