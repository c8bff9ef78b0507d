"""The schedulers (samplers) that a request can name, by the names of other Stable Diffusion models on Replicate."""

import copy
import inspect
import json
import math
from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    LCMScheduler,
    LMSDiscreteScheduler,
    PNDMScheduler,
    TCDScheduler,
    UniPCMultistepScheduler,
)


class LMSFromAnyStep(LMSDiscreteScheduler):
    """LMS that may begin midway, as a job with an initial picture does.

    diffusers takes the order of a step from its place in the whole schedule, as if all earlier steps had been taken
    (github.com/huggingface/diffusers/issues/5630). The order can only be as high as the number of outputs so far.
    """

    def step(self, model_output: Any, timestep: Any, sample: Any, order: int = 4, return_dict: bool = True) -> Any:
        return super().step(model_output, timestep, sample, min(order, len(self.derivatives) + 1), return_dict)

    def get_lms_coefficient(self, order: int, t: int, current_order: int) -> float:
        """The integral of a Lagrange polynomial over step t, whose degree is order − 1 and at most 3.

        Two points of Gauss and Legendre are exact for that. diffusers integrates with 21 points, at 4 ms a step.
        """
        levels = [float(self.sigmas[t - k]) for k in range(order)]
        start, end = levels[0], float(self.sigmas[t + 1])
        middle, half = (start + end) / 2, (end - start) / 2
        own, others = levels[current_order], [level for k, level in enumerate(levels) if k != current_order]
        points = (middle - half / math.sqrt(3), middle + half / math.sqrt(3))
        return half * sum(math.prod((point - other) / (own - other) for other in others) for point in points)


class PNDMFromAnyStep(PNDMScheduler):
    """PNDM that may begin midway, as a job with an initial picture does.

    PNDM computes its first step twice, the second time from the place that the first one led to. So diffusers has the
    second timestep of the whole schedule twice. The one to be repeated is the second of those that are used.
    """

    skipped = 0
    """How many steps are left out at the beginning."""

    def set_timesteps(self, num_inference_steps: int, device: Any = None) -> None:
        super().set_timesteps(num_inference_steps, device)
        each = list(dict.fromkeys(self.timesteps.tolist()))
        doubled = self.skipped + 1
        timesteps = each[:doubled] + 2 * each[doubled : doubled + 1] + each[doubled + 1 :]
        self.timesteps = torch.tensor(timesteps, device=device)


ZERO_SNR = "rescale_betas_zero_snr"
"""In a scheduler's configuration: whether its noise schedule ends with noise alone."""
KARRAS = {"use_karras_sigmas": True}
"""Noise levels of T. Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models", 2022."""

SCHEDULERS: dict[str, tuple[type, dict[str, Any]]] = {
    "DDIM": (DDIMScheduler, {}),
    "DPMSolverMultistep": (DPMSolverMultistepScheduler, {}),
    "DPMSolverMultistepKarras": (DPMSolverMultistepScheduler, KARRAS),
    "HeunDiscrete": (HeunDiscreteScheduler, {}),
    "K_EULER": (EulerDiscreteScheduler, {}),
    "K_EULER_ANCESTRAL": (EulerAncestralDiscreteScheduler, {}),
    "K_EULER_KARRAS": (EulerDiscreteScheduler, KARRAS),
    "KLMS": (LMSFromAnyStep, {}),
    "LCM": (LCMScheduler, {}),
    # The Runge-Kutta warm-up would add a dozen steps that nobody asked for. Latent diffusion has always skipped it.
    "PNDM": (PNDMFromAnyStep, {"skip_prk_steps": True}),
    "TCD": (TCDScheduler, {}),
    "UniPCMultistep": (UniPCMultistepScheduler, {}),
}


class SchedulerError(ValueError):
    """There is no scheduler of that name."""


def make_scheduler(name: str, config: Mapping[str, Any], skipped: int = 0) -> Any:
    """A new scheduler of that name with the bundle's noise schedule, `config`. Raises SchedulerError.

    `skipped` is the number of steps that are left out at the beginning. A scheduler keeps state during a run (step
    index, earlier outputs), so every picture needs a new one.
    """
    if name not in SCHEDULERS:
        raise SchedulerError(f"scheduler: expected one of {', '.join(SCHEDULERS)}; got {name!r}.")
    scheduler = copy.deepcopy(_unused(name, json.dumps(config)))
    if isinstance(scheduler, PNDMFromAnyStep):
        scheduler.skipped = skipped
    return scheduler


@cache
def _unused(name: str, config: str) -> Any:
    """A scheduler to be copied, which takes a third of the time of from_config. `config` is JSON."""
    scheduler_class, options = SCHEDULERS[name]
    return scheduler_class.from_config(json.loads(config), **options)


def suited_schedulers(config: Mapping[str, Any]) -> tuple[str, ...]:
    """The names of those that can follow a noise schedule.

    With zero SNR (rescale_betas_zero_snr) the last step of training saw noise alone: S. Lin et al., "Common Diffusion
    Noise Schedules and Sample Steps are Flawed", 2023. diffusers' Heun, LMS and PNDM overlook it. They would begin at a
    level of noise that is far too low for such a model.
    """
    if not config.get(ZERO_SNR):
        return tuple(SCHEDULERS)
    return tuple(name for name, (kind, _) in SCHEDULERS.items() if ZERO_SNR in inspect.signature(kind).parameters)


def keep_times_in_main_memory(scheduler: Any) -> None:
    """Make a scheduler keep its time steps in main memory, also if the models are on a GPU.

    Schedulers index their tables with a time step. If it is on the GPU, Python waits at each step for all that was
    started there, and starts nothing meanwhile.
    """
    set_timesteps = scheduler.set_timesteps
    scheduler.set_timesteps = lambda *args, device=None, **named: set_timesteps(*args, device="cpu", **named)


def unet_calls(name: str, config: Mapping[str, Any], num_inference_steps: int, skipped: int = 0) -> int:
    """How often the UNet is called if the first `skipped` of `num_inference_steps` are left out.

    That is more often than once a step for samplers of second order (HeunDiscrete). Raises SchedulerError.
    """
    scheduler = make_scheduler(name, config, skipped)
    scheduler.set_timesteps(num_inference_steps)
    return len(scheduler.timesteps[skipped * scheduler.order :])
