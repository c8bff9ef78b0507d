"""Names of tensors as diffusers reads them, and the words for a file that is no LoRA for the base."""

from types import SimpleNamespace

import pytest

from controlnet.models.lora_reader import read_names
from controlnet.weights.lora_files import Header, lora_fault

LAYER = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
UNET = f"unet.{LAYER}"
KOHYA = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
ENCODER = "encoder.layers.0.self_attn.q_proj"


def fault(*names: str, width: int = 768, metadata: dict[str, str] | None = None, prompt_width: int = 768) -> str | None:
    shapes = {name: (1,) if name.endswith(".alpha") else (4, width) for name in names}
    return lora_fault(Header(shapes, metadata or {}), read_names(names), prompt_width)


def pair(layer: str, down: str, up: str) -> tuple[str, str]:
    return f"{layer}.{down}.weight", f"{layer}.{up}.weight"


@pytest.mark.parametrize(
    "names",
    [
        pair(UNET, "lora_A", "lora_B"),
        pair(UNET, "lora.down", "lora.up"),
        pair(LAYER, "lora_A", "lora_B"),
        pair(UNET.replace("to_k", "processor.to_k_lora"), "down", "up"),
        (*pair(KOHYA, "lora_down", "lora_up"), f"{KOHYA}.alpha"),
        (*pair(UNET, "lora_A", "lora_B"), f"{UNET}.lora_magnitude_vector"),
    ],
)
def test_every_way_to_write_a_layer_of_the_unet_is_read(names: tuple[str, ...]) -> None:
    assert fault(*names) is None
    reading = read_names(names)
    own = {name.removeprefix(f"{LAYER}."): of for name, of in reading.tensors["unet"].items()}
    assert own["lora_A.weight"] == names[0] and own["lora_B.weight"] == names[1]
    assert reading.alphas["unet"] == ({LAYER: names[2]} if names[-1].endswith(".alpha") else {})
    assert reading.tensors["text_encoder"] == reading.alphas["text_encoder"] == {}


@pytest.mark.parametrize(
    "names",
    [
        pair(f"text_encoder.{ENCODER}", "lora_A", "lora_B"),
        pair(f"text_encoder.text_model.{ENCODER}", "lora_A", "lora_B"),
        pair(f"text_encoder.{ENCODER}", "lora_linear_layer.down", "lora_linear_layer.up"),
        pair(f"text_encoder.text_model.{ENCODER}", "lora_linear_layer.down", "lora_linear_layer.up"),
        (
            *pair("lora_te_text_model_encoder_layers_0_self_attn_q_proj", "lora_down", "lora_up"),
            *pair("lora_te_text_model_encoder_layers_0_self_attn_out_proj", "lora_down", "lora_up"),
            "lora_te_text_model_encoder_layers_0_self_attn_q_proj.alpha",
        ),
    ],
)
def test_every_way_to_write_a_layer_of_the_text_encoder_is_read(names: tuple[str, ...]) -> None:
    assert fault(*names) is None
    reading = read_names(names)
    assert reading.tensors["text_encoder"][f"{ENCODER}.lora_A.weight"] == names[0]
    assert reading.tensors["text_encoder"][f"{ENCODER}.lora_B.weight"] == names[1]
    assert reading.alphas["text_encoder"] == ({ENCODER: names[-1]} if names[-1].endswith(".alpha") else {})


WHOLE = pair(KOHYA, "lora_down", "lora_up")


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ((f"{KOHYA}.hada_w1_a",), "a LoHa"),
        ((f"{KOHYA}.lokr_w1",), "a LoKr"),
        ((*WHOLE, f"{KOHYA}.dora_scale"), "a DoRA"),
        ((f"{KOHYA}.oft_blocks",), "an OFT"),
        ((*WHOLE, f"{KOHYA}.lora_mid.weight"), "a LoCon with CP decomposition"),
        (("emb_params",), "an embedding"),
        (
            (*WHOLE, f"{KOHYA}.alpha", "bundle_emb.cat.emb_params"),
            "one with an embedding in the same file",
        ),
        (pair(f"base_model.model.{LAYER}", "lora_A", "lora_B"), "whose alpha is in another file"),
        (("model.diffusion_model.input_blocks.0.0.weight",), "a whole checkpoint"),
        (("control_model.input_blocks.0.0.weight",), "a ControlNet"),
        (pair("lora_te2_text_model_encoder_layers_0_mlp_fc1", "lora_down", "lora_up"), "for Stable Diffusion XL"),
        (pair("lora_unet_double_blocks_0_img_attn_proj", "lora_down", "lora_up"), "for FLUX"),
        (pair("transformer.single_transformer_blocks.0.attn.to_q", "lora_A", "lora_B"), "for FLUX"),
        (pair("transformer.transformer_blocks.0.attn.to_q", "lora_A", "lora_B"), "for Stable Diffusion 3"),
        ((*WHOLE, f"{KOHYA}.diff_b"), f"1 of its 3 tensors are something else, such as '{KOHYA}.diff_b'"[:76]),
        ((*WHOLE, f"{KOHYA}.alpha", "global_step"), "1 of its 4 tensors are something else, such as 'global_step'."),
        ((*pair(UNET, "lora.down", "lora.up"), f"{UNET}.alpha"), "1 of its 3 tensors are something else"),
        ((WHOLE[0], f"{KOHYA}.alpha"), f"without its tensor '{WHOLE[1]}'"[:70]),
        ((), "an empty file"),
    ],
)
def test_what_cannot_be_read_is_named(names: tuple[str, ...], words: str) -> None:
    refusal = fault(*names)
    assert refusal is not None and words in refusal
    assert refusal.startswith("expected a LoRA") and refusal.endswith(".")


def test_an_alpha_that_is_no_number_is_named() -> None:
    names = (*WHOLE, f"{KOHYA}.alpha")
    refusal = lora_fault(Header(dict.fromkeys(names, (4, 768)), {}), read_names(names), 768)
    assert refusal is not None and "1 of its 3 tensors" in refusal and ".alpha" in refusal


def test_a_name_without_end_is_cut_off() -> None:
    refusal = fault(*WHOLE, "x" * 5_000_000)
    assert refusal is not None and len(refusal) < 300


@pytest.mark.parametrize(("width", "family"), [(1024, "Diffusion 2"), (2048, "Diffusion XL"), (640, "640")])
def test_the_family_shows_in_the_width_of_the_prompts(width: int, family: str) -> None:
    for names in (WHOLE, pair(UNET, "lora_A", "lora_B"), pair(UNET, "lora.down", "lora.up")):
        refusal = fault(*names, width=width)
        assert refusal is not None and family in refusal and "Stable Diffusion 1" in refusal
    assert fault(*WHOLE, width=128, prompt_width=128) is None


@pytest.mark.parametrize("asked", [768, 2048])
def test_families_are_refused_in_both_directions(asked: int) -> None:
    """kohya's scripts number the blocks of Stable Diffusion XL: the UNet's configuration says which they are."""
    numbered = pair("lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k", "lora_down", "lora_up")
    config = SimpleNamespace(layers_per_block=2)
    for names, width in ((numbered, 2048), (WHOLE, 768)):
        shapes = dict.fromkeys(names, (4, width))
        refusal = lora_fault(Header(shapes, {}), read_names(names, config), asked)
        if width == asked:
            assert refusal is None
        else:
            own, other = (f"Stable Diffusion {name}" for name in (("1", "XL") if asked == 768 else ("XL", "1")))
            assert refusal == f"expected a LoRA for {own}, which this bundle is, got one for {other}."


def test_the_metadata_counts_if_no_layer_tells() -> None:
    names = pair("lora_unet_mid_block_resnets_0_conv1", "lora_down", "lora_up")
    assert fault(*names) is None
    assert fault(*names, metadata={"modelspec.architecture": "stable-diffusion-v1/lora"}) is None
    for written, family in (("stable-diffusion-xl-v1-base/lora", "XL"), ("flux-1-dev/lora", "FLUX")):
        refusal = fault(*names, metadata={"modelspec.architecture": written})
        assert refusal is not None and family in refusal
    refusal = fault(*names, metadata={"ss_base_model_version": "sdxl_base_v1-0"})
    assert refusal is not None and "Stable Diffusion XL" in refusal
    assert fault(*WHOLE, metadata={"ss_base_model_version": "sd_v2"}) is None
