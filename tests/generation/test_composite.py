"""The composite ControlNet against diffusers' own nets and pipelines, on small random models whose control acts."""

from copy import deepcopy

import pytest
import torch
from diffusers import DDIMScheduler, MultiControlNetModel, StableDiffusionControlNetPipeline
from support.acting import acting
from support.jobs import hint
from support.small_models import parts

from controlnet.generation.composite import CompositeControlNet, level_sizes
from controlnet.request.modes import CONTROL_MODES


def run(controlnet, images, scales, guidance=4.0, start=0.0, end=1.0, steps=4) -> torch.Tensor:
    """Final latents of diffusers' pipeline around `controlnet`."""
    small = parts()
    several = isinstance(controlnet, MultiControlNetModel)
    pipeline = StableDiffusionControlNetPipeline(
        **{name: small[name] for name in ("unet", "vae", "text_encoder", "tokenizer")},
        scheduler=DDIMScheduler.from_config(small["scheduler"].config),
        controlnet=controlnet,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline(
        "a red ball",
        negative_prompt="grass",
        image=images if several else images[0],
        num_inference_steps=steps,
        guidance_scale=guidance,
        generator=torch.Generator().manual_seed(7),
        controlnet_conditioning_scale=scales if several else scales[0],
        control_guidance_start=start,
        control_guidance_end=end,
        output_type="latent",
    ).images


@pytest.mark.parametrize("guidance", [4.0, 1.0])
@pytest.mark.parametrize("name", ["canny", "shuffle"])
def test_one_net_equals_diffusers_own_pipeline(name: str, guidance: float) -> None:
    net, images = parts()[name], [hint(1)]
    plain = run(net, images, [0.7], guidance)
    ours = run(CompositeControlNet(acting([net]), guided=guidance > 1), images, [0.7], guidance)
    uncontrolled = run(net, images, [0.0], guidance)
    assert (ours - plain).abs().max() <= 1e-5
    assert (plain - uncontrolled).abs().max() > 1e-2, "the comparison is empty: control changes nothing"


def test_two_nets_equal_diffusers_own_composite() -> None:
    nets, images = [parts()["canny"], parts()["scribble"]], [hint(1), hint(2)]
    plain = run(MultiControlNetModel(nets), images, [0.7, 0.4])
    ours = run(CompositeControlNet(acting(nets), guided=True), images, [0.7, 0.4])
    swapped = run(CompositeControlNet(acting(nets), guided=True), images[::-1], [0.7, 0.4])
    assert (ours - plain).abs().max() <= 1e-5
    assert (ours - swapped).abs().max() > 1e-2


def test_shuffle_and_another_net_work_together_in_any_order() -> None:
    # diffusers' own composite crashes on this mix: it adds the residuals in place.
    small, images = parts(), [hint(1), hint(2)]
    one = run(CompositeControlNet(acting([small["shuffle"], small["canny"]]), guided=True), images, [0.7, 0.4])
    other = run(CompositeControlNet(acting([small["canny"], small["shuffle"]]), guided=True), images[::-1], [0.4, 0.7])
    alone = run(CompositeControlNet(acting([small["canny"]]), guided=True), images[1:], [0.4])
    assert (one - other).abs().max() <= 1e-5
    assert (one - alone).abs().max() > 1e-3


def test_a_net_outside_its_window_is_not_run() -> None:
    net, images, calls = parts()["canny"], [hint(1)], []
    plain = run(net, images, [1.0], start=0.0, end=0.5, steps=8)
    handle = net.register_forward_hook(lambda *_: calls.append(1))
    try:
        ours = run(CompositeControlNet(acting([net]), guided=True), images, [1.0], start=[0.0], end=[0.5], steps=8)
    finally:
        handle.remove()
    assert len(calls) == 4
    assert torch.equal(ours, plain)


def test_guess_mode_is_refused() -> None:
    composite = CompositeControlNet(acting([parts()["canny"]]), guided=True)
    with pytest.raises(ValueError, match="guess_mode"):
        composite(torch.zeros(2, 4, 8, 8), torch.tensor(1), torch.zeros(2, 4, 128), [], [], guess_mode=True)


def test_the_composite_shares_nets_and_copies_none() -> None:
    net = parts()["canny"]
    ours = {parameter.data_ptr() for parameter in CompositeControlNet(acting([net]), guided=True).parameters()}
    assert ours == {parameter.data_ptr() for parameter in net.parameters()}


def residuals(net, mode="balanced", region=None, guided=True, scale=1.0) -> list[torch.Tensor]:
    """What the composite gives a UNet for one net, at one step; with guidance the unconditional half comes first."""
    generator = torch.Generator().manual_seed(3)
    batch = 2 if guided else 1
    sample = torch.randn(1, net.config.in_channels, 10, 8, generator=generator).repeat(batch, 1, 1, 1)
    words = torch.randn(batch, 5, net.config.cross_attention_dim, generator=generator)
    hints = [torch.rand(1, 3, 80, 64, generator=generator).repeat(batch, 1, 1, 1)]
    composite = CompositeControlNet(acting([net], [region]), guided, CONTROL_MODES[mode])
    with torch.no_grad():
        down, middle = composite(sample, torch.tensor(500), words, hints, [scale])
    return [*down, middle]


def test_control_modes_weigh_layers_and_halves() -> None:
    """Prompt: layer i of N weighs 0.825^(N-1-i) on both halves; control: on one; unbalanced: 1 there."""
    net = parts()["canny"]
    full = residuals(net)
    count = len(full)
    fading = [0.825 ** (count - 1 - i) for i in range(count)]
    for mode, weights, halves in (
        ("prompt", fading, (1, 1)),
        ("control", fading, (0, 1)),
        ("unbalanced", [1.0] * count, (0, 1)),
    ):
        for got, whole, weight in zip(residuals(net, mode), full, weights, strict=True):
            expected = whole * weight * torch.tensor(halves).view(2, 1, 1, 1)
            torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-6)
    assert fading[0] < fading[-1] == 1.0 and full[0].abs().max() > 0.01


def test_shuffle_acts_on_the_conditional_half_in_every_mode() -> None:
    for mode in CONTROL_MODES:
        assert all(not tensor[0].any() and tensor[1].any() for tensor in residuals(parts()["shuffle"], mode))


def test_without_guidance_the_whole_batch_is_controlled() -> None:
    for mode in CONTROL_MODES:
        assert all(tensor.shape[0] == 1 and tensor.any() for tensor in residuals(parts()["canny"], mode, guided=False))


@pytest.mark.parametrize("name", ["canny", "shuffle"])
def test_a_net_acts_only_inside_its_region(name: str) -> None:
    net, region = parts()[name], torch.zeros(1, 1, 80, 64)
    region[..., :32] = 1
    for got, whole in zip(residuals(net, region=region), residuals(net), strict=True):
        width = got.shape[-1]
        inside, outside = got[..., : width // 2], got[..., -(width // 2) :]
        if width > 1:
            torch.testing.assert_close(inside, whole.expand_as(got)[..., : width // 2])
            assert not outside.any()
    for got, whole in zip(residuals(net, region=region * 0 + 0.5), residuals(net), strict=True):
        torch.testing.assert_close(got, 0.5 * whole.expand_as(got))


def test_layer_sizes_equal_those_of_a_nets_residuals() -> None:
    net = parts()["canny"]
    assert level_sizes(net, (10, 8)) == [tuple(tensor.shape[-2:]) for tensor in residuals(net)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_composites_dtype_is_that_of_its_nets(dtype: torch.dtype) -> None:
    net = deepcopy(parts()["canny"]).to(dtype)
    assert CompositeControlNet(acting([net, net]), guided=True).dtype == dtype
