"""The precision of the models, and refused settings."""

from pathlib import Path

import numpy as np
import pytest
import torch
from support.jobs import job

from controlnet.bundle import open_bundle
from controlnet.generation.generator import Generator
from controlnet.models import precision
from controlnet.models.precision import working_dtype
from controlnet.settings import Settings, SettingsError

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def without_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    def supported(including_emulation: bool = True) -> bool:
        return including_emulation  # as on a card of compute capability 7.5

    monkeypatch.setattr(precision.torch.cuda, "is_bf16_supported", supported)


def test_default_precision_is_fp16_on_a_gpu_and_fp32_on_a_cpu() -> None:
    assert (working_dtype(CUDA), working_dtype(CPU)) == (torch.float16, torch.float32)


@pytest.mark.parametrize(("named", "dtype"), precision.DTYPES.items())
def test_controlnet_dtype_sets_the_precision(named: str, dtype: torch.dtype, monkeypatch) -> None:
    monkeypatch.setattr(precision.torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    assert working_dtype(CPU, named) == working_dtype(CUDA, named) == dtype


def test_bf16_is_refused_if_the_gpu_only_emulates_it(without_bf16) -> None:
    with pytest.raises(SettingsError, match=r"does not support bf16.*compute capability 8\.0\. Use fp16"):
        working_dtype(CUDA, "bf16")
    assert working_dtype(CUDA) == torch.float16
    assert working_dtype(CPU, "bf16") == torch.bfloat16


def make_picture(root: Path, name: str) -> np.ndarray:
    generator = Generator(open_bundle(Settings(bundle="tiny", dtype=name), root))
    models = [generator.base["unet"], generator.base["text_encoder"], generator.controlnets["canny"]]
    assert {model.dtype for model in models} == {precision.DTYPES[name]}
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
