"""Layers in faster forms for the time of a request, on every device: they leave out work that diffusers repeats.

On a GPU, layers also get forward methods with kernels of controlnet/speedups/cuda (fused.py), which round differently.

`in_fast_forms(models)` gives layers of the loaded models other forward methods (replaced.py), and gives them back their
own afterwards. Which layer takes which form is planned once for each model. The layers keep their tensors, names and
hooks. None of them keeps a result. Results that are used again are attributes of the tensor that they were computed
from (kept.py), so they are freed with the picture. A request that is cancelled at any point can therefore leave nothing
behind that changes another one: at worst some layers keep the other forward method, which answers any input as their
own does.
"""

import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from controlnet.speedups.cuda.kernels import READY, Form, kernels_for
from controlnet.speedups.fused import FUSED
from controlnet.speedups.replaced import FOR_ONE_HALF, FORMS, ExactUpsample, phases_of
from controlnet.speedups.replaced import OWN_CLASS as OF_REPLACED

OWN_CLASS: dict[type, type] = OF_REPLACED | {fused: OF_REPLACED.get(other, other) for other, fused in FUSED.items()}
"""The class of diffusers or PyTorch that each form derives from."""


class Plan:
    """Which layers of a model take which form, with the kernels that there are when it is made."""

    def __init__(self, model: nn.Module) -> None:
        self.kernels = frozenset(READY)
        self._forms: list[tuple[Any, type, type]] = []
        self.complete = getattr(model, "add_embedding", None) is None
        """Whether every layer of FOR_ONE_HALF has its exact form. Only then the model takes latents of batch 1 with
        embeddings of batch 2 (replaced.py). With another attention processor, for example, it does not. Nor if it adds
        embeddings to those of the time step, as Stable Diffusion XL does: the halves of a batch then differ from the
        first layers on."""
        for layer in model.modules():
            own = OWN_CLASS.get(type(layer), type(layer))
            layer.__class__ = own  # a cancelled request may have left it in another form
            form = _form_of(layer, kernels_for)
            if form is not None:
                self._forms.append((layer, own, form))
            elif isinstance(layer, FOR_ONE_HALF):
                self.complete = False

    def put_on(self) -> None:
        """Give the layers their forms."""
        for layer, _, form in self._forms:
            if form is ExactUpsample:
                layer.phases = phases_of(layer.conv.weight)
            _become(layer, "__class__", form)

    def take_off(self) -> None:
        """Give the layers back their own classes."""
        for layer, own, _ in self._forms:
            _become(layer, "__class__", own)
            layer.__dict__.pop("phases", None)


_plans: weakref.WeakKeyDictionary[nn.Module, Plan] = weakref.WeakKeyDictionary()
"""A plan refers to layers of its model, which do not refer to the model, so it goes with the model."""
_become = object.__setattr__  # nn.Module's own takes several times as long


def plan_of(model: nn.Module) -> Plan:
    """The plan of a model for the kernels that there are now."""
    plan = _plans.get(model)
    if plan is None or plan.kernels != READY.keys():
        plan = _plans[model] = Plan(model)
    return plan


@contextmanager
def in_fast_forms(models: Iterable[nn.Module]) -> Iterator[bool]:
    """Layers of diffusers models in their fast forms inside the block. A model may appear twice.

    Yields whether all plans are complete.
    """
    plans = [plan_of(model) for model in dict.fromkeys(models)]
    try:
        for plan in plans:
            plan.put_on()
        yield all(plan.complete for plan in plans)
    finally:
        for plan in plans:
            plan.take_off()


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
