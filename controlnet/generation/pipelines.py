"""diffusers' two pipelines for ControlNets, without a search through all modules of their models for each picture."""

from typing import Any

import torch
from diffusers import StableDiffusionControlNetImg2ImgPipeline, StableDiffusionControlNetPipeline


class _OnOneDevice:
    """All models of a pipeline are on one device here, and nothing moves them while it runs.

    To know where it computes, diffusers asks every module for hooks that would move it. With the models of sd15, this
    takes 7 ms for each picture.
    """

    text_encoder: Any

    @property
    def _execution_device(self) -> torch.device:
        return self.text_encoder.device  # transformers' models look at their first parameter only


class FromNoise(_OnOneDevice, StableDiffusionControlNetPipeline):
    """For pictures that begin with noise alone."""


class FromPicture(_OnOneDevice, StableDiffusionControlNetImg2ImgPipeline):
    """For pictures that begin with an initial picture and noise."""
