"""Which precision the models work in, and what is refused."""

import pytest
import torch
from random_bundle import write_bundle
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
def test_a_gpu_works_in_half_precision_and_a_cpu_in_full(environ: dict[str, str]) -> None:
    assert (working_dtype(CUDA, environ), working_dtype(CPU, environ)) == (torch.float16, torch.float32)


@pytest.mark.parametrize(("named", "dtype"), precision.DTYPES.items())
def test_the_environment_decides(named: str, dtype: torch.dtype, monkeypatch) -> None:
    monkeypatch.setattr(precision.torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    assert working_dtype(CPU, {DTYPE: named}) == working_dtype(CUDA, {DTYPE: named}) == dtype


@pytest.mark.parametrize("named", ["float16", "FP16", "int8", " fp16"])
def test_what_is_no_precision_is_refused(named: str) -> None:
    with pytest.raises(PrecisionError, match=rf"^CONTROLNET_DTYPE: expected fp16, bf16, fp32 .*, got '{named}'\.$"):
        working_dtype(CUDA, {DTYPE: named})


def test_a_precision_that_the_gpu_only_emulates_is_refused(without_bf16) -> None:
    with pytest.raises(PrecisionError, match=r"no bf16.*compute capability 8\.0\. Use fp16"):
        working_dtype(CUDA, {DTYPE: "bf16"})
    assert working_dtype(CUDA, {}) == torch.float16
    assert working_dtype(CPU, {DTYPE: "bf16"}) == torch.bfloat16


@pytest.mark.parametrize("named", precision.DTYPES)
def test_a_bundle_works_in_every_precision(named: str, tmp_path, monkeypatch) -> None:
    """NumPy has no bf16: a tensor that went there without a cast would be an error."""
    write_bundle("tiny", tmp_path, small=True)
    generator = Generator(open_bundle({"CONTROLNET_BUNDLE": "tiny", DTYPE: named}, tmp_path))
    models = [generator.base["unet"], generator.base["text_encoder"], generator.controlnets["canny"]]
    assert {model.dtype for model in models} == {precision.DTYPES[named]}
    assert [picture.size for picture in generator.generate(job())] == [(64, 64)]
