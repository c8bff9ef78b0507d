"""What script/predict shows: in a terminal and elsewhere, quiet and verbose."""

import re
import sys

import pytest

from controlnet.command.display import Display


def shown(verbose: bool, capsys: pytest.CaptureFixture[str], terminal: bool = False) -> str:
    """What the display prints while a bundle is loaded and a picture made; the seconds are replaced by N."""
    display = Display(verbose)
    display.terminal = terminal
    with display.instead_of_output():
        with display.loading("tiny", "no sd15 weights"):
            print("unet: 7.9 MB")
            print("vae: 3.1 ", end="")
            print("MB")
        print("seed: 7", "ignored: low_threshold (only for canny)", sep="\n", flush=True)
        sys.stderr.write(" 50%|## | 1/2\n\r100%|###| 2/2\n100%|###| 2/2\n")
    display.say("done")
    printed = capsys.readouterr()
    assert printed.out == ""
    return re.sub(r"\d+\.\d s", "N s", printed.err)


def test_quiet_shows_one_line_of_loading_warnings_and_one_bar(capsys: pytest.CaptureFixture[str]) -> None:
    assert shown(False, capsys).splitlines() == [
        "Loaded tiny in N s (no sd15 weights)",
        "ignored: low_threshold (only for canny)",
        "100%|###| 2/2",
        "done",
    ]


def test_verbose_shows_the_whole_log(capsys: pytest.CaptureFixture[str]) -> None:
    assert shown(True, capsys).splitlines() == [
        "unet: 7.9 MB",
        "vae: 3.1 MB",
        "Loaded tiny in N s (no sd15 weights)",
        "seed: 7",
        "ignored: low_threshold (only for canny)",
        "100%|###| 2/2",
        "done",
    ]


def test_a_terminal_shows_loading_and_bar_each_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    over = "\r\x1b[K"
    assert shown(False, capsys, terminal=True).split("\n") == [
        f"{over}Loading tiny{over}Loading tiny: unet: 7.9 MB{over}Loading tiny: vae: 3.1 MB{over}"
        "Loaded tiny in N s (no sd15 weights)",
        "ignored: low_threshold (only for canny)",
        f"{over} 50%|## | 1/2{over}100%|###| 2/2{over}100%|###| 2/2",
        "done",
        "",
    ]


def test_an_error_while_loading_replaces_the_line_of_loading(capsys: pytest.CaptureFixture[str]) -> None:
    display = Display()
    display.terminal = True
    with pytest.raises(ValueError), display.loading("tiny", ""):
        raise ValueError
    display.say("unet is missing")
    assert capsys.readouterr().err == "\r\x1b[KLoading tiny\r\x1b[Kunet is missing\n"


def test_each_picture_has_its_bar(capsys: pytest.CaptureFixture[str]) -> None:
    display = Display()
    for picture in ("1/2", "2/2"):
        for state in ("  0%|   |", "100%|###|", "100%|###|"):
            display.show(f"{state} picture {picture}")
    display.end_line()
    assert capsys.readouterr().err == "100%|###| picture 1/2\n100%|###| picture 2/2\n"
