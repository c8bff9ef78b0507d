"""Prompts as tokens: the syntax of weights, and what is too long or too heavy."""

import re
import time

import pytest
from support.small_models import parts

from controlnet.models.tokens import MOST_CHUNKS, PromptError, chunks_of, prompt_fault, weighted_parts
from tinyworld.models import TOKENS


def fault(prompt: str, negative: str = "", clip_skip: int = 1) -> str | None:
    return prompt_fault((prompt, negative), clip_skip, parts()["tokenizer"], layers=2)


def test_the_longest_prompt_passes_and_one_word_more_is_refused() -> None:
    words = (TOKENS - 2) * MOST_CHUNKS
    assert len(chunks_of("red " * words, parts()["tokenizer"])) == MOST_CHUNKS and fault("red " * words) is None
    assert f"at most {words} tokens (a word is one or two), but it has {words + 1} tokens" in fault(
        "", "red " * (words + 1)
    )
    assert "5000000 characters" in fault("x" * 5_000_000)


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a red ball", [("a red ball", 1)]),
        ("", []),
        ("()[](:2)(([]))", []),
        ("a (red) ball", [("a ", 1), ("red", 1.1), (" ball", 1)]),
        ("((red))", [("red", 1.21)]),
        ("[red]", [("red", 0.909091)]),
        ("[[red]]", [("red", 0.826446)]),
        ("(red:1.25)", [("red", 1.25)]),
        ("(red: .5 ) (ball:2.)", [("red", 0.5), (" ", 1), ("ball", 2)]),
        ("(red:0)(ball:3)", [("red", 0), ("ball", 3)]),
        ("(red (ball:1.5) on:0.5) grass", [("red ", 0.5), ("ball", 0.75), (" on", 0.5), (" grass", 1)]),
        ("(red [ball])", [("red ", 1.1), ("ball", 1)]),
        ("((([[[red]]])))", [("red", 1)]),
        ("(a [b) c]", [("a ", 1.1), ("b", 1), (" c", 0.909091)]),
        ("(red)(ball:1.1)", [("redball", 1.1)]),
        (r"\(red\) \[ball\] \\ (a\):2)", [(r"(red) [ball] \ ", 1), ("a)", 2)]),
        (r"\\(red)", [("\\", 1), ("red", 1.1)]),
    ],
)
def test_the_syntax_of_prompt_weights(prompt: str, expected: list) -> None:
    assert weighted_parts(prompt) == expected


def test_an_unbalanced_bracket_keeps_the_other_weights() -> None:
    assert weighted_parts("((red) ball") == [("(", 1), ("red", 1.1), (" ball", 1)]
    assert weighted_parts("(red)) [ball") == [("red", 1.1), (") [ball", 1)]
    assert weighted_parts("(red:1.2.3)") == [("red:1.2.3", 1.1)]


@pytest.mark.parametrize(
    "prompt", ["(red:3.1)", "a ((red:2) ball:2)", "(red:-1)", "(" * 12 + "red" + ")" * 12, "(16:9)"]
)
def test_a_prompt_weight_out_of_range_is_refused(prompt: str) -> None:
    for pair in ((prompt, ""), ("", prompt)):
        assert re.search(r'^Weights in a prompt must be 0 to 3 .*"(red|16)" has [-\d.]+: .*\.$', fault(*pair))


@pytest.mark.parametrize(("word", "weight"), [("red", "inf"), ("(red:0)", "nan")])
def test_a_weight_that_overflows_by_nesting_is_refused(word: str, weight: str) -> None:
    with pytest.raises(PromptError, match=f'"red" has {weight}'):
        weighted_parts("(" * 9000 + word + ")" * 9000)


@pytest.mark.parametrize("clip_skip", [0, 3, -1, 12])
def test_clip_skip_beyond_the_layers_is_refused(clip_skip: int) -> None:
    sentence = fault("a red ball", clip_skip=clip_skip)
    assert re.search(rf"1 \(the last layer\) to 2, .* has 2 layers, but it is {clip_skip}\.$", sentence)
    assert fault("a red ball", clip_skip=2) is None


@pytest.mark.parametrize(
    "prompt",
    [
        "(" * 100_000,
        "(" * 50_000 + ")" * 50_000,
        "[)" * 50_000,
        "([)]" * 25_000,
        "(:1.1)" * 16_000,
        "(a)[b]" * 16_000,
        ":" + " " * 100_000,
        ":" + "1" * 100_000,
        ":1." + "1" * 100_000,
        "\\" * 100_000,
    ],
    ids=lambda prompt: prompt[:6],
)
def test_a_flood_of_brackets_is_read_in_linear_time(prompt: str) -> None:
    began = time.process_time()
    weighted_parts(prompt)
    assert "characters" in fault(prompt)
    assert time.process_time() - began < 1


def test_brackets_do_not_bypass_the_limit_of_tokens() -> None:
    words = (TOKENS - 2) * MOST_CHUNKS
    assert len(chunks_of("(red:1.1) [red]" * (words // 2), parts()["tokenizer"])) == MOST_CHUNKS
    for one_more in ("(red:1.1)[red]" * (words // 2) + "red", "(" * (words + 1), "(" + "red " * (words + 1) + ")"):
        assert f"has {words + 1} tokens" in fault(one_more)
