import errno
import gc
import weakref

import cv2
import numpy as np
import pytest
import torch
from cog import CancelationException

from controlnet.errors import OutOfMemory, ServerFault, plain_errors
from controlnet.generation.safety import SafetyError
from controlnet.models.schedulers import SchedulerError
from controlnet.pictures.geometry import SizeError
from controlnet.pictures.images import ImageError
from controlnet.request.combinations import RequestError
from controlnet.request.inputs import InputError
from controlnet.request.pose import PoseError
from controlnet.serving.files import OutputError
from controlnet.weights.lockfile import WeightsError

OURS = (
    InputError,
    RequestError,
    PoseError,
    ImageError,
    SizeError,
    OutputError,
    SafetyError,
    SchedulerError,
    WeightsError,
)
"""At least one of each folder: an error is ours by where its class is defined."""


@pytest.mark.parametrize("error_class", [*OURS, CancelationException])
def test_our_own_errors_and_cancellations_pass(error_class: type[BaseException]) -> None:
    with pytest.raises(error_class, match="as it is"), plain_errors():
        raise error_class("as it is")


@pytest.mark.parametrize(
    "error",
    [RuntimeError("at /home/me/x.py"), cv2.error("at /x.cpp"), OSError(2, "no", "/etc/x"), ValueError("/etc/x")],
)
def test_library_errors_are_logged_but_not_shown_to_clients(error, capsys) -> None:
    with pytest.raises(ServerFault) as caught, plain_errors():
        raise error
    assert "/" not in str(caught.value) and type(error).__name__ in str(caught.value)
    assert caught.value.__cause__ is None
    logged = capsys.readouterr().err
    assert "Traceback" in logged and str(error) in logged


def out_of_memory_in_opencv() -> cv2.error:
    """What OpenCV raises for 10 million gigabytes."""
    try:
        cv2.copyMakeBorder(np.zeros((10, 10), np.uint8), 0, 10**8, 0, 10**8, cv2.BORDER_REPLICATE)
    except cv2.error as error:
        return error
    raise AssertionError("OpenCV had enough memory")


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        MemoryError(),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        out_of_memory_in_opencv(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate memory: you tried"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_out_of_memory_says_what_to_lower(error) -> None:
    with pytest.raises(OutOfMemory, match=r"^There is not enough memory .* lower resolution") as caught, plain_errors():
        raise error
    assert caught.value.__cause__ is None


def test_out_of_memory_of_the_real_allocator_is_recognised() -> None:
    with pytest.raises(OutOfMemory), plain_errors():
        torch.empty(2**58, dtype=torch.uint8)


def test_memory_of_a_failed_request_is_freed() -> None:
    held = []

    def fails() -> None:
        tensor = torch.zeros(10)
        held.append(weakref.ref(tensor))
        raise torch.OutOfMemoryError("no")

    gc.disable()  # so that nothing but our own code can free it
    try:
        with pytest.raises(OutOfMemory) as caught, plain_errors():
            fails()
        assert held[0]() is None, caught.value
    finally:
        gc.enable()
