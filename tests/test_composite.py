"""The composite ControlNet against diffusers' own nets and pipelines, on small random models whose control acts."""

import pytest
import torch
from diffusers import DDIMScheduler, MultiControlNetModel, StableDiffusionControlNetPipeline
from PIL import Image
from small_models import parts

from controlnet.composite import CompositeControlNet


def hint(seed: int) -> Image.Image:
    """A control map of coarse squares, 64×64."""
    noise = torch.randint(0, 256, (4, 4, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    return Image.fromarray(noise.numpy()).resize((64, 64), Image.Resampling.NEAREST)


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
    ours = run(CompositeControlNet([net], guided=guidance > 1), images, [0.7], guidance)
    uncontrolled = run(net, images, [0.0], guidance)
    assert (ours - plain).abs().max() <= 1e-5
    assert (plain - uncontrolled).abs().max() > 1e-2, "the comparison is empty: control changes nothing"


def test_two_nets_equal_diffusers_own_composite() -> None:
    nets, images = [parts()["canny"], parts()["scribble"]], [hint(1), hint(2)]
    plain = run(MultiControlNetModel(nets), images, [0.7, 0.4])
    ours = run(CompositeControlNet(nets, guided=True), images, [0.7, 0.4])
    swapped = run(CompositeControlNet(nets, guided=True), images[::-1], [0.7, 0.4])
    assert (ours - plain).abs().max() <= 1e-5
    assert (ours - swapped).abs().max() > 1e-2


def test_a_pooled_net_and_a_plain_one_go_together_in_either_order() -> None:
    # diffusers' own composite crashes on this mix: it adds the residuals in place.
    small, images = parts(), [hint(1), hint(2)]
    one = run(CompositeControlNet([small["shuffle"], small["canny"]], guided=True), images, [0.7, 0.4])
    other = run(CompositeControlNet([small["canny"], small["shuffle"]], guided=True), images[::-1], [0.4, 0.7])
    alone = run(CompositeControlNet([small["canny"]], guided=True), images[1:], [0.4])
    assert (one - other).abs().max() <= 1e-5
    assert (one - alone).abs().max() > 1e-3


def test_a_net_outside_its_window_is_not_run_and_the_result_is_diffusers_own() -> None:
    net, images, calls = parts()["canny"], [hint(1)], []
    plain = run(net, images, [1.0], start=0.0, end=0.5, steps=8)
    handle = net.register_forward_hook(lambda *_: calls.append(1))
    try:
        ours = run(CompositeControlNet([net], guided=True), images, [1.0], start=[0.0], end=[0.5], steps=8)
    finally:
        handle.remove()
    assert len(calls) == 4
    assert torch.equal(ours, plain)


def test_guess_mode_is_refused() -> None:
    composite = CompositeControlNet([parts()["canny"]], guided=True)
    with pytest.raises(ValueError, match="guess_mode"):
        composite(torch.zeros(2, 4, 8, 8), torch.tensor(1), torch.zeros(2, 4, 128), [], [], guess_mode=True)


def test_it_holds_the_shared_nets_and_no_copies() -> None:
    net = parts()["canny"]
    ours = {parameter.data_ptr() for parameter in CompositeControlNet([net], guided=True).parameters()}
    assert ours == {parameter.data_ptr() for parameter in net.parameters()}
