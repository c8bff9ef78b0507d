"""The schedulers (samplers) that a request can name, by the names of other Stable Diffusion models on Replicate."""

from collections.abc import Mapping
from typing import Any

from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    LMSDiscreteScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)

SCHEDULERS: dict[str, tuple[type, dict[str, Any]]] = {
    "DDIM": (DDIMScheduler, {}),
    "DPMSolverMultistep": (DPMSolverMultistepScheduler, {}),
    "HeunDiscrete": (HeunDiscreteScheduler, {}),
    "K_EULER": (EulerDiscreteScheduler, {}),
    "K_EULER_ANCESTRAL": (EulerAncestralDiscreteScheduler, {}),
    "KLMS": (LMSDiscreteScheduler, {}),
    # The Runge-Kutta warm-up would add a dozen steps that nobody asked for. Latent diffusion has always skipped it.
    "PNDM": (PNDMScheduler, {"skip_prk_steps": True}),
    "UniPCMultistep": (UniPCMultistepScheduler, {}),
}


class SchedulerError(ValueError):
    """There is no scheduler of that name."""


def make_scheduler(name: str, config: Mapping[str, Any]) -> Any:
    """A new scheduler of that name with the bundle's noise schedule, `config`. Raises SchedulerError.

    A scheduler keeps state during a run (step index, earlier outputs), so every picture needs a new one.
    """
    if name not in SCHEDULERS:
        raise SchedulerError(f"scheduler: expected one of {', '.join(SCHEDULERS)}; got {name!r}.")
    scheduler_class, options = SCHEDULERS[name]
    return scheduler_class.from_config(dict(config), **options)


def steps_of(name: str, config: Mapping[str, Any], num_inference_steps: int, skipped: int = 0) -> int:
    """How often the UNet is called if the first `skipped` of `num_inference_steps` are left out.

    That is more often than once a step for samplers of second order (HeunDiscrete). Raises SchedulerError.
    """
    scheduler = make_scheduler(name, config)
    scheduler.set_timesteps(num_inference_steps)
    return len(scheduler.timesteps[skipped * scheduler.order :])
