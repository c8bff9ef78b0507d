"""What read_request needs to know about the bundle. controlnet.bundle.Bundle implements it."""

from collections.abc import Collection, Mapping, Sequence
from typing import Protocol

from controlnet.request.knobs import KnobValue
from controlnet.weights.tables import Defaults, Fast, Reference


class BundleFacts(Protocol):
    """The facts about a bundle that decide which requests it can serve."""

    @property
    def defaults(self) -> Defaults:
        """Values for the inputs that a request leaves out."""
        ...

    @property
    def fast(self) -> Fast | None:
        """How it paints in few steps. None if it cannot."""
        ...

    @property
    def reference(self) -> Reference | None:
        """How reference pictures act. None if it takes none."""
        ...

    @property
    def conditioners(self) -> Collection[str]:
        """Names of the conditioners that it has."""
        ...

    def knobs(self, conditioner: str) -> Collection[str]:
        """Names of the knobs that the conditioner's annotator takes; `conditioner` is one of `conditioners`."""
        ...

    def knob_fault(self, conditioner: str, knobs: Mapping[str, KnobValue]) -> str | None:
        """A sentence that says why the annotator cannot draw with these values of its knobs. None if it can."""
        ...

    def prompt_fault(self, prompts: Sequence[str], clip_skip: int) -> str | None:
        """A sentence that says why the text encoder cannot read these prompts at this clip_skip; None if it can."""
        ...

    @property
    def forbids_unsafe(self) -> bool:
        """Whether requests that skip the safety checker are refused: whoever runs the container decides."""
        ...

    @property
    def lora_hosts(self) -> Sequence[str]:
        """Where LoRAs may be fetched from, as Settings.lora_hosts."""
        ...

    @property
    def schedulers(self) -> Collection[str]:
        """Names of the samplers that know the base model's noise schedule."""
        ...

    def unet_calls(self, scheduler: str, num_inference_steps: int, skipped: int) -> int:
        """How often the UNet is called. Some samplers call it more than once for each of the steps asked for.

        The first `skipped` of `num_inference_steps` are left out, as with an initial picture.
        """
        ...
