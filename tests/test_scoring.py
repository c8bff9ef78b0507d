import numpy as np
import pytest

from controlnet.scoring import edge_f1


def line(x: int, height: int = 64) -> np.ndarray:
    edges = np.zeros((64, 64), bool)
    edges[:height, x] = True
    return edges


@pytest.mark.parametrize(("shift", "expected"), [(0, 1), (2, 1), (3, 0)])
def test_edges_match_within_two_pixels(shift: int, expected: float) -> None:
    assert edge_f1(line(20), line(20 + shift)) == expected


def test_half_of_the_edges_drawn_is_recall_one_half() -> None:
    assert edge_f1(line(20, height=32), line(20)) == pytest.approx(2 * (34 / 64) / (1 + 34 / 64))


def test_nothing_matches_nothing() -> None:
    assert edge_f1(np.zeros((8, 8), bool), line(3)[:8, :8]) == 0 == edge_f1(line(3)[:8, :8], np.zeros((8, 8), bool))
