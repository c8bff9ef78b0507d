"""Models that see a picture window by window, against the models themselves and a plain computation."""

import math

import pytest
import torch
from support.acting import acting
from support.small_models import parts, vae
from torch import nn

from controlnet.bundle import VAES
from controlnet.generation.composite import CompositeControlNet
from controlnet.generation.windowed import WindowedControlNet, WindowedUNet, WindowedVae, unet_windows
from controlnet.generation.windows import windows
from controlnet.models.loading import load_pretrained
from controlnet.weights.manifest import WEIGHTS


def drawn(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def noise(unet, composite, latents: torch.Tensor, hint: torch.Tensor, words: torch.Tensor) -> torch.Tensor:
    """A step as the pipelines take it."""
    time = torch.tensor(500)
    with torch.no_grad():
        down, middle = composite(latents, time, encoder_hidden_states=words, controlnet_cond=[hint],
                                 conditioning_scale=[0.7], guess_mode=False, return_dict=False)  # fmt: skip
        residuals = {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}
        return unet(latents, time, encoder_hidden_states=words, return_dict=False, **residuals)[0]


def region(height: int, width: int) -> torch.Tensor:
    return torch.linspace(0, 1, 8 * width).expand(1, 1, 8 * height, -1)


@pytest.mark.parametrize("height", [12, 9])
def test_one_window_gives_what_the_models_give(height: int) -> None:
    unet, nets, regions = parts()["unet"], [parts()["canny"]], [region(height, 12)]
    given = drawn(2, 4, height, 12), drawn(2, 3, 8 * height, 96).abs(), drawn(2, 5, 128)
    given[1][1] = given[1][0]
    plain = noise(unet, CompositeControlNet(acting(nets, regions), guided=True), *given)
    ours = noise(WindowedUNet(unet), WindowedControlNet(acting(nets, regions), guided=True), *given)
    torch.testing.assert_close(ours, plain, rtol=0, atol=1e-5)  # the map is embedded once, not for both halves


def test_several_windows_give_the_weighted_mean_of_their_noise() -> None:
    """Two windows of 12 × 12 in latents of 12 × 18, which share 6 columns."""
    unet, nets = parts()["unet"], [parts()["canny"]]
    latents, hint, words = drawn(2, 4, 12, 18), drawn(1, 3, 96, 144).abs(), drawn(2, 5, 128)
    whole = region(12, 18)
    expected = torch.zeros(2, 4, 12, 18)
    rising = torch.tensor([math.sin((i + 0.5) / 6 * math.pi / 2) ** 2 for i in range(6)])
    for start, weights in ((0, [torch.ones(6), 1 - rising]), (6, [rising, torch.ones(6)])):
        part = slice(start, start + 12), slice(8 * start, 8 * start + 96)
        composite = CompositeControlNet(acting(nets, [whole[..., part[1]]]), guided=True)
        made = noise(unet, composite, latents[..., part[0]], hint[..., part[1]], words)
        expected[..., part[0]] += made * torch.cat(weights)
    composite = WindowedControlNet(acting(nets, [whole]), guided=True)
    ours = noise(WindowedUNet(unet), composite, latents, hint.repeat(2, 1, 1, 1), words)
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5)
    alone = noise(unet, CompositeControlNet(acting(nets, [whole]), guided=True), latents, hint, words)
    assert (ours - alone).abs().max() > 1e-2, "the comparison is empty: windows change nothing"


def test_the_largest_input_of_the_networks_does_not_grow_with_the_picture() -> None:
    unet, net = parts()["unet"], parts()["canny"]
    seen: dict[str, list[int]] = {"unet": [], "net": []}
    handles = [
        layer.register_forward_hook(lambda _, given, __, name=name: seen[name].append(given[0].numel()))
        for name, layer in (("unet", unet.conv_in), ("net", net.controlnet_cond_embedding.conv_in))
    ]
    try:
        for side in (12, 30):
            given = drawn(2, 4, side, side), drawn(2, 3, 8 * side, 8 * side), drawn(2, 5, 128)
            noise(WindowedUNet(unet), WindowedControlNet(acting([net]), guided=True), *given)
    finally:
        for handle in handles:
            handle.remove()
    assert all(len(set(sizes)) == 1 and len(sizes) == 1 + len(unet_windows(unet, (30, 30))) for sizes in seen.values())


def tiny_vae() -> nn.Module:
    return load_pretrained(VAES["AutoencoderTiny"], WEIGHTS / "tiny/vae", torch.device("cpu"), torch.float32)


@pytest.mark.parametrize("make", [vae, tiny_vae], ids=["AutoencoderKL", "AutoencoderTiny"])
def test_a_picture_of_one_window_is_encoded_and_decoded_as_by_the_vae(make) -> None:
    own = make().eval()
    pixels, windowed = drawn(1, 3, 40, 64), WindowedVae(own)
    with torch.no_grad():
        made, plain = windowed.encode(pixels), own.encode(pixels)
        for draw in (made, plain):
            assert hasattr(draw, "latent_dist") != hasattr(draw, "latents")
        latents = (
            made.latents if hasattr(made, "latents") else made.latent_dist.sample(torch.Generator().manual_seed(1))
        )
        other = (
            plain.latents if hasattr(plain, "latents") else plain.latent_dist.sample(torch.Generator().manual_seed(1))
        )
        assert torch.equal(latents, other)
        assert torch.equal(windowed.decode(latents, return_dict=False)[0], own.decode(latents, return_dict=False)[0])


def test_tinys_vae_gives_the_same_in_windows_but_for_edges_that_are_blended() -> None:
    """In grey levels. It has no layer that sees the whole picture, so only the windows' edges could show."""
    own = tiny_vae().eval()
    windowed = WindowedVae(own, longest=24, overlap=8)
    smooth = torch.nn.functional.interpolate(drawn(1, 3, 10, 10).tanh(), size=(320, 320), mode="bicubic")
    with torch.no_grad():
        latents = own.encode(smooth).latents
        encoded = windowed.encode(smooth).latents
        plain, ours = (each.decode(latents, return_dict=False)[0] for each in (own, windowed))
    assert len(windows((40, 40), 24, 8)) == 4
    assert 0 < (encoded - latents).abs().max() < 0.2 * latents.std()
    away = (ours - plain).abs() * 127.5
    assert 0 < away.max() < 4 and away.mean() < 0.1, (away.max(), away.mean())
