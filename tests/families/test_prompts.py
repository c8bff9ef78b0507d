"""Embeddings of prompts: chunks of long prompts, weights of words, clip_skip."""

import copy
import logging
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from support.small_models import parts

from controlnet.bundle import open_bundle
from controlnet.families import sd15
from controlnet.models.tokens import weighted_parts
from controlnet.settings import Settings
from tinyworld.models import TOKENS

LONG = "a red ball " * 40


def encode(prompt: str, negative: str = "", **options) -> tuple[torch.Tensor, torch.Tensor]:
    return embedded(parts(), prompt, negative, **options)


def embedded(base: Mapping[str, Any], *prompts: str, **options: int) -> tuple[torch.Tensor, torch.Tensor]:
    prompt, negative = sd15.encode(base, *prompts, **options).values()
    return prompt, negative


def test_a_short_prompt_gives_the_embedding_of_diffusers() -> None:
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


def test_embeddings_of_both_prompts_have_the_same_length() -> None:
    for pair in (encode(LONG, ""), encode("", LONG), encode("", "")):
        assert pair[0].shape == pair[1].shape


def test_a_long_prompt_is_encoded_without_a_warning(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    tokenizer = copy.deepcopy(parts()["tokenizer"])  # a tokenizer warns only once
    embedded(parts() | {"tokenizer": tokenizer}, LONG, "")
    assert not caplog.records
    tokenizer(LONG)
    assert "longer than the specified maximum" in caplog.text


def ids_of(text: str) -> torch.Tensor:
    """Token ids of a text that fits one chunk, by transformers' own padding."""
    tokenizer = parts()["tokenizer"]
    return tokenizer(text, padding="max_length", max_length=TOKENS, return_tensors="pt").input_ids


def plain(text: str) -> torch.Tensor:
    with torch.no_grad():
        return parts()["text_encoder"](ids_of(text)).last_hidden_state


def weights_in(weighted: str, text: str) -> torch.Tensor:
    """Each token's weight, computed from the embeddings. The begin tokens have weight 1."""
    ratio = (encode(weighted)[0] / encode(text)[0]).median(-1).values.reshape(-1, TOKENS)
    return ratio / ratio[:, :1]


@pytest.mark.parametrize(
    "prompt",
    ["(", ")", "[", "]", "red :( ball", "red ball:1.2)", "red) (ball", "][", "a ([ b", r"C:\red", "1:2", "(red:1.2"],
)
def test_unbalanced_brackets_in_a_prompt_are_plain_text(prompt: str) -> None:
    assert weighted_parts(prompt) == [(prompt, 1)]
    assert torch.equal(encode(prompt)[0], plain(prompt))


@pytest.mark.parametrize("prompt", ["a (red:1) ball", "a ([red]) ball", "a re(d ba:1.0)ll", "(a red:1.0) ball()"])
def test_weights_of_1_change_no_bit_of_the_embedding(prompt: str) -> None:
    assert torch.equal(encode(prompt)[0], plain("a red ball"))


def test_each_token_has_its_weight() -> None:
    found = weights_in("a (red:1.5) [ball] beside ((a blue box):0.5)", "a red ball beside a blue box")
    expected = torch.ones(1, TOKENS)
    expected[0, 1:8] = torch.tensor([1, 1.5, 1 / 1.1, 1, 0.55, 0.55, 0.55])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_a_word_keeps_its_weight_across_a_chunk_border() -> None:
    room = TOKENS - 2
    before, letters = "red " * (room - 2), "zyxwv"  # an unknown word is split into its letters
    assert len(parts()["tokenizer"](letters, add_special_tokens=False).input_ids) == len(letters)
    found = weights_in(f"{before}({letters}:1.5) ball", f"{before}{letters} ball")
    expected = torch.ones(2, TOKENS)
    expected[0, room - 1 : room + 1] = 1.5
    expected[1, 1:4] = 1.5
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_weights_keep_the_magnitude_and_the_other_chunks() -> None:
    text = "a red ball " * 20
    weighted, as_is = encode(text + "on (grass:2)")[0], encode(text + "on grass")[0]
    for ours, theirs in zip(weighted.split(TOKENS, 1), as_is.split(TOKENS, 1), strict=True):
        torch.testing.assert_close(ours.abs().mean(), theirs.abs().mean())
    assert torch.equal(weighted[:, : 2 * TOKENS], as_is[:, : 2 * TOKENS])
    assert not torch.equal(weighted[:, 2 * TOKENS :], as_is[:, 2 * TOKENS :])


def test_bfloat16_embeddings_stay_bfloat16_and_exact() -> None:
    encoder = copy.deepcopy(parts()["text_encoder"]).to(torch.bfloat16)
    base = parts() | {"text_encoder": encoder}
    with torch.no_grad():
        expected = encoder(ids_of("a red ball")).last_hidden_state
    ours, _ = embedded(base, "a red ball", "")
    assert ours.dtype == torch.bfloat16 and torch.equal(ours, expected)
    assert embedded(base, "a (red:2) ball", "")[0].dtype == torch.bfloat16


def test_a_weight_raises_and_lowers_the_effect_of_its_word() -> None:
    base = open_bundle(Settings(bundle="tiny")).base()
    colour, far = 2, []  # the token after the first one and "a"
    for weight in (0, 0.5, 1, 1.5, 2, 3):
        red, blue = (f"a ({colour}:{weight}) ball on grass" for colour in ("red", "blue"))
        ours, other = embedded(base, red, blue)
        far.append((ours - other)[:, colour].norm().item())
    assert far[0] == 0 and all(after > before for before, after in pairwise(far)) and far[-1] > 2 * far[2], far


def test_clip_skip_counts_layers_from_the_last() -> None:
    encoder = parts()["text_encoder"]
    with torch.no_grad():
        states = encoder(ids_of("a red ball"), output_hidden_states=True).hidden_states
        expected = encoder.final_layer_norm(states[-2])
    assert torch.equal(encode("a red ball", clip_skip=2)[0], expected)
    assert torch.equal(encode("a red ball", clip_skip=1)[0], plain("a red ball"))
    assert not torch.equal(expected, plain("a red ball"))


def test_clip_skip_holds_for_every_chunk_and_both_prompts() -> None:
    prompt, negative = encode(LONG, "a (red:1.0) ball", clip_skip=2)
    swapped = encode("a red ball", LONG, clip_skip=2)
    assert torch.equal(prompt, swapped[1]) and torch.equal(negative, swapped[0])
    for ours, last in zip(prompt.split(TOKENS, 1), encode(LONG)[0].split(TOKENS, 1), strict=True):
        assert not torch.allclose(ours, last)
