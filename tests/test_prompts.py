import pytest
import torch
from diffusers import StableDiffusionPipeline
from small_models import parts

from controlnet.prompts import MOST_CHUNKS, PromptError, encode_prompts
from tinyworld.models import TOKENS

LONG = "a red ball " * 40


def encode(prompt: str, negative: str = "") -> tuple[torch.Tensor, torch.Tensor]:
    return encode_prompts(prompt, negative, parts()["tokenizer"], parts()["text_encoder"])


def test_a_short_prompt_gives_what_diffusers_computes() -> None:
    small = parts()
    names = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
    pipeline = StableDiffusionPipeline(
        **{name: small[name] for name in names},
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    expected = pipeline.encode_prompt("a red ball", "cpu", 1, True, "a blue box")
    for ours, theirs in zip(encode("a red ball", "a blue box"), expected, strict=True):
        assert torch.equal(ours, theirs)


def test_a_long_prompt_is_used_to_its_end() -> None:
    embedded, _ = encode(LONG + "on grass")
    other, _ = encode(LONG + "in a green room")
    assert embedded.shape[1] > TOKENS and embedded.shape[1] % TOKENS == 0
    assert not torch.equal(embedded[:, -TOKENS:], other[:, -TOKENS:])
    assert torch.equal(embedded[:, :TOKENS], other[:, :TOKENS])


def test_both_prompts_have_one_length() -> None:
    for pair in (encode(LONG, ""), encode("", LONG), encode("", "")):
        assert pair[0].shape == pair[1].shape


def test_a_long_prompt_is_encoded_without_a_warning(caplog) -> None:
    encode(LONG)
    assert not caplog.records


def test_the_longest_prompt_passes_and_one_word_more_is_refused() -> None:
    words = (TOKENS - 2) * MOST_CHUNKS
    assert encode("red " * words)[0].shape[1] == MOST_CHUNKS * TOKENS
    with pytest.raises(PromptError, match=f"at most {words} tokens .* has {words + 1} tokens"):
        encode("", "red " * (words + 1))
    with pytest.raises(PromptError, match="5000000 characters"):
        encode("x" * 5_000_000)
