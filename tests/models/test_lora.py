"""LoRAs act as diffusers' own loader makes them act, on copies, completely or not at all."""

import hashlib
import resource
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from random_loras import Layers, save_kohya
from safetensors.torch import load_file, save_file
from support.loras import save_diffusers, saved_by_diffusers, tiny_pipeline
from torch import nn

from controlnet.models.lora import AdaptedBase, _check_room, _fitting, adapted, check_fit
from controlnet.speedups.forms import in_fast_forms
from controlnet.weights.lora_files import Lora, LoraError


def lora(file: Path, scale: float = 1.0) -> Lora:
    return Lora(file, hashlib.sha256(file.read_bytes()).hexdigest(), scale)


def outputs(parts: Mapping[str, Any]) -> list[torch.Tensor]:
    """What the text encoder and the UNet make of the same random inputs."""
    draw = torch.Generator().manual_seed(1)
    tokens = torch.randint(0, 400, (1, 32), generator=draw)
    latents = torch.randn((1, 8, 16, 16), generator=draw)
    with torch.no_grad():
        words = parts["text_encoder"](tokens).last_hidden_state
        return [words, parts["unet"](latents, 500, encoder_hidden_states=words).sample]


def distance(first: list[torch.Tensor], second: list[torch.Tensor]) -> float:
    return max(float((a - b).abs().max()) for a, b in zip(first, second, strict=True))


def by_diffusers(file: Path, scale: float) -> list[torch.Tensor]:
    pipeline = tiny_pipeline()
    pipeline.load_lora_weights(str(file), adapter_name="one")
    pipeline.set_adapters(["one"], [scale])
    return outputs({"unet": pipeline.unet, "text_encoder": pipeline.text_encoder})


@pytest.mark.parametrize("scale", [1.0, -0.5])
def test_both_layouts_act_as_in_diffusers(tmp_path: Path, base: dict, layers: dict, scale: float) -> None:
    file = save_diffusers(tmp_path / "a.safetensors", layers)
    kohya = save_kohya(tmp_path / "b.safetensors", layers, alpha=2.0)
    expected = by_diffusers(file, scale)
    for each in (file, kohya):
        got = outputs(adapted(base, [lora(each, scale)]))
        assert distance(got, expected) < 1e-4
        assert distance(got, outputs(base)) > 0.1
    assert distance(by_diffusers(kohya, scale), expected) < 1e-4


def test_the_base_is_not_changed_and_shares_what_the_lora_leaves(tmp_path: Path, base: dict, layers: dict) -> None:
    def numbers(network: nn.Module) -> dict[str, torch.Tensor]:
        return {name: tensor.clone() for name, tensor in network.state_dict().items()}

    before, plain = {name: numbers(base[name]) for name in layers}, outputs(base)
    parts = adapted(base, [lora(save_diffusers(tmp_path / "a.safetensors", layers))])
    assert distance(outputs(base), plain) == 0
    for name, own in before.items():
        now = base[name].state_dict()
        assert now.keys() == own.keys() and all(torch.equal(now[key], own[key]) for key in own)
        changed = {f"{key}.weight" for key in layers[name]}
        for key, tensor in parts[name].state_dict().items():
            assert (tensor.data_ptr() == now[key].data_ptr()) is (key not in changed), key


def test_the_copy_has_the_layers_of_the_original(tmp_path: Path, base: dict, layers: dict) -> None:
    """So what replaces layers (controlnet/speedups) finds them, and a request with a LoRA is as fast."""
    parts = adapted(base, [lora(save_diffusers(tmp_path / "a.safetensors", layers))])
    for name in layers:
        assert [type(m) for m in parts[name].modules()] == [type(m) for m in base[name].modules()]
    plain = outputs(parts)
    with in_fast_forms([parts["unet"]]) as complete:
        assert complete
        assert distance(outputs(parts), plain) < 1e-4


def test_two_loras_act_together_in_either_order(tmp_path: Path, base: dict, layers: dict) -> None:
    first = lora(save_diffusers(tmp_path / "a.safetensors", {"unet": layers["unet"]}), 0.5)
    second = lora(save_diffusers(tmp_path / "b.safetensors", {"text_encoder": layers["text_encoder"]}))
    kept = AdaptedBase(base)
    both = outputs(kept.of([first, second]))
    assert kept.of([second, first]) is kept.of([first, second])
    assert distance(both, outputs(kept.of([first]))) > 0.01
    assert distance(both, outputs(kept.of([second]))) > 0.01
    assert distance(both, outputs(kept.of([second, first]))) == 0


def test_without_effect_it_is_the_base_itself(tmp_path: Path, base: dict, layers: dict) -> None:
    kept, file = AdaptedBase(base), save_diffusers(tmp_path / "a.safetensors", layers)
    assert kept.of([]) is base
    assert kept.of([lora(file, 0.0)]) is base


def test_an_interrupted_change_leaves_nothing(
    tmp_path: Path, base: dict, layers: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, file = AdaptedBase(base), save_diffusers(tmp_path / "a.safetensors", layers)
    expected, plain = outputs(kept.of([lora(file)])), outputs(base)

    def cancelled(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr("controlnet.models.lora.recurse_remove_peft_layers", cancelled)
        kept.of([lora(file, 0.7)])
    assert distance(outputs(kept.of([])), plain) == 0
    assert distance(outputs(kept.of([lora(file, 0.7)])), outputs(adapted(base, [lora(file, 0.7)]))) == 0
    assert distance(outputs(kept.of([lora(file)])), expected) == 0


def test_a_layer_without_a_place_is_refused(tmp_path: Path, base: dict, layers: dict) -> None:
    down, up = next(iter(layers["unet"].values()))
    unet = layers["unet"] | {"down_blocks.7.attentions.0.to_q": (down.clone(), up.clone())}
    file = save_diffusers(tmp_path / "a.safetensors", {"unet": unet})
    with pytest.raises(LoraError, match=rf"only {len(unet) - 1} of its {len(unet)} layers fit"):
        adapted(base, [lora(file)])


def test_a_layer_of_another_shape_is_refused(tmp_path: Path, base: dict, layers: dict) -> None:
    name = next(iter(layers["unet"]))
    down, up = layers["unet"][name]
    wrong = layers["unet"] | {name: (torch.cat([down, down], 1), up)}
    with pytest.raises(LoraError, match=rf"only {len(wrong) - 1} of its {len(wrong)} layers fit"):
        adapted(base, [lora(save_diffusers(tmp_path / "a.safetensors", {"unet": wrong}))])


def test_half_a_layer_is_refused(tmp_path: Path, base: dict, layers: dict) -> None:
    file = save_diffusers(tmp_path / "a.safetensors", layers)
    tensors = load_file(file)
    del tensors[next(name for name in tensors if "lora_A" in name)]
    save_file(tensors, file)
    with pytest.raises(LoraError, match=r"only \d+ of its \d+ layers fit"):
        adapted(base, [lora(file)])


def test_no_tensor_of_a_file_that_does_not_fit_is_read(
    tmp_path: Path, base: dict, layers: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    down, up = next(iter(layers["unet"].values()))
    unet = layers["unet"] | {"down_blocks.7.attentions.0.to_q": (down.clone(), up.clone())}
    monkeypatch.setattr("controlnet.models.lora.safe_open", lambda *_: pytest.fail("it was read"))
    with pytest.raises(LoraError, match="layers fit"):
        adapted(base, [lora(save_diffusers(tmp_path / "a.safetensors", {"unet": unet}))])


def enormous(base: dict, dtype: torch.dtype, size: int) -> dict[str, torch.Tensor]:
    """A LoRA for one layer, with about `size` numbers."""
    name = next(name for name, _ in base["unet"].named_modules() if name.endswith("attn2.to_q"))
    out, inputs = base["unet"].get_submodule(name).weight.shape
    rank = size // (out + inputs)
    shapes = {f"unet.{name}.lora_A.weight": (rank, inputs), f"unet.{name}.lora_B.weight": (out, rank)}
    return {key: torch.zeros(shape, dtype=dtype) for key, shape in shapes.items()}


def test_what_takes_too_much_memory_is_refused_before_it_is_read(tmp_path: Path, base: dict) -> None:
    """A file of 490 MB of 8-bit numbers fits, and would take 2 GB in float32."""
    file = tmp_path / "a.safetensors"
    save_file(enormous(base, torch.float8_e4m3fn, 490 * 10**6), file)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(LoraError, match=r"takes up to 1\.5 GB in memory, got one of 2\.0 GB"):
        check_fit(base, Lora(file, "", 1.0))
    with pytest.raises(LoraError, match=r"takes up to 1\.5 GB"):
        adapted(base, [Lora(file, "", 1.0)])
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < 200e6


def test_numbers_that_are_whole_are_refused_and_whole_alphas_are_not(tmp_path: Path, base: dict, layers: dict) -> None:
    file = tmp_path / "a.safetensors"
    save_file(enormous(base, torch.int8, 10_000), file)
    with pytest.raises(LoraError, match=r"no floating-point ones \(I8\)"):
        check_fit(base, Lora(file, "", 1.0))
    kohya = save_kohya(file, layers, alpha=2.0)
    expected = outputs(adapted(base, [lora(kohya)]))
    tensors = {name: tensor.long() if name.endswith("alpha") else tensor for name, tensor in load_file(file).items()}
    save_file(tensors, file)
    check_fit(base, lora(file))
    assert distance(outputs(adapted(base, [lora(file)])), expected) == 0


def test_numbers_of_8_bits_act(tmp_path: Path, base: dict, layers: dict) -> None:
    file = save_diffusers(tmp_path / "a.safetensors", layers)
    save_file({name: tensor.to(torch.float8_e5m2) for name, tensor in load_file(file).items()}, file)
    assert distance(outputs(adapted(base, [lora(file)])), outputs(base)) > 0.1


def test_a_lora_of_an_embedding_is_refused(tmp_path: Path, base: dict, layers: dict) -> None:
    """diffusers loads it, and it does not act."""
    file = save_diffusers(tmp_path / "a.safetensors", {"text_encoder": layers["text_encoder"]})
    words, width = base["text_encoder"].get_input_embeddings().weight.shape
    name = "text_encoder.embeddings.token_embedding"
    extra = {f"{name}.lora_embedding_A": torch.ones(4, words), f"{name}.lora_embedding_B": torch.ones(width, 4)}
    save_file(load_file(file) | extra, file)
    with pytest.raises(LoraError, match=r"only \d+ of its \d+ layers fit"):
        check_fit(base, lora(file))


def test_a_file_without_ranks_is_refused(tmp_path: Path, base: dict) -> None:
    file = tmp_path / "a.safetensors"
    save_file(enormous(base, torch.float32, 0), file)
    with pytest.raises(LoraError, match="its layers do not fit"):
        check_fit(base, lora(file))


@pytest.mark.parametrize("extra", [{"use_dora": True}, {"lora_bias": True}])
def test_what_diffusers_writes_fits(tmp_path: Path, base: dict, extra: dict[str, Any]) -> None:
    """Magnitudes and biases too, of linear layers and of convolutions."""
    config = LoraConfig(r=2, target_modules=["to_out.0", "conv1", "conv_shortcut"], init_lora_weights=False, **extra)
    file = saved_by_diffusers(tmp_path, config)
    assert distance(outputs(adapted(base, [lora(file)])), outputs(base)) > 0
    tensors = load_file(file)
    (name, *_) = (name for name in tensors if "magnitude" in name or "bias" in name)
    save_file({key: tensor for key, tensor in tensors.items() if key != name}, file)
    with pytest.raises(LoraError, match=r"only \d+ of its \d+ layers fit"):
        check_fit(base, lora(file))


def test_a_bias_for_a_layer_without_one_is_refused(tmp_path: Path, base: dict) -> None:
    file = saved_by_diffusers(tmp_path, LoraConfig(r=2, target_modules=["to_q", "conv1"], lora_bias=True))
    with pytest.raises(LoraError, match=r"only \d+ of its \d+ layers fit"):
        check_fit(base, lora(file))


def test_no_thread_is_started(tmp_path: Path, base: dict, layers: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers' own loader of adapters starts some. A cancellation could then end another thread."""
    monkeypatch.setattr("threading.Thread.start", lambda self: pytest.fail("a thread"))
    adapted(base, [lora(save_diffusers(tmp_path / "a.safetensors", layers))])


def test_numbers_that_are_none_are_refused(tmp_path: Path, base: dict, layers: dict) -> None:
    file = save_diffusers(tmp_path / "a.safetensors", layers)
    tensors = load_file(file)
    tensors[next(iter(tensors))][0] = float("nan")
    save_file(tensors, file)
    with pytest.raises(LoraError, match="broken"):
        adapted(base, [lora(file)])


def test_a_lora_without_room_on_the_gpu_is_refused_before_it_is_read(
    base: dict[str, Any], layers: dict[str, Layers], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = lora(save_diffusers(tmp_path / "one.safetensors", layers))
    two = lora(save_diffusers(tmp_path / "two.safetensors", {"unet": layers["unet"]}))
    parts = [part for each in (one, two) for part in _fitting(each, base)]
    changed = [base[name].get_submodule(layer).weight for name, own in layers.items() for layer in own]
    needed = sum(weight.nbytes for weight in changed)
    free = {"bytes": needed - 1000}
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free["bytes"], 0))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 3000)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 2001)
    with pytest.raises(LoraError, match=r"lora_weights: it changes 0.0 GB of weights, and this server's GPU has"):
        _check_room(parts, torch.device("cuda"))
    free["bytes"] += 1
    _check_room(parts, torch.device("cuda"))
