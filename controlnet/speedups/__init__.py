"""Makes the networks of a request fast. The generator borrows them from here.

- forms.py: layers leave out work that diffusers repeats (replaced.py, kept.py), on every device. On a GPU in half
  precision they also use kernels of this project (fused.py, cuda/kernels.py).
- cuda/graphs.py: on a GPU, UNet and ControlNets run as CUDA graphs.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from controlnet.models.schedulers import keep_times_in_main_memory
from controlnet.speedups.cuda.graphs import Graphs, open_graphs
from controlnet.speedups.forms import in_fast_forms


@dataclass(frozen=True)
class Lent:
    """The networks of one request, in their fast forms."""

    base: Mapping[str, Any]
    """The base model's parts, by the names that diffusers' pipelines give them."""
    control_maps: dict[tuple[int, int | None], torch.Tensor] | None
    """What a composite keeps its control maps in, so that nets embed each once for a request: by the control's number,
    and the batch of a union's map. None: they do not."""
    _nets: Mapping[str, Any]
    _graphs: Graphs | None
    _takes_half: bool

    def nets(self, names: list[str]) -> list[Any]:
        """The ControlNets of these names, in their order."""
        nets = [self._nets[name] for name in names]
        if self._graphs is None:
            return nets
        # A net that is used twice has graphs for each of its places.
        return [self._graphs.of(net, nets[:i].count(net)) for i, net in enumerate(nets)]

    def adapt(self, scheduler: Any, outputs: int) -> None:
        """Set up the scheduler of a pipeline that paints so many outputs at once.

        Both halves of a guided batch are the same latents. Where the networks allow it, they get one half.
        """
        if self._takes_half and outputs == 1:  # several outputs have latents of their own
            give_one_half(scheduler)
        if self._graphs is not None:
            keep_times_in_main_memory(scheduler)


class Speedups:
    """Lends the networks of requests. One for all requests, made at setup."""

    def __init__(self, device: torch.device, fast_forms: bool, graphs: bool) -> None:
        """`fast_forms`: whether layers have them. `graphs`: whether a GPU uses CUDA graphs."""
        self._fast_forms, self._graphs = fast_forms, open_graphs(device) if graphs else None

    def warm_up_side(self, smallest: int, usual: int) -> int:
        """The side of the picture that is painted at setup: the usual one if graphs are captured for it."""
        return smallest if self._graphs is None else usual

    def recover(self) -> None:
        """End a capture that cancellations have interrupted, before anything of a request runs on the GPU."""
        if self._graphs is not None:
            self._graphs.recover()

    def begin(self) -> None:
        """Begin to make the pictures of a request."""
        if self._graphs is not None:
            self._graphs.begin()

    @contextmanager
    def lent(self, base: Mapping[str, Any], nets: Mapping[str, Any], guided: bool) -> Iterator[Lent]:
        """Networks for one request: of a base model, and ControlNets by name.

        `guided`: whether the batches have an unconditional half. A cancelled request may leave layers in fast forms,
        whose results are the same.
        """
        networks: list[nn.Module] = [base["unet"], *nets.values()] if self._fast_forms else []
        with in_fast_forms(networks) as complete, in_fast_forms([base["vae"]] if self._fast_forms else []):
            graphed = {} if self._graphs is None else {"unet": self._graphs.of(base["unet"])}
            control_maps: dict[tuple[int, int | None], torch.Tensor] | None = {} if self._fast_forms else None
            yield Lent({**base, **graphed}, control_maps, nets, self._graphs, self._fast_forms and complete and guided)


def give_one_half(scheduler: Any) -> None:
    """Make a scheduler give the models one half of a guided batch, whose halves are the same latents.

    diffusers' pipelines double the latents and then call scale_model_input, at every step. The scheduler is that of one
    picture (controlnet/models/schedulers.py), so nothing has to be undone.
    """
    scale = scheduler.scale_model_input
    scheduler.scale_model_input = lambda sample, timestep=None: scale(sample.chunk(2)[0], timestep)
