"""The lines of a prediction's log that show its progress."""

import time

import pytest

from controlnet.generation.progress import PictureBar


@pytest.mark.parametrize("pause", [0.0, 0.15], ids=["quick", "slow"])
@pytest.mark.parametrize("steps", [2, 3], ids=["ended early", "whole"])
def test_each_state_is_shown_once_and_the_last_one_always(
    capsys: pytest.CaptureFixture[str], pause: float, steps: int
) -> None:
    """tqdm shows a state only every tenth of a second, and the last one again at the end."""
    with PictureBar("picture 1/1", 3, shown=True) as bar, bar.of_pass()() as progress:
        for _ in range(steps):
            time.sleep(pause)
            progress.update()
    shown = [line.partition("%")[0].strip() for line in capsys.readouterr().err.splitlines()]
    assert len(shown) == len({*shown})
    assert (shown[0], shown[-1]) == ("0", {2: "67", 3: "100"}[steps])


def test_each_picture_has_lines_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    for i in (1, 2):
        with PictureBar(f"picture {i}/2", 1, shown=True) as bar, bar.of_pass()() as progress:
            progress.update()
    lines = capsys.readouterr().err.splitlines()
    assert [(line[:4].strip(), line[-12:-1]) for line in lines] == [
        ("0%", "picture 1/2"),
        ("100%", "picture 1/2"),
        ("0%", "picture 2/2"),
        ("100%", "picture 2/2"),
    ]
