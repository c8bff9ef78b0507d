"""A UNet, its ControlNets and a VAE that see a large picture window by window, inside diffusers' stock pipelines.

They stand in for the models that they are made around and share them. A picture of one window goes through the model
itself, with the same result.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from diffusers import AutoencoderKL
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTinyOutput
from diffusers.models.autoencoders.vae import DecoderOutput, DiagonalGaussianDistribution
from diffusers.models.modeling_outputs import AutoencoderKLOutput

from controlnet.generation.composite import CompositeControlNet
from controlnet.generation.windows import Window, blended, windows
from controlnet.models.reference import Seen
from controlnet.pictures.geometry import STEP

Residuals = tuple[list[torch.Tensor] | None, torch.Tensor | None]
ResidualsOf = Callable[[Window], Residuals]
DECODED = 128
"""Latents on a side of the VAE's windows, so 1024 pixels."""
DECODED_OVERLAP = 32


class WindowedControlNet(CompositeControlNet):
    """A composite that computes residuals for one window at a time, when a WindowedUNet asks for them.

    The pipelines hand a composite's result to the UNet as it is. This one is a function of the window, because the
    residuals of all windows would take memory in proportion to the picture.
    """

    def forward(  # type: ignore[override]
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        controlnet_cond: list[torch.Tensor],
        conditioning_scale: list[float],
        **others: Any,
    ) -> tuple[ResidualsOf, None]:
        """See CompositeControlNet.forward, whose result the returned function gives for a window."""

        def residuals(window: Window) -> Residuals:
            # The halves of a guided batch have the same map.
            maps = [window.of(whole[:1], STEP) for whole in controlnet_cond]
            everywhere = (each.region for each in self.acting)
            regions = [None if region is None else window.of(region, STEP) for region in everywhere]
            part = window.of(sample)
            forward = super(WindowedControlNet, self).forward
            return forward(part, timestep, encoder_hidden_states, maps, conditioning_scale, regions=regions, **others)

        return residuals, None


class WindowedUNet:
    """A UNet whose noise prediction is the weighted mean of those of overlapping windows. For latents of one size."""

    def __init__(self, unet: Any, share: float = 1.5) -> None:
        """`share` is as for unet_windows()."""
        self.unet, self._share = unet, share
        self._windows: list[Window] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.unet, name)

    def __call__(
        self,
        sample: torch.Tensor,
        timestep: Any,
        *,
        encoder_hidden_states: torch.Tensor | Seen,
        down_block_additional_residuals: ResidualsOf,
        mid_block_additional_residual: None,
        **others: Any,
    ) -> tuple[torch.Tensor]:
        """(the noise in (B, C, h, w) latents,). The residuals are those that a WindowedControlNet has returned."""

        def noise(window: Window) -> torch.Tensor:
            down, middle = down_block_additional_residuals(window)
            residuals = {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}
            words = _within(window, encoder_hidden_states)
            return self.unet(window.of(sample), timestep, encoder_hidden_states=words, **residuals, **others)[0]

        if not self._windows:  # once, because moving their weights makes the CPU wait for the GPU
            self._windows = unet_windows(self.unet, sample.shape[-2:], self._share)
        return (blended(self._windows, noise),)


def _within(window: Window, words: torch.Tensor | Seen) -> torch.Tensor | Seen:
    """What the UNet attends to in a window."""
    if isinstance(words, torch.Tensor) or words.mask is None:
        return words
    return words._replace(mask=window.of(words.mask, STEP))


def unet_windows(unet: Any, size: Sequence[int], share: float = 1.5) -> list[Window]:
    """The windows in which a UNet sees latents of (height, width) `size`. Neighbours share a quarter or more.

    Their sides are `share` times those of the latents that the UNet was trained on (Family.window): 96 for sd15.
    """
    longest = int(unet.config.sample_size * share)
    return windows(size, longest, longest // 4, device=unet.device)


class WindowedVae:
    """A VAE that encodes and decodes overlapping windows and blends their results."""

    def __init__(self, vae: Any, longest: int = DECODED, overlap: int = DECODED_OVERLAP) -> None:
        """`longest` and `overlap` are in latents."""
        self.vae, self.longest, self.overlap = vae, longest, overlap
        self.config, self.dtype, self.device = vae.config, vae.dtype, vae.device

    @torch.no_grad()
    def encode(self, pixels: torch.Tensor) -> AutoencoderKLOutput | AutoencoderTinyOutput:
        """(B, 3, H, W), −1 to 1, as the VAE's own encode() returns it. The windows' distributions are blended."""
        height, width = (side // STEP for side in pixels.shape[-2:])
        drawn = isinstance(self.vae, AutoencoderKL)

        def latents(window: Window) -> torch.Tensor:
            made = self.vae.encode(window.of(pixels, STEP))
            return made.latent_dist.parameters if drawn else made.latents

        made = blended(windows((height, width), self.longest, self.overlap, device=pixels.device), latents)
        if drawn:
            return AutoencoderKLOutput(latent_dist=DiagonalGaussianDistribution(made))
        return AutoencoderTinyOutput(latents=made)

    @torch.no_grad()
    def decode(self, latents: torch.Tensor, return_dict: bool = True) -> DecoderOutput | tuple[torch.Tensor]:
        """(B, C, h, w) -> pixels, (B, 3, H, W), about −1 to 1."""
        parts = windows(latents.shape[-2:], self.longest, self.overlap, STEP, latents.device)
        pixels = blended(parts, lambda window: self.vae.decode(window.of(latents), return_dict=False)[0])
        return DecoderOutput(sample=pixels) if return_dict else (pixels,)
