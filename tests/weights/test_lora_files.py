"""A LoRA that cannot be put on completely is refused with the name of what it is."""

from pathlib import Path

import pytest

from controlnet.weights.lora_files import Lora, LoraError, check_lora, lora_fault

UNET = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
KOHYA = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"


def fault(*names: str, width: int = 768, metadata: dict[str, str] | None = None, prompt_width: int = 768) -> str | None:
    return lora_fault(dict.fromkeys(names, (4, width)), metadata or {}, prompt_width)


@pytest.mark.parametrize(
    "names",
    [
        (f"unet.{UNET}.lora_A.weight", f"unet.{UNET}.lora_B.weight"),
        (f"unet.{UNET}.lora.down.weight", f"unet.{UNET}.lora.up.weight"),
        (f"{KOHYA}.lora_down.weight", f"{KOHYA}.lora_up.weight", f"{KOHYA}.alpha"),
        ("unet.mid_block.attentions.0.transformer_blocks.0.attn1.processor.to_q_lora.down.weight",),
    ],
)
def test_loras_for_this_base_are_taken(names: tuple[str, ...]) -> None:
    assert fault(*names) is None


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ((f"{KOHYA}.hada_w1_a",), "a LoHa"),
        ((f"{KOHYA}.lokr_w1",), "a LoKr"),
        ((f"{KOHYA}.lora_down.weight", f"{KOHYA}.dora_scale"), "a DoRA"),
        ((f"{KOHYA}.oft_blocks",), "an OFT"),
        ((f"{KOHYA}.lora_mid.weight",), "a LoCon with CP decomposition"),
        (("emb_params",), "an embedding"),
        (("model.diffusion_model.input_blocks.0.0.weight",), "a whole checkpoint"),
        (("control_model.input_blocks.0.0.weight",), "a ControlNet"),
        (("lora_te2_text_model_encoder_layers_0_mlp_fc1.lora_down.weight",), "for Stable Diffusion XL"),
        (("lora_unet_double_blocks_0_img_attn_proj.lora_down.weight",), "for FLUX"),
        (("transformer.single_transformer_blocks.0.attn.to_q.lora_A.weight",), "for FLUX"),
        (("transformer.transformer_blocks.0.attn.to_q.lora_A.weight",), "for Stable Diffusion 3"),
        ((f"{KOHYA}.lora_down.weight", f"{KOHYA}.diff_b"), "1 of its 2 tensors are something else"),
    ],
)
def test_other_kinds_and_families_are_named(names: tuple[str, ...], words: str) -> None:
    refusal = fault(*names)
    assert refusal is not None and words in refusal
    assert refusal.startswith("expected a LoRA") and refusal.endswith(".")


@pytest.mark.parametrize(("width", "family"), [(1024, "Diffusion 2"), (2048, "Diffusion XL"), (640, "640")])
def test_the_family_shows_in_the_width_of_the_prompts(width: int, family: str) -> None:
    for name in (f"{KOHYA}.lora_down.weight", f"unet.{UNET}.lora_A.weight", f"unet.{UNET}.lora.down.weight"):
        refusal = fault(name, width=width)
        assert refusal is not None and family in refusal and "Stable Diffusion 1" in refusal
    assert fault(f"{KOHYA}.lora_down.weight", width=128, prompt_width=128) is None


def test_the_metadata_counts_if_no_layer_tells() -> None:
    name = "lora_unet_mid_block_resnets_0_conv1.lora_down.weight"
    assert fault(name) is None
    assert fault(name, metadata={"modelspec.architecture": "stable-diffusion-v1/lora"}) is None
    for written, family in (("stable-diffusion-xl-v1-base/lora", "XL"), ("flux-1-dev/lora", "FLUX")):
        refusal = fault(name, metadata={"modelspec.architecture": written})
        assert refusal is not None and family in refusal
    refusal = fault(name, metadata={"ss_base_model_version": "sdxl_base_v1-0"})
    assert refusal is not None and "Stable Diffusion XL" in refusal


def test_a_file_that_is_no_safetensors_is_refused(tmp_path: Path) -> None:
    for content in (b"", b"PK\x03\x04 a pickled checkpoint", b"\xff" * 100):
        file = tmp_path / "a.safetensors"
        file.write_bytes(content)
        with pytest.raises(LoraError, match=r"lora_weights_2: expected a \.safetensors file"):
            check_lora(Lora(file, "", 1.0, "lora_weights_2"), 768)
