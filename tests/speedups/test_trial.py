"""The trial of kernels at setup, which PyTorch's operations stand for here (tests/support/torch_kernels.py)."""

from collections.abc import Iterator
from typing import Any
from unittest import mock

import pytest
import torch
from diffusers import ControlNetModel, UNet2DConditionModel
from random_models import FULL, SMALL, build
from support.torch_kernels import TorchKernels

from controlnet.bundle import Bundle
from controlnet.speedups.cuda import trial
from controlnet.speedups.cuda.kernels import READY, Form
from controlnet.speedups.cuda.trial import KernelFault, TriedKernels, open_kernels, try_kernels
from controlnet.speedups.forms import kernel_forms
from controlnet.weights.manifest import Manifest

CPU, HALF = torch.device("cpu"), torch.float16


class Wrong(TorchKernels):
    """Wrong by a thousandth if a form is launched, for pictures of that many pixels or more."""

    def __init__(self, form: Form | None, pixels: int = 0) -> None:
        super().__init__()
        self.form, self.pixels = form, pixels

    def _spoilt(self, made: torch.Tensor, pixels: int = 0) -> torch.Tensor:
        launched = self.launched.pop(self.form, 0) if self.form else 0  # type: ignore[arg-type]
        return made * 1.001 if launched and pixels >= self.pixels else made

    def group_norm(self, x: torch.Tensor, *given: Any) -> torch.Tensor:
        return self._spoilt(super().group_norm(x, *given), x.shape[2:].numel())

    def layer_norm(self, *given: Any) -> tuple[torch.Tensor, torch.Tensor]:
        total, made = super().layer_norm(*given)
        return total, self._spoilt(made)

    def add_bias(self, *given: Any) -> torch.Tensor:
        return self._spoilt(super().add_bias(*given))

    def gated_gelu(self, x: torch.Tensor) -> torch.Tensor:
        return self._spoilt(super().gated_gelu(x))


@pytest.fixture
def ready(monkeypatch: pytest.MonkeyPatch) -> Iterator[Wrong]:
    """Kernels on the CPU, which are right until they get a form."""
    made = Wrong(None)
    monkeypatch.setattr(trial, "Kernels", lambda device, dtype: made)
    with mock.patch.dict(READY, clear=True):
        yield made


CHANNELS = {"unet": (16, 32), "vae": (24, 24, 40, 40)}
SIZES = SMALL | {name: SMALL[name] | {"block_out_channels": channels} for name, channels in CHANNELS.items()}
FORMS = sorted(kernel_forms(build("unet", SIZES).eval()) | kernel_forms(build("vae", SIZES).eval()))


def test_every_form_of_full_size_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """The numbers are those of Stable Diffusion 1.5's configuration."""
    made = TorchKernels()
    monkeypatch.setattr(trial, "PICTURES", [(2, 2)])
    forms = set[Form]().union(*(kernel_forms(build(name, FULL).eval()) for name in ("unet", "controlnet/hed", "vae")))
    try_kernels(made, forms, CPU, torch.bfloat16)
    norms = [form for form in made.launched if form.kernel == "group_norm"]
    assert {form.channels for form in norms} == {128, 256, 320, 512, 640, 960, 1280, 1920, 2560}
    assert {(form.added, form.silu) for form in norms if form.channels == 640} == {
        (False, False),
        (False, True),
        (True, True),
    }
    rows = {(form.channels, form.added) for form in made.launched if form.kernel == "layer_norm"}
    assert rows == {(width, added) for width in (320, 640, 1280) for added in (False, True)}
    assert {form.channels for form in made.launched if form.kernel == "gated_gelu"} == {1280, 2560, 5120}
    assert {form.channels for form in made.launched if form.kernel == "add_bias"} == {128, 256, 320, 512, 640, 1280}


@pytest.mark.parametrize("form", FORMS, ids=lambda form: "-".join(map(str, form)))
def test_a_fault_in_one_form_is_found(form: Form) -> None:
    with pytest.raises(
        KernelFault, match=f"^{form.kernel} is .*e-.* from PyTorch's result in float64, .* as Form.*{form.channels}"
    ):
        try_kernels(Wrong(form), set(FORMS), CPU, HALF)
    try_kernels(Wrong(form), set(FORMS) - {form}, CPU, HALF)


def test_a_fault_in_several_parts_of_a_picture_is_found() -> None:
    """A picture of 1551 pixels has several parts from 32 channels on, one of 9 pixels never."""
    form = next(form for form in FORMS if form.kernel == "group_norm")
    for pixels in (10, 1551):
        with pytest.raises(KernelFault, match="group_norm"):
            try_kernels(Wrong(form, pixels), {form}, CPU, HALF)


def test_kernels_that_are_wrong_for_one_model_are_used_for_none(ready: Wrong, capsys) -> None:
    tried = TriedKernels(CPU, HALF)
    unet, vae = (build(name, SIZES).eval() for name in ("unet", "vae"))
    assert tried.serve(unet) and READY
    count = ready.launched.total()
    assert tried.serve(unet) and ready.launched.total() == count, "each form is tried once"
    ready.form = max(kernel_forms(vae) - kernel_forms(unet))
    assert not tried.serve(vae) and not READY
    assert "kernels for this GPU are not used, so requests take longer: " in capsys.readouterr().out
    ready.form = None
    assert not tried.serve(unet) and not capsys.readouterr().out


def test_kernels_that_cannot_be_compiled_are_not_used(ready: Wrong, monkeypatch, capsys) -> None:
    def missing(*_: object) -> None:
        raise RuntimeError("Failure finding nvrtc")  # what cuda-bindings raises

    monkeypatch.setattr(trial, "Kernels", missing)
    assert open_kernels(CPU, HALF) is None and not READY
    assert "are not used, so requests take longer: Failure finding nvrtc" in capsys.readouterr().out


@pytest.mark.parametrize("right", [True, False])
def test_a_bundle_tries_the_kernels_on_each_model_that_it_loads(ready: Wrong, tiny_root, right: bool) -> None:
    bundle = Bundle(Manifest.read(tiny_root / "tiny.toml", {}), tiny_root, CPU, HALF, kernels=TriedKernels(CPU, HALF))
    unet = bundle.model(UNet2DConditionModel, "unet")
    assert ready.launched.keys() == kernel_forms(unet)
    assert unet.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
    if not right:
        ready.form = max(kernel_forms(unet))
        bundle.kernels._tried.clear()  # type: ignore[union-attr]
    packed = bundle.packed(ControlNetModel, "controlnet/canny")
    assert any(place.channels_last for place in packed.places) == right == bool(READY)
