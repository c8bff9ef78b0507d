"""Windows cover a picture, their weights add up to 1, and no place of a result depends on an edge alone."""

from itertools import pairwise

import pytest
import torch

from controlnet.generation.windows import blended, windows

SIZES = [(16, 17), (20, 33), (63, 100), (64, 8)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("longest", "overlap"), [(16, 4), (16, 8), (16, 0), (24, 6), (64, 16)])
def test_blended_parts_of_a_picture_are_the_picture(size: tuple[int, int], longest: int, overlap: int) -> None:
    whole = torch.rand(2, 3 * size[0], 3 * size[1], generator=torch.Generator().manual_seed(1))
    parts = windows(size, longest, overlap, scale=3)
    made = blended(parts, lambda window: window.of(whole, 3).clone())
    torch.testing.assert_close(made, whole)


@pytest.mark.parametrize("size", SIZES)
def test_windows_are_as_few_as_can_be_and_share_what_they_should(size: tuple[int, int]) -> None:
    rows = list(dict.fromkeys((window.rows.start, window.rows.end) for window in windows(size, 16, 4)))
    assert rows[0][0] == 0 and rows[-1][1] == size[0]
    assert all(end - start == min(16, size[0]) for start, end in rows)
    shared = [end - start for (_, end), (start, _) in pairwise(rows)]
    assert all(share >= 4 for share in shared)
    assert len(rows) == 1 or 16 + 12 * (len(rows) - 2) < size[0], "one window less would do"


def test_a_window_has_little_weight_at_edges_inside_the_picture() -> None:
    first, last = (window.columns for window in windows((8, 26), 16, 6))
    assert first.weights[0] == last.weights[-1] == 1
    assert first.weights[-1] < 0.05 and last.weights[0] < 0.05
    assert (first.weights[-6:].diff() < 0).all()


def test_the_result_of_one_window_is_returned_as_it_is() -> None:
    made = torch.rand(2, 8, 8).half()
    assert blended(windows((8, 8), 8, 2), lambda window: made) is made


def test_results_keep_their_dtype_and_are_added_up_in_float32() -> None:
    made = blended(windows((8, 40), 8, 4), lambda window: torch.full((1, 8, 8), 3.0).half())
    assert made.dtype == torch.float16 and (made == 3).all()
