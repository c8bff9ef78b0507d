"""A LoRA acts as strongly as the header of its file says, as in diffusers."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from random_loras import save_kohya
from safetensors.torch import load_file, save_file
from support.loras import (
    apart,
    by_diffusers,
    save_diffusers,
    saved_by_diffusers,
    tiny_pipeline,
    trained,
    weights_of,
)

from controlnet.models.lora import adapted
from controlnet.models.lora_strength import header_strengths
from controlnet.weights.lora_files import Lora, LoraError

UNET = ["to_q", "to_k", "to_v", "to_out.0"]
FIRST = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_v"


def lora(file: Path, scale: float = 1.0) -> Lora:
    return Lora(file, file.read_bytes().hex()[:64], scale)


CONFIGS: dict[str, dict[str, Any]] = {
    "alpha": {"lora_alpha": 16},
    "patterns": {
        "lora_alpha": 16,
        "rank_pattern": {"to_q": 2},
        "alpha_pattern": {"to_k": 1, FIRST: 3, "attn2.*to_v": 5},
    },
    "stabilized": {"lora_alpha": 16, "use_rslora": True},
    "magnitudes": {"lora_alpha": 16, "use_dora": True},
    "biases": {"lora_alpha": 16, "lora_bias": True, "target_modules": ["to_out.0"]},
}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_the_header_decides_as_in_diffusers(tmp_path: Path, base: dict, config: dict) -> None:
    file = saved_by_diffusers(tmp_path, LoraConfig(**{"r": 4, "target_modules": UNET} | config))
    got, expected = weights_of(adapted(base, [lora(file)])), by_diffusers(file)
    assert apart(got, expected) == 0
    save_file(load_file(file), tmp_path / "weak.safetensors")
    weak = adapted(base, [lora(tmp_path / "weak.safetensors")])
    assert apart(got, weights_of(weak)) > 0.05, "the header changes nothing"


@pytest.mark.parametrize("own_names", [False, True], ids=["names of peft", "names of diffusers"])
def test_the_text_encoder_has_its_own_settings(tmp_path: Path, base: dict, own_names: bool) -> None:
    unet = LoraConfig(r=4, lora_alpha=16, target_modules=UNET)
    text = LoraConfig(
        r=8, lora_alpha=2, target_modules=["q_proj", "v_proj", "out_proj", "fc1"], alpha_pattern={"fc1": 24}
    )
    file = saved_by_diffusers(tmp_path, unet, text, own_names)
    got = weights_of(adapted(base, [lora(file)]))
    assert apart(got, by_diffusers(file)) == 0
    assert apart(
        {k: v for k, v in got.items() if "fc1" in k}, {k: v for k, v in weights_of(base).items() if "fc1" in k}
    )


def test_what_the_unet_alone_saves_is_for_the_unet(tmp_path: Path, base: dict) -> None:
    pipeline = tiny_pipeline()
    trained(pipeline.unet, LoraConfig(r=4, lora_alpha=16, target_modules=UNET))
    pipeline.unet.save_lora_adapter(str(tmp_path))
    file, reader = tmp_path / "pytorch_lora_weights.safetensors", tiny_pipeline()
    reader.unet.load_lora_adapter(str(file), prefix=None, use_safetensors=True)  # else it skips the header
    reader.unet.fuse_lora()
    reader.unet.unload_lora()
    expected = weights_of({"unet": reader.unet, "text_encoder": reader.text_encoder})
    assert apart(expected, weights_of(base)) > 0.05
    assert apart(weights_of(adapted(base, [lora(file)])), expected) == 0


def test_alphas_among_the_tensors_are_of_their_layers(tmp_path: Path, base: dict, layers: dict) -> None:
    """diffusers takes the commonest of them for layers of attention, whatever the file says."""
    file = save_kohya(tmp_path / "a.safetensors", layers, alpha=2.0)
    tensors = load_file(file)
    for i, name in enumerate(name for name in tensors if name.endswith(".alpha")):
        tensors[name] = torch.tensor(1.0 + i % 4)
    del tensors[next(name for name in tensors if name.endswith(".alpha"))]  # then it is the rank
    save_file(tensors, file, {"lora_adapter_metadata": json.dumps({"unet.r": 4, "unet.lora_alpha": 100})})
    expected = weights_of(base)
    for network, own in layers.items():
        for name in own:
            stem = {"unet": "lora_unet_", "text_encoder": "lora_te_text_model_"}[network] + name.replace(".", "_")
            down, up = tensors[f"{stem}.lora_down.weight"], tensors[f"{stem}.lora_up.weight"]
            factor = 0.5 * float(tensors.get(f"{stem}.alpha", torch.tensor(4.0))) / 4
            weight = expected[f"{network}.{name}.weight"]
            weight += (up.flatten(1) @ down.flatten(1)).reshape(weight.shape) * factor
    assert apart(weights_of(adapted(base, [lora(file, 0.5)])), expected) < 1e-6


def with_header(folder: Path, layers: Any, settings: Any) -> Lora:
    file = save_diffusers(folder / "a.safetensors", {"unet": layers["unet"]})
    written = settings if isinstance(settings, str) else json.dumps(settings)
    save_file(load_file(file), file, {"lora_adapter_metadata": written})
    return lora(file)


@pytest.mark.parametrize(
    "settings",
    [
        "no JSON",
        "[" * 100_000,
        "5",
        {"unet.r": "four"},
        {"unet.r": 4, "unet.lora_alpha": float("nan")},
        '{"unet.r": 4, "unet.lora_alpha": 1' + 400 * "0" + "}",
        {"unet.r": 4, "unet.alpha_pattern": ["to_q"]},
        {"unet.r": 4, "unet.alpha_pattern": {"to_q": "much"}},
        {"unet.r": 4, "unet.alpha_pattern": {"(to_q": 1}},
    ],
    ids=lambda settings: str(settings)[:40],
)
def test_settings_that_cannot_be_read_are_refused(tmp_path: Path, base: dict, layers: dict, settings: Any) -> None:
    with pytest.raises(LoraError, match=r"^lora_weights: .*header has broken settings \(lora_adapter_metadata\)[.]$"):
        adapted(base, [with_header(tmp_path, layers, settings)])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"unet.r": 8, "unet.lora_alpha": 8}, "layers of rank 4 have rank 8"),
        ({"unet.r": 4, "unet.rank_pattern": {"to_k": 16}}, "layers of rank 4 have rank 16"),
        ({"unet.r": 4, "unet.init_lora_weights": "pissa"}, "another kind of adapter ('init_lora_weights=pissa'"),
        ({"unet.r": 4, "unet.use_dora": True}, "another kind of adapter ('use_dora'"),
        ({"unet.r": 4, "unet.kasa_config": {"a": 1}}, "another kind of adapter ('kasa_config'"),
    ],
)
def test_settings_of_something_else_are_refused(
    tmp_path: Path, base: dict, layers: dict, settings: dict, words: str
) -> None:
    with pytest.raises(LoraError) as refused:
        adapted(base, [with_header(tmp_path, layers, settings)])
    assert words in str(refused.value)


@pytest.mark.parametrize("pattern", ["(a+)+b", "(.*a)*b", "(a|a)*b", ".*.*.*a", "a" * 1000, "a{1000000}"])
def test_a_pattern_that_may_take_for_ever_is_refused(pattern: str) -> None:
    settings = {"unet.r": 4, "unet.alpha_pattern": {pattern: 1}}
    with pytest.raises(LoraError, match="broken settings"):
        header_strengths(
            Lora(Path(), "", 1.0), {"lora_adapter_metadata": json.dumps(settings)}, "unet", {"a" * 60: 4}, False
        )


def test_as_many_patterns_as_take_long_are_refused() -> None:
    for patterns in ([f"to_{i}" for i in range(3000)], [f".*to_{i}" for i in range(40)]):
        settings = {"unet.r": 4, "unet.alpha_pattern": dict.fromkeys(patterns, 1)}
        with pytest.raises(LoraError, match="broken settings"):
            header_strengths(
                Lora(Path(), "", 1.0), {"lora_adapter_metadata": json.dumps(settings)}, "unet", {"to_q": 4}, False
            )
