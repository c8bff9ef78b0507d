"""Repeated work removed from the models: each layer's result, what is kept and for how long, and interruptions."""

import gc
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import Attention, AttnProcessor
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.upsampling import Upsample2D
from support.cancelling import TooFew, cancelled_at
from support.small_models import controlnet, unet, vae
from support.torch_kernels import torch_kernels
from torch import nn

from controlnet.speedups import forms, kept, replaced
from controlnet.speedups.forms import in_fast_forms
from controlnet.speedups.fused import FUSED
from controlnet.speedups.replaced import FORMS, OWN_CLASS, ExactUpsample
from tinyworld.models import TEXT_WIDTH


@pytest.fixture(scope="module")
def models() -> dict[str, Any]:
    torch.manual_seed(1)
    base = unet().eval().requires_grad_(False)
    net, coder = (model.requires_grad_(False) for model in (controlnet(base), vae()))
    return {"unet": base, "net": net, "vae": coder}


@pytest.fixture(autouse=True)
def no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


def inputs(batch: int = 2) -> dict[str, torch.Tensor]:
    """One half of a guided batch, or both, and the embeddings of both."""
    drawn = torch.Generator().manual_seed(3)
    width = TEXT_WIDTH
    return {
        "sample": torch.randn(1, 4, 10, 8, generator=drawn).repeat(batch, 1, 1, 1),
        "timestep": torch.tensor(500),
        "encoder_hidden_states": torch.randn(2, 5, width, generator=drawn),
    }


def step(models: dict[str, Any], batch: int = 2) -> list[torch.Tensor]:
    """The residuals of the net, and the noise of the UNet that gets them."""
    given = inputs(batch)
    hint = torch.rand(1, 3, 80, 64, generator=torch.Generator().manual_seed(4))
    down, middle = models["net"](**given, controlnet_cond=hint, return_dict=False)
    residuals = {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}
    return [*down, middle, models["unet"](**given, **residuals, return_dict=False)[0]]


def decoded(models: dict[str, Any]) -> list[torch.Tensor]:
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(5))
    return [models["vae"].decode(latents, return_dict=False)[0]]


def classes(models: dict[str, Any]) -> list[type]:
    return [type(layer) for model in models.values() for layer in model.modules()]


# ---- results


def test_both_halves_at_once_give_the_same_bits(models: dict[str, Any]) -> None:
    plain = [*step(models), *decoded(models)]
    with in_fast_forms(models.values()) as complete:
        assert complete
        used = {type(layer) for model in models.values() for layer in model.modules()}
        assert used >= set(OWN_CLASS) and not used & set(FORMS)
        ours = [*step(models), *decoded(models)]
    assert all(torch.equal(x, y) for x, y in zip(ours, plain, strict=True))
    assert plain[-2].abs().max() > 0.1


def test_one_half_gives_the_results_of_both(models: dict[str, Any]) -> None:
    """Up to rounding: matrix products of other shapes add up in another order."""
    plain = step(models)
    with in_fast_forms(models.values()):
        ours = step(models, batch=1)
    assert ours[-1].shape[0] == 2 and ours[0].shape[0] == 1, "the net's first layer ran twice"
    assert not torch.equal(plain[-1][0], plain[-1][1])
    for x, y in zip(ours, plain, strict=True):
        assert (x - y).abs().max() <= 1e-5 * y.abs().max()


def test_one_half_works_without_residuals(models: dict[str, Any]) -> None:
    """As in steps that no ControlNet acts on: skip connections then stay those of one half."""
    plain = models["unet"](**inputs(), return_dict=False)[0]
    with in_fast_forms([models["unet"]]):
        ours = models["unet"](**inputs(batch=1), return_dict=False)[0]
    assert (ours - plain).abs().max() <= 1e-5 * plain.abs().max()


@pytest.mark.parametrize("size", [(4, 4), (5, 3), (1, 2)])
def test_upsampling_in_phases_gives_the_same_result(monkeypatch, size: tuple[int, int]) -> None:
    monkeypatch.setattr(replaced, "WORTHWHILE", 0)
    torch.manual_seed(2)
    layer = Upsample2D(6, use_conv=True, out_channels=7).eval()
    x = torch.randn(2, 6, *size)
    plain, resized = layer(x), layer(x, (9, 9))
    with in_fast_forms([layer]):
        assert isinstance(layer, ExactUpsample)
        ours, ours_resized = layer(x), layer(x, (9, 9))
    assert ours.shape == plain.shape and (ours - plain).abs().max() <= 1e-6 * plain.abs().max()
    assert torch.equal(ours_resized, resized)


def test_upsampling_in_half_precision_is_left_as_it_is() -> None:
    layer = Upsample2D(6, use_conv=True).eval().bfloat16()
    with in_fast_forms([layer]):
        assert type(layer) is Upsample2D


def test_long_inputs_of_feed_forward_layers_give_the_same_bits(models: dict[str, Any], monkeypatch) -> None:
    plain = step(models)
    monkeypatch.setattr(replaced, "ROWS", 7)
    with in_fast_forms(models.values()):
        assert all(torch.equal(x, y) for x, y in zip(step(models), plain, strict=True))


def test_layers_that_do_more_than_usual_are_left_as_they_are(models: dict[str, Any]) -> None:
    scaled = ResnetBlock2D(in_channels=4, groups=2, temb_channels=8, output_scale_factor=2.0).eval()
    other = Attention(8, heads=2, dim_head=4, processor=AttnProcessor()).eval()
    for layer in (scaled, other):
        with in_fast_forms([layer, models["unet"]]) as complete:
            assert type(layer) in FORMS and complete is (layer is scaled)


def test_one_half_in_half_precision_gives_the_results_of_both() -> None:
    """Also there, where upsampling is left as it is, as on a GPU."""
    torch.manual_seed(1)
    base = unet().eval().requires_grad_(False).bfloat16()

    def noise(batch: int) -> torch.Tensor:
        return base(**{name: value.bfloat16() for name, value in inputs(batch).items()}, return_dict=False)[0].float()

    plain = noise(2)
    with in_fast_forms([base]) as complete:
        assert complete
        ours = noise(1)
    assert (ours - plain).abs().max() <= 2**-6 * plain.abs().max()  # bfloat16 has 8 significant bits


def test_an_attention_mask_is_applied(models: dict[str, Any]) -> None:
    mask = torch.tensor([[1, 1, 0, 0, 1], [1, 0, 1, 1, 1]])
    plain = models["unet"](**inputs(), encoder_attention_mask=mask, return_dict=False)[0]
    with in_fast_forms([models["unet"]]):
        ours = models["unet"](**inputs(), encoder_attention_mask=mask, return_dict=False)[0]
    assert torch.equal(ours, plain)


# ---- what is kept


def test_keys_and_values_are_computed_once_for_the_same_tensor(models: dict[str, Any]) -> None:
    layer: Any = models["unet"].down_blocks[0].attentions[0].transformer_blocks[0].attn2
    calls: list[int] = []
    handle = layer.to_k.register_forward_hook(lambda *_: calls.append(1))
    given, other = inputs(), inputs()
    with in_fast_forms([models["unet"]]):
        for asked, computed in ((given, 1), (given, 1), (other, 2), (given, 2)):
            models["unet"](**asked)
            assert len(calls) == computed
    models["unet"](**given)
    handle.remove()
    assert len(calls) == 3, "diffusers' own forward keeps nothing"


def test_kept_results_are_freed_with_their_tensor() -> None:
    source = torch.ones(2)
    result = weakref.ref(kept.kept(source, "name", lambda _: torch.zeros(3)))
    assert kept.kept(source, "name", lambda _: pytest.fail("computed again")) is result()
    gc.disable()
    try:
        del source
        assert result() is None
    finally:
        gc.enable()


def test_nothing_is_kept_while_gradients_are_computed() -> None:
    source = torch.ones(2)
    with torch.enable_grad():
        kept.kept(source, "doubled", lambda own: own * 2)
    assert "kept" not in source.__dict__


def test_no_model_keeps_anything_after_the_block(models: dict[str, Any]) -> None:
    before = classes(models), [sorted(x.__dict__) for model in models.values() for x in model.modules()]
    with pytest.raises(KeyError), in_fast_forms([*models.values(), models["net"]]):
        step(models)
        raise KeyError
    assert (classes(models), [sorted(x.__dict__) for model in models.values() for x in model.modules()]) == before


# ---- interrupted requests


def test_cancelling_at_any_point_changes_no_later_result() -> None:
    """The weights of the upsampling layer are changed in between, as by a LoRA: nothing earlier may be used."""
    torch.manual_seed(2)
    layer: Any = nn.Sequential(Upsample2D(3, use_conv=True), ResnetBlock2D(in_channels=3, groups=1)).eval()
    x, time = torch.randn(1, 3, 2, 2), torch.randn(1, 512)

    def run() -> torch.Tensor:
        return layer[1](layer[0](x), time)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(replaced, "WORTHWHILE", 0)
        for instruction in range(1, 10_000):
            try:
                with cancelled_at(instruction, forms), in_fast_forms([layer]):
                    pass
            except TooFew:
                break
            left_over = [type(part) in OWN_CLASS for part in layer]
            layer[0].conv.weight.data.mul_(-1)
            with in_fast_forms([layer]) as complete:
                ours = run()
            assert complete and not [part for part in layer if type(part) in OWN_CLASS], instruction
            assert (ours - run()).abs().max() <= 1e-5, (instruction, left_over)
    assert 100 < instruction < 9_999


# ---- plans


def test_a_model_is_planned_once_and_its_plan_goes_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    planned: list[Any] = []
    look = forms._form_of
    monkeypatch.setattr(forms, "_form_of", lambda layer, kernels: planned.append(layer) or look(layer, kernels))
    base: Any = unet().eval()
    for _ in range(3):
        with in_fast_forms([base, base]):
            assert any(type(layer) in OWN_CLASS for layer in base.modules())
    assert len(planned) == len([*base.modules()])
    plan, others = weakref.ref(forms.plan_of(base)), len(forms._plans)
    planned.clear()
    del base
    gc.collect()
    assert plan() is None and len(forms._plans) == others - 1


def test_layers_are_planned_again_for_other_kernels(models: dict[str, Any]) -> None:
    without = forms.plan_of(models["unet"])
    with torch_kernels():
        assert forms.plan_of(models["unet"]) is not without
        with in_fast_forms([models["unet"]]):
            assert any(type(layer) in FUSED.values() for layer in models["unet"].modules())
    with in_fast_forms([models["unet"]]):
        assert not any(type(layer) in FUSED.values() for layer in models["unet"].modules())
