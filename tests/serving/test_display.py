"""What script/predict shows of a log: in a terminal and elsewhere, quiet and verbose."""

import re

import pytest

from controlnet.serving.display import Display

LOG = [
    ("coglet", "Worker starting setup"),
    ("setup", "unet: 7.9 MB"),
    ("user", "vae: 3.1 MB"),
]
REQUEST = [
    ("coglet", "Starting prediction"),
    ("prediction", "seed: 7"),
    ("prediction", "ignored: low_threshold (only for canny)"),
    ("prediction", " 50%|## | 1/2"),
    ("prediction", "100%|###| 2/2"),
    ("prediction", "100%|###| 2/2"),
]


def shown(display: Display, capsys: pytest.CaptureFixture[str], terminal: bool = False) -> str:
    """What the display prints for a log; the seconds are replaced by N."""
    display.terminal = terminal
    display.start_loading("tiny")
    for source, text in LOG:
        display.show(source, text)
    display.loaded("no sd15 weights")
    for source, text in REQUEST:
        display.show(source, text)
    display.say("done")
    return re.sub(r"\d+\.\d s", "N s", capsys.readouterr().err)


def test_quiet_shows_one_line_of_loading_warnings_and_one_bar(capsys: pytest.CaptureFixture[str]) -> None:
    assert shown(Display(), capsys).splitlines() == [
        "Loaded tiny in N s (no sd15 weights)",
        "ignored: low_threshold (only for canny)",
        "100%|###| 2/2",
        "done",
    ]


def test_verbose_shows_the_whole_log(capsys: pytest.CaptureFixture[str]) -> None:
    assert shown(Display(verbose=True), capsys).splitlines() == [
        "[coglet] Worker starting setup",
        "unet: 7.9 MB",
        "vae: 3.1 MB",
        "Loaded tiny in N s (no sd15 weights)",
        "[coglet] Starting prediction",
        "seed: 7",
        "ignored: low_threshold (only for canny)",
        "100%|###| 2/2",
        "done",
    ]


def test_a_terminal_shows_loading_and_bar_each_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    lines = shown(Display(), capsys, terminal=True).split("\n")
    over = "\r\x1b[K"
    assert lines == [
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
    display.start_loading("tiny")
    display.say("unet is missing")
    assert capsys.readouterr().err == "\r\x1b[KLoading tiny\r\x1b[Kunet is missing\n"


def test_each_picture_has_its_bar(capsys: pytest.CaptureFixture[str]) -> None:
    display = Display()
    for picture in ("1/2", "2/2"):
        for state in ("  0%|   |", "100%|###|", "100%|###|"):
            display.show("prediction", f"{state} picture {picture}")
    display.end_line()
    assert capsys.readouterr().err == "100%|###| picture 1/2\n100%|###| picture 2/2\n"


def test_catching_up_shows_no_line_twice(capsys: pytest.CaptureFixture[str]) -> None:
    display = Display()
    display.show("prediction", "one")
    display.catch_up("one\ntwo\nthr", complete=False)
    display.catch_up("one\ntwo\nthree\r\nfour")
    display.show("prediction", "four")  # arrives late
    assert capsys.readouterr().err == "one\ntwo\nthree\nfour\n"
