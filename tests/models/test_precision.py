"""The precision of the models, and refused settings."""

from pathlib import Path

import numpy as np
import pytest
import torch
from support.jobs import job

from controlnet.bundle import open_bundle
from controlnet.generation.generator import Generator
from controlnet.models import precision
from controlnet.models.precision import DTYPE, PrecisionError, working_dtype

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def without_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    def supported(including_emulation: bool = True) -> bool:
        return including_emulation  # as on a card of compute capability 7.5

    monkeypatch.setattr(precision.torch.cuda, "is_bf16_supported", supported)


@pytest.mark.parametrize("environ", [{}, {DTYPE: ""}])
def test_default_precision_is_fp16_on_a_gpu_and_fp32_on_a_cpu(environ: dict[str, str]) -> None:
    assert (working_dtype(CUDA, environ), working_dtype(CPU, environ)) == (torch.float16, torch.float32)


@pytest.mark.parametrize(("named", "dtype"), precision.DTYPES.items())
def test_controlnet_dtype_sets_the_precision(named: str, dtype: torch.dtype, monkeypatch) -> None:
    monkeypatch.setattr(precision.torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    assert working_dtype(CPU, {DTYPE: named}) == working_dtype(CUDA, {DTYPE: named}) == dtype


@pytest.mark.parametrize("named", ["float16", "FP16", "int8", " fp16"])
def test_an_unknown_precision_is_refused(named: str) -> None:
    with pytest.raises(PrecisionError, match=rf"^CONTROLNET_DTYPE: expected fp16, bf16, fp32 .*, got '{named}'\.$"):
        working_dtype(CUDA, {DTYPE: named})


def test_bf16_is_refused_if_the_gpu_only_emulates_it(without_bf16) -> None:
    with pytest.raises(PrecisionError, match=r"does not support bf16.*compute capability 8\.0\. Use fp16"):
        working_dtype(CUDA, {DTYPE: "bf16"})
    assert working_dtype(CUDA, {}) == torch.float16
    assert working_dtype(CPU, {DTYPE: "bf16"}) == torch.bfloat16


randn = torch.randn


def make_picture(root: Path, name: str) -> np.ndarray:
    generator = Generator(open_bundle({"CONTROLNET_BUNDLE": "tiny", DTYPE: name}, root))
    models = [generator.base["unet"], generator.base["text_encoder"], generator.controlnets["canny"]]
    assert {model.dtype for model in models} == {precision.DTYPES[name]}
    with pytest.MonkeyPatch.context() as patch:  # in another precision PyTorch draws other noise
        patch.setattr(torch, "randn", lambda *size, dtype, **options: randn(*size, **options).to(dtype))
        (picture,) = generator.generate(job())
    return np.asarray(picture, float)


@pytest.fixture(scope="module")
def fp32_picture(tiny_root: Path) -> np.ndarray:
    return make_picture(tiny_root, "fp32")


@pytest.mark.parametrize(("name", "limit"), [("fp16", 3), ("bf16", 20)])
def test_half_precision_makes_nearly_the_picture_of_fp32(name: str, limit: int, tiny_root: Path, fp32_picture) -> None:
    """The mean difference was 0.7 in fp16 and 6.5 in bf16; from other noise it is 80. NaN would make it black."""
    assert fp32_picture.std() > 50
    assert 0 < np.abs(make_picture(tiny_root, name) - fp32_picture).mean() < limit
