"""Prompts in the syntax of other tools are told from those in ours."""

import time

import pytest

from controlnet.request.literal import literal_marks


@pytest.mark.parametrize(
    ("prompt", "mark", "words"),
    [
        ("a house <lora:night:0.8>, fog", "<lora:night:0.8>", "lora_weights"),
        ("<lyco:x:1>", "<lyco:x:1>", "lora_weights"),
        ("<hypernet:x:1>", "<hypernet:x:1>", "lora_weights"),
        ("a cat, embedding:bad-hands.pt", "embedding:bad-hands.pt", "no embeddings"),
        ("a cat BREAK a dog", "BREAK", "leave it out"),
        ("a cat AND a dog", "AND", "join with commas"),
        ("a [cat:dog:0.5] on grass", "[cat:dog:0.5]", "same at all steps"),
        ("a [cat::12]", "[cat::12]", "same at all steps"),
        ("a [cat: 0.5 ]", "[cat: 0.5 ]", "same at all steps"),
        ("a [cat|dog] on grass", "[cat|dog]", "choose one"),
        ("a {cat|dog}", "{cat|dog}", "choose one"),
        ("{{masterpiece}}", "{masterpiece}", "(word:1.3)"),
        ("a __colour/warm__ house", "__colour/warm__", "not filled in"),
    ],
)
def test_marks_of_other_tools_are_found(prompt: str, mark: str, words: str) -> None:
    (found,) = literal_marks(["", prompt])
    assert found.startswith(f"{mark} (") and words in found


@pytest.mark.parametrize(
    "prompt",
    [
        "",
        "a (red:1.3) house, [grass], ((sky)), (a:0.7)",
        r"an \[a|b\] and \[a:b:0.5\] in brackets",
        "CATS AND DOGS, BREAK OF DAY",
        "a breakwater and android, handover",
        "16:9, 4:3, a < b > c, the_name, snake__case",
        "time [12:30 pm]",
    ],
)
def test_prompts_of_ours_are_left_alone(prompt: str) -> None:
    assert list(literal_marks([prompt])) == []


def test_each_kind_is_said_once_and_not_at_length() -> None:
    found = list(literal_marks(["<lora:a:1> <lora:b:1> BREAK x", f"<lora:c:1> [{'a' * 1000}|b] BREAK"]))
    assert [text.split(" (")[0] for text in found] == ["<lora:a:1>", "BREAK", f"[{'a' * 39}…"]


def test_what_is_said_stays_on_one_line() -> None:
    (found,) = literal_marks(["<lora:\n50%|\r\ud800:1>"])
    assert found.startswith("<lora: 50%|  :1> (")


@pytest.mark.parametrize(
    "part", ["[", "[a:", "[:1", "[a|", "[a", "{", "{a", "<lora:", "__", "__a", "_a_", "embedding:", "[: ", "[:.1", "A"]
)
def test_no_prompt_takes_long(part: str) -> None:
    started = time.process_time()
    list(literal_marks([part * 50_000, "[:" + part * 50_000, "{" + part * 50_000]))
    assert time.process_time() - started < 5
