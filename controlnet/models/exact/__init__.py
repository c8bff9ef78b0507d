"""Work that diffusers repeats, removed without changing the result: for the time of a request, on every device.

On a GPU, layers also get forward methods with kernels of controlnet/models/cuda (fused.py), which round otherwise.

`removed_from(models)` gives layers of the loaded models other forward methods (replaced.py), and gives them back their
own afterwards. The layers keep their tensors, names and hooks. None of them keeps a result. Results that are used again
are attributes of the tensor that they were computed from (kept.py), so they are freed with the picture. A request that
is cancelled at any point can therefore leave nothing behind that changes another one: at worst some layers keep the
other forward method, which answers any input as their own does.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from controlnet.models.cuda.kernels import Form, any_kernels, kernels_for
from controlnet.models.exact.fused import FUSED
from controlnet.models.exact.replaced import FOR_ONE_HALF, FORMS, ExactUpsample, phases_of
from controlnet.models.exact.replaced import OWN_CLASS as OWN_OF_EXACT
from controlnet.models.switch import is_on

EXACT = "CONTROLNET_EXACT_SPEEDUPS"
"""Environment variable: 0 runs every layer as diffusers does. If unset, empty or 1, repeated work is removed."""
OWN_CLASS: dict[type, type] = OWN_OF_EXACT | {fused: OWN_OF_EXACT.get(other, other) for other, fused in FUSED.items()}
"""The class of diffusers or PyTorch that each form derives from."""
_EITHER = FORMS.keys() | OWN_CLASS.keys()


def exact_speedups(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether repeated work is removed. Raises SwitchError."""
    return is_on(EXACT, environ, default=True)


@contextmanager
def removed_from(models: Iterable[nn.Module]) -> Iterator[bool]:
    """Remove repeated work from diffusers models inside the block. A model may appear twice.

    Yields whether every layer of FOR_ONE_HALF was given its exact form. Only then the models take latents of batch 1
    with embeddings of batch 2 (replaced.py). With another attention processor, for example, they do not.
    """
    # As keys of a dict, because a net that a request names twice has each of its layers once.
    either = _EITHER | FUSED.keys() if any_kernels() else _EITHER
    layers = dict.fromkeys(layer for model in models for layer in model.modules() if type(layer) in either)
    replaced = {layer for layer in layers if replace(layer)}
    try:
        yield all(layer in replaced for layer in layers if isinstance(layer, FOR_ONE_HALF))
    finally:
        for layer in replaced:
            restore(layer)


def scale_one_half(scheduler: Any) -> None:
    """Make a scheduler give the models one half of a guided batch, whose halves are the same latents.

    diffusers' pipelines double the latents and then call scale_model_input, at every step. The scheduler is that of one
    picture (controlnet/models/schedulers.py), so nothing has to be undone.
    """
    scale = scheduler.scale_model_input
    scheduler.scale_model_input = lambda sample, timestep=None: scale(sample.chunk(2)[0], timestep)


def replace(layer: Any) -> bool:
    """Give a layer the forward method of its exact form, if there is one that fits. Returns whether it has it."""
    restore(layer)  # a cancelled request may have left it replaced
    form = _form_of(layer, kernels_for)
    if form is None:
        return False
    if form is ExactUpsample:
        layer.phases = phases_of(layer.conv.weight)
    layer.__class__ = form
    return True


def kernel_forms(model: nn.Module) -> set[Form]:
    """What a model's layers ask of the kernels, if there are any for them."""
    found: dict[nn.Module, Form] = {}
    for layer in model.modules():  # a layer before its parts
        form = _form_of(layer, lambda _: True)  # whatever device it is on
        if form in FUSED.values() and layer not in found:
            found.update(form.uses(layer))
    return set(found.values())


def _form_of(layer: Any, kernels: Callable[[torch.Tensor], Any]) -> Any:
    """The form that fits a layer as it was loaded: its exact form, or the one of a GPU that derives from that.

    `kernels` says of a weight whether there are kernels for tensors like it.
    """
    if layer.training:
        return None
    exact = FORMS.get(type(layer))
    if exact is not None and not exact.fits(layer):
        return None
    fused = FUSED.get(exact or type(layer))
    return fused if fused is not None and fused.fits(layer, kernels) else exact


def restore(layer: nn.Module) -> None:
    """Undo replace()."""
    layer.__class__ = OWN_CLASS.get(type(layer), type(layer))
    layer.__dict__.pop("phases", None)
